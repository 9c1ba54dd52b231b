"""What `raygauss` makes of the corrections: held-out cameras, backgrounds that belong to photographs, moving things."""

import pytest
import torch
from nerfstudio.model_components import renderers

from ns_support.corrections.moving import BLOCKS
from ns_support.corrections.poses import PoseRefinementConfig
from raygauss_ns.background import Background
from raygauss_ns.color.harmonics import sh_basis


@pytest.fixture
def colored(make_model, make_cameras):
    """A model of large Gaussians of many colours, whose image has something to see everywhere."""

    def make(**fields):
        torch.manual_seed(0)
        points = 1.5 * torch.rand(200, 3) - 0.75, 255 * torch.rand(200, 3)
        refinement = PoseRefinementConfig(mode="SO3xR3")
        model = make_model(
            2.0, cameras=make_cameras(height=60, width=60), seed_points=points, camera_optimizer=refinement, **fields
        )
        model.cloud.params["densities"].data.fill_(8.0)
        return model.eval()

    return make


@pytest.mark.parametrize("masked", [False, True])
def test_a_held_out_camera_is_found_again(colored, make_cameras, masked):
    model, (camera, other) = colored(), (make_cameras(height=60, width=60)[0:1] for _ in range(2))
    image = model.get_outputs_for_camera(camera)["rgb"].detach()
    batch = {"image": image}
    if masked:
        batch["mask"] = torch.ones(60, 60, 1, dtype=torch.bool)
        batch["mask"][:, :30] = False
        batch["image"] = torch.where(batch["mask"], image, image.flip(1))
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.01, 0.02], [0.01, 0.0, -0.015], [-0.02, 0.015, 0.0]]))
    other.camera_to_worlds = camera.camera_to_worlds.clone()
    other.camera_to_worlds[0, :, :3] = other.camera_to_worlds[0, :, :3] @ turn
    other.camera_to_worlds[0, :, 3] += torch.tensor([0.03, -0.02, 0.01])

    def error(pose):
        shown = model.get_outputs_for_camera(pose)["rgb"]
        return float((shown - image).square().mean())

    found = model.aligned(other, batch)
    assert error(found) < 0.05 * error(other)


def test_a_learned_background_is_a_colour_for_each_direction():
    background, draw = Background("learned"), torch.Generator()
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(background(directions, draw), torch.full((50, 3), 0.5))
    torch.nn.init.normal_(background.coefficients)
    expected = torch.sigmoid(sh_basis(directions, 2) @ background.coefficients)
    torch.testing.assert_close(background(directions, draw), expected)
    background(directions, draw).sum().backward()
    assert bool(background.coefficients.grad.any())
    with renderers.background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        assert background(directions, draw)[7].tolist() == [1.0, 0.0, 0.0]
        assert not background.belongs_to_photographs


@pytest.mark.parametrize("kind", ["learned", "white"])
def test_only_a_learned_background_is_exposed_with_the_photograph(colored, make_cameras, kind):
    model = colored(background_color=kind, exposure="on")
    away = make_cameras(height=60, width=60)[0:1]
    away.camera_to_worlds = away.camera_to_worlds @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks away
    before = model.get_outputs_for_camera(away)
    assert not before["accumulation"].any()
    with torch.no_grad():
        model.exposure.adjustments[..., 3] = -0.25
    after = model.get_outputs_for_camera(away)["rgb"]
    torch.testing.assert_close(after, before["rgb"] - (0.25 if kind == "learned" else 0.0))


def test_blocks_that_have_moved_do_not_count(colored, make_cameras):
    model = colored(ignore_moving=True, training_window=0).train()
    camera = make_cameras(height=60, width=60)[0:1]
    camera.metadata = {"cam_idx": 0}
    outputs = model.get_outputs(camera)
    image = outputs["rgb"].detach().clone()
    image[:15, :15] = 1 - image[:15, :15]
    batch = {"image": image, "image_idx": 0}
    model.moving.before_step(1.0)
    assert float(model.get_loss_dict(outputs, batch)["main_loss"]) > 0.01
    moved = model.moving.moved.view(-1, BLOCKS, BLOCKS)
    moved[0, :8, :8] = True
    assert float(model.get_loss_dict(outputs, batch)["main_loss"]) == pytest.approx(0.0, abs=1e-5)
    moved[0], moved[1, :8, :8] = False, True  # of another photograph
    assert float(model.get_loss_dict(outputs, batch)["main_loss"]) > 0.01


def test_what_is_left_of_a_crop_weighs_as_much_as_before(colored, make_cameras):
    """The loss is a mean over the pixels of the data's mask, and not of the few that a person leaves of a crop."""
    model = colored(ignore_moving=True, training_window=0, ssim_lambda=0.0).train()
    camera = make_cameras(height=64, width=64)[0:1]
    camera.metadata = {"cam_idx": 0}
    outputs = model.get_outputs(camera)
    away = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    mask = torch.ones(64, 64, 1, dtype=torch.bool)
    mask[:, 60:] = False
    batch = {"image": outputs["rgb"].detach() + away, "image_idx": 0, "mask": mask}
    model.moving.before_step(1.0)
    assert float(model.get_loss_dict(outputs, batch)["main_loss"]) == pytest.approx(float(away[:, :60].abs().mean()))
    model.moving.moved.view(-1, BLOCKS, BLOCKS)[0, :, :25] = True
    left = float(away[:, 50:60].abs().sum() / away[:, :60].numel())
    assert float(model.get_loss_dict(outputs, batch)["main_loss"]) == pytest.approx(left)
