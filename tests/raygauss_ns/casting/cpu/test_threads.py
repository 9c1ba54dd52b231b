"""Threads and processes: the same numbers again, from two threads at once and after a fork."""

import multiprocessing
import threading

import pytest
import torch

from raygauss_ns.casting import CastSettings

SETTINGS = CastSettings(step=0.05, density_threshold=1e-6, sample_offset=0.5)
SECONDS = 60.0  # long enough for a loaded machine, short enough to fail a test that would hang


@pytest.fixture(scope="module")
def scene(random_scene):
    return random_scene(100, seed=8)


@pytest.fixture(scope="module")
def rays(image_rays):
    return image_rays(13, 9)


@pytest.fixture(scope="module")
def cotangent():
    return torch.randn(13 * 9, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def cast_again(scene, rays, cotangent, differentiate):
    """`cast_again(width)`: the scene's outputs and gradients."""
    return lambda width: differentiate(scene, rays, SETTINGS, cotangent, image_width=width)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [0, 13])
def test_repeats_bit_for_bit(width, threads, cast_again, torch_threads):
    torch_threads(threads)
    first, second = (cast_again(width) for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[name]), name


@pytest.mark.parametrize("threads", [2, 5, 300])
@pytest.mark.parametrize("width", [0, 13])
def test_number_of_threads_has_no_influence(width, threads, cast_again, gradient_errors, torch_threads, monkeypatch):
    torch_threads(1)
    expected = cast_again(width)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # 300: more than there are rays
    actual = cast_again(width)
    assert torch.equal(actual.outputs, expected.outputs)
    for name, error in gradient_errors(actual.gradients, expected.gradients).items():
        assert error.below(1e-5), f"{name}: {error}"


def test_two_callers_at_once(scene, rays, cotangent, differentiate, torch_threads):
    """Training and the viewer do this."""
    torch_threads(2)
    halves = {"training": rays.apply(lambda t: t[:60]), "viewer": rays.apply(lambda t: t[60:])}
    gradients_of = {"training": cotangent[:60], "viewer": cotangent[60:]}

    def work(caller):
        return differentiate(scene, halves[caller], SETTINGS, gradients_of[caller])

    expected = {caller: work(caller) for caller in halves}
    results = {caller: [] for caller in halves}

    def often(caller):
        for _ in range(20):
            results[caller].append(work(caller))

    callers = [threading.Thread(target=often, args=(caller,), daemon=True) for caller in halves]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(SECONDS)
    for caller, wanted in expected.items():
        assert len(results[caller]) == 20
        for result in results[caller]:
            assert torch.equal(result.outputs, wanted.outputs)
            assert all(torch.equal(result.gradients[name], wanted.gradients[name]) for name in wanted.gradients)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
# What Python warns of here, a fork while threads exist, is what the test is about.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_casts_in_a_child_forked_after_a_cast(scene, rays, cast_scene, torch_threads):
    torch_threads(2)
    expected = cast_scene(scene, rays, SETTINGS, image_width=13)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def report():
        sender.send(cast_scene(scene, rays, SETTINGS, image_width=13).tolist())

    child = context.Process(target=report)
    child.start()
    try:
        assert receiver.poll(SECONDS), "the child hangs"
        assert torch.equal(torch.tensor(receiver.recv()), expected)
    finally:
        child.join(SECONDS)
        child.kill()
    assert child.exitcode == 0
