"""The thread that draws for a browser: interrupted at any moment, or met with errors, it goes on."""

import collections
import random
import threading
import time
from types import SimpleNamespace

import numba
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException, SetTrace

from hardmine_ns.model import HardMineModelConfig
from raygauss_ns.config import RayGaussModelConfig

CONFIGS = {
    "raygauss": RayGaussModelConfig(num_random=200, step_size=0.05),
    "instant-ngp-hardmine": HardMineModelConfig(
        log2_hashmap_size=10, grid_resolution=16, hidden_dim=16, render_step_size=0.3, eval_num_rays_per_chunk=128
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    box = SceneBox(torch.tensor([[-1.5] * 3, [1.5] * 3]))
    made = CONFIGS[request.param].setup(scene_box=box, num_train_data=1, metadata={}, device="cpu", seed_points=None)
    return made.eval()


@pytest.fixture
def camera():
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]])
    return Cameras(pose, 30.0, 30.0, 12.0, 12.0, 24, 24)


def in_viewers_thread(work):
    """Call `work(thread)` in the kind of thread that nerfstudio makes for each browser."""

    class Renderer(RenderStateMachine):
        def run(self):
            self.result = work(self)

    thread = Renderer(None, 1.0, None)
    thread.start()
    thread.join()
    return thread.result


def draw(thread, model, camera, delay):
    """One picture as nerfstudio has it drawn, its camera moving after so many seconds: what became of it."""

    def move():
        thread.interrupt_render_flag = True

    timer = threading.Timer(delay, move)
    timer.start()
    try:
        with torch.no_grad(), SetTrace(thread.check_interrupt):
            model.get_outputs_for_camera(camera)
        return "finished"
    except IOChangeException:
        return "interrupted"
    except BaseException as error:
        return f"died of {type(error).__name__}"
    finally:
        timer.cancel()
        timer.join()
        thread.interrupt_render_flag = False


@pytest.fixture
def compiling():
    """Kernels of Numba's compiled over and over in another thread."""
    stop = threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            number += 1
            scope = {}
            exec(f"def function(x):\n    return x + {number}", scope)
            numba.njit(scope["function"])(1.0)
            time.sleep(0.3)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.parametrize("interruptions", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_interruptions_never_end_the_thread(interruptions, model, camera, compiling):
    draws = random.Random(0)

    def work(thread):
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            assert draw(thread, model, camera, 60.0) == "finished"
            times.append(time.perf_counter() - begin)
        # More of them early: a small picture that is past its last place to stop is finished, whatever comes.
        moments = [draws.random() ** 3 * min(times) for _ in range(interruptions)]
        return collections.Counter(draw(thread, model, camera, moment) for moment in moments)

    outcomes = in_viewers_thread(work)
    assert set(outcomes) <= {"finished", "interrupted"}, outcomes
    assert outcomes["interrupted"] > 0
    assert not model.run._reported  # what ends the thread in nerfstudio would be a plain picture here


def test_an_interruption_within_what_numba_calls_does_not_end_the_thread(model, camera):
    """From compiled code Numba calls functions of Python's, which have lines that a trace may raise at."""

    def work(thread):
        def trace(frame, event, argument):
            if frame.f_code.co_name == "_numba_unpickle":
                thread.interrupt_render_flag = True
            thread.check_interrupt(frame, event, argument)
            return trace

        try:
            with torch.no_grad(), SetTrace(trace):
                return model.get_outputs_for_camera(camera)
        except IOChangeException:
            return None

    assert "rgb" in in_viewers_thread(work)
    assert not model.run._reported


def test_an_error_is_reported_once_and_gives_a_plain_picture(model, camera, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("no picture")

    good = in_viewers_thread(lambda thread: model.get_outputs_for_camera(camera))
    panel = SimpleNamespace(output_render="normals", split=False)
    monkeypatch.setattr(model.run, "viewer", SimpleNamespace(trainer=None, control_panel=panel))
    monkeypatch.setattr(type(model), "render" if hasattr(model, "render") else "_render", broken)
    monkeypatch.setattr(model.run, "_reported", set())
    for _ in range(2):
        outputs = in_viewers_thread(lambda thread: model.get_outputs_for_camera(camera))
        assert {"normals", *good} == set(outputs)
        assert outputs["rgb"].shape == (24, 24, 3)
        assert outputs["normals"].shape[:2] == outputs["depth"].shape[:2] == (24, 24)
    assert (
        " ".join(capsys.readouterr().out.split()).count("could not draw an image (ZeroDivisionError: no picture)") == 1
    )
    with pytest.raises(ZeroDivisionError):
        model.get_outputs_for_camera(camera)


def test_a_picture_in_pieces_is_the_whole_one(model, camera):
    whole = model.get_outputs_for_camera(camera)
    model.run._rays_per_second = 1.0  # 16 rows at a time
    pieces = in_viewers_thread(lambda thread: model.get_outputs_for_camera(camera))
    for name in ("rgb", "depth", "accumulation"):
        torch.testing.assert_close(pieces[name], whole[name], atol=1e-4, rtol=1e-4)


def test_sending_a_picture_never_ends_the_thread(model, capsys):
    """The browser may have left meanwhile."""
    panel = SimpleNamespace(split_output_render="gl_z_buf_depth", split=False, _split_output_render=SimpleNamespace())
    model.run.viewer = SimpleNamespace(control_panel=panel, trainer=None)
    sent = []
    renderer = SimpleNamespace(_send_output_to_viewer=lambda outputs, static: sent.append(outputs))
    model.run._guard(renderer)
    renderer._send_output_to_viewer({"rgb": 1}, static_render=False)
    assert panel._split_output_render.value == "depth"
    renderer = SimpleNamespace(_send_output_to_viewer=lambda outputs, static: outputs["nothing"])
    model.run._guard(renderer)
    renderer._send_output_to_viewer({})
    assert sent == [{"rgb": 1}]
    assert "KeyError: 'nothing'" in capsys.readouterr().out
    model.run.viewer = None
