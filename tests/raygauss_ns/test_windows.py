"""Windows chosen by a memory of their errors, in the model: the loss and its gradient, what is learnt and loaded."""

import pytest
import torch

from ns_support.concurrency.processes import Processes
from ns_support.rays import lens_of
from raygauss_ns.cameras import random_window
from raygauss_ns.gaussians.losses import photometric_loss
from raygauss_ns.gaussians.schedules import Draw, step_generator
from raygauss_ns.training import drawn_window

HEIGHT, WIDTH = 14, 13
"""Of images that have twelve windows of 11 x 11 pixels."""


@pytest.fixture
def make(make_model, make_cameras):
    def made(rule="blocks", **fields):
        cameras = make_cameras(height=HEIGHT, width=WIDTH)
        settings = {"training_window": 11, "num_downscales": 0, "sh_degree_interval": 0, "window_rule": rule}
        model = make_model(cameras=cameras, **(settings | fields)).train()
        model.update_to_step(0)
        if model.windows.is_on:
            model.windows.memory[0], model.windows.memory[1] = 1e-4, 1.0
            model.windows.memory[0, :, 14:] = 1.0  # the last rows are wrong
        return model

    return made


def seen(make_cameras, photo):
    camera = make_cameras(height=HEIGHT, width=WIDTH)[photo : photo + 1]
    camera.metadata = {"cam_idx": photo}
    return camera


def batch_of(photo, mask=None):
    image = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(photo))
    return {"image": image, "image_idx": photo} | ({} if mask is None else {"mask": mask})


def images_of_windows(model, camera):
    """For each window of an image, the first image of the training that it is drawn for."""
    found = {}
    for image in range(999):
        model.update_to_image(image)
        window, _ = drawn_window(model, lens_of(camera), camera.metadata["cam_idx"])
        found.setdefault(window, image)
        if len(found) == 12:
            return found
    raise AssertionError(f"only {len(found)} windows were drawn")


def gradient(model, losses):
    model.zero_grad()
    sum(losses.values()).backward()
    return torch.cat([p.grad.flatten() for p in model.cloud.params.values()])


def test_the_mean_gradient_over_the_draw_is_that_of_all_windows(make, make_cameras):
    """In sum over all windows, each with its probability; penalties that every step has keep their weight."""
    model, uniform = make(iso_weight=0.01), make("uniform", iso_weight=0.01)
    batch, camera = batch_of(1), seen(make_cameras, 1)
    of, wanted = {}, {}
    for each, found in ((model, of), (uniform, wanted)):
        for window, image in images_of_windows(each, camera).items():
            each.update_to_image(image)
            outputs = each.get_outputs(camera)
            assert tuple(outputs["window"].tolist()) == window
            weight = float(outputs.get("window_weight", 1.0))
            found[window] = weight, gradient(each, each.get_loss_dict(outputs, batch))
    assert of.keys() == wanted.keys()
    chances = [1 / (12 * weight) for weight, _ in of.values()]
    assert sum(chances) == pytest.approx(1, rel=1e-5)
    assert max(chances) > 1.5 * min(chances)
    mean = sum(chance * found for chance, (_, found) in zip(chances, of.values(), strict=True))
    expected = sum(found for _, found in wanted.values()) / 12
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_the_loss_is_weighted_and_its_errors_are_learnt(make, make_cameras):
    model, mask = make(ssim_lambda=0.0), torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    mask[:7] = False
    before = model.windows.memory.clone()
    model.update_to_image(2)
    outputs = model.get_outputs(seen(make_cameras, 1))
    weight, (top, left, _, _) = float(outputs["window_weight"]), outputs["window"].tolist()
    assert weight != 1
    batch = batch_of(1, mask)
    image, shown = (batch[name][top : top + 11, left : left + 11] for name in ("image", "mask"))
    loss = model.get_loss_dict(outputs, batch)["main_loss"].detach()
    assert float(loss) == pytest.approx(weight * float(photometric_loss(outputs["rgb"].detach(), image, 0.0, shown)))
    for _ in range(2):
        assert torch.equal(model.windows.memory, before)
        model.windows.after_step(Processes())
    _, kept = (model.windows.memory - before)[:, 1] != 0
    assert bool(kept.any())
    assert torch.equal(model.windows.memory[:, 0], before[:, 0])
    assert float(model.windows.memory[1, 1, :7][kept[:7]].max()) == pytest.approx(0.8)  # hidden, as of late
    model.eval()
    assert "window_weight" not in model.get_outputs(seen(make_cameras, 1))


def test_what_moves_draws_no_windows(make, make_cameras):
    """A block that does not count any more has no error, however wrong it is."""
    model = make(ignore_moving=True)
    model.moving.moved.fill_(True)
    model.before_corrected_step(0.5)
    outputs = model.get_outputs(seen(make_cameras, 0))
    for _ in range(40):
        loss = model.get_loss_dict(outputs, batch_of(0))["main_loss"].detach()
        assert float(loss) == pytest.approx(0, abs=1e-6)
        model.windows.after_step(Processes())
    top, left, _, _ = outputs["window"].tolist()
    assert float(model.windows.memory[:, 0, 16 * (top + 5) // HEIGHT, 16 * (left + 5) // WIDTH].max()) < 1e-3


def test_density_control_counts_a_view_by_its_weight(make, make_cameras):
    """|dL/dmu| is that of the weighted loss, so the number of views that it is divided by is weighted, too."""
    model, plain = make(), make("uniform")
    batch = batch_of(1)
    model.update_to_image(2)
    outputs = model.get_outputs(seen(make_cameras, 1))
    weight, window = float(outputs["window_weight"]), tuple(outputs["window"].tolist())
    gradient(model, model.get_loss_dict(outputs, batch))
    plain.update_to_image(images_of_windows(plain, seen(make_cameras, 1))[window])
    gradient(plain, plain.get_loss_dict(plain.get_outputs(seen(make_cameras, 1)), batch))
    for each in (model, plain):
        each.density_control.add_observed(Processes())
    assert weight != 1
    for name in ("gradient_sum", "times_seen"):
        found, wanted = (getattr(each.density_control, name) for each in (model, plain))
        assert float(wanted.max()) > 0
        torch.testing.assert_close(found, weight * wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))


def test_uniform_windows_are_what_they_were(make, make_cameras):
    model = make("uniform")
    assert not [name for name in model.state_dict() if name.startswith("windows")]
    for image in range(5):
        model.update_to_image(image)
        outputs = model.get_outputs(seen(make_cameras, 0))
        assert "window_weight" not in outputs
        generator = step_generator(model.seed, image, Draw.WINDOW)
        window = random_window(lens_of(seen(make_cameras, 0)), 11, generator)
        assert tuple(outputs["window"].tolist()) == window


def test_whole_images_have_no_windows_to_choose(make, make_cameras):
    model = make(training_window=0)
    before = model.windows.memory.clone()
    outputs = model.get_outputs(seen(make_cameras, 0))
    assert (outputs["window"].tolist(), float(outputs["window_weight"])) == ([0, 0, HEIGHT, WIDTH], 1.0)
    model.get_loss_dict(outputs, batch_of(0))
    for _ in range(2):
        model.windows.after_step(Processes())
    assert torch.equal(model.windows.memory, before)


def test_checkpoints_with_and_without_the_memory_load(make):
    model, uniform, other = make(), make("uniform"), make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other.windows.memory.zero_()
    other.load_state_dict(dict(state), strict=True)
    assert torch.equal(other.windows.memory, model.windows.memory)
    uniform.load_state_dict(dict(state), strict=True)
    assert not uniform.windows.is_on
    other.load_state_dict(uniform.state_dict(), strict=True)  # of a version that had none
