import gc
import math
import weakref

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context

from ns_support.concurrency.processes import Processes
from ns_support.errors import UserError
from ns_support.rays import downscaled
from raygauss_ns.color import view_colors
from raygauss_ns.config import RayGaussModelConfig, check_background


def assert_outputs(outputs, shape):
    assert outputs["rgb"].shape == (*shape, 3)
    assert outputs["background"].shape == (*shape, 3)
    assert outputs["depth"].shape == outputs["accumulation"].shape == (*shape, 1)
    for name in ("rgb", "background", "depth", "accumulation"):
        assert outputs[name].dtype == torch.float32
        assert bool(outputs[name].isfinite().all())


def test_a_camera_gives_an_image(make_model, make_cameras):
    model = make_model().eval()
    outputs = model.get_outputs_for_camera(make_cameras()[0:1])
    assert_outputs(outputs, (21, 30))
    assert 0.5 < outputs["accumulation"].max() <= 1.0
    middle = outputs["depth"][10, 15].item()
    assert 2.0 < middle < 4.5


def test_a_mix_of_cameras_equals_each_by_itself(make_model, make_cameras):
    model = make_model(sh_degree_interval=0).eval()
    torch.nn.init.normal_(model.cloud.params["sh_rest"])
    cameras = make_cameras(3)
    whole = [model.get_outputs_for_camera(cameras[i : i + 1]) for i in range(3)]
    torch.manual_seed(1)
    pick = torch.stack([torch.randint(n, (50,)) for n in (3, 21, 30)], -1)
    rays = cameras.generate_rays(pick[:, :1], coords=pick[:, 1:] + 0.5)
    outputs = model.get_outputs(rays)
    assert_outputs(outputs, (50,))
    expected = torch.stack([whole[c]["rgb"][y, x] for c, y, x in pick.tolist()])
    torch.testing.assert_close(outputs["rgb"], expected, atol=1e-5, rtol=0)


def test_colours_of_parallel_rays_come_from_their_direction(make_model):
    model = make_model(sh_degree_interval=0).eval()
    torch.nn.init.normal_(model.cloud.params["sh_rest"])
    origins = torch.tensor([[0.1, 0.2, 50.0], [-0.3, 0.0, 50.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3)
    together = model.get_outputs(RayBundle(origins, directions, torch.ones(2, 1)))
    # From 1e4 away the view direction is the same to 1e-4.
    apart = [model.get_outputs(RayBundle(o[None], d[None], torch.ones(1, 1))) for o, d in zip(origins, directions)]  # noqa: B905
    torch.testing.assert_close(together["rgb"], torch.cat([a["rgb"] for a in apart]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("window", "shape"), [(0, (21, 30)), (11, (11, 11)), (25, (21, 25)), (None, (21, 30))])
def test_training_renders_a_window_of_the_image(make_model, make_cameras, window, shape):
    model = make_model(training_window=window).train()
    outputs = model.get_outputs(make_cameras()[0:1])
    assert_outputs(outputs, shape)
    top, left, height, width = outputs["window"].tolist()
    assert (height, width) == shape
    whole = model.eval().get_outputs_for_camera(make_cameras()[0:1])
    expected = whole["rgb"][top : top + height, left : left + width]
    torch.testing.assert_close(outputs["rgb"].detach(), expected, atol=1e-5, rtol=0)


def test_the_loss_sees_the_same_window(make_model, make_cameras):
    model = make_model(training_window=11).train()
    image = torch.rand(21, 30, 3)
    outputs = model.get_outputs(make_cameras()[0:1])
    top, left, _, _ = outputs["window"].tolist()
    outputs["rgb"] = image[top : top + 11, left : left + 11]
    assert model.get_loss_dict(outputs, {"image": image})["main_loss"].item() == pytest.approx(0.0, abs=1e-6)
    assert model.get_metrics_dict(outputs, {"image": image})["psnr"].item() == math.inf


def test_bytes_and_alpha_are_understood(make_model, make_cameras):
    model = make_model(background_color="black", training_window=0).train()
    outputs = model.get_outputs(make_cameras()[0:1])
    rgba = torch.randint(256, (21, 30, 4), dtype=torch.uint8)
    outputs["rgb"] = rgba[..., :3] / 255 * (rgba[..., 3:] / 255)
    assert model.get_loss_dict(outputs, {"image": rgba})["main_loss"].item() == pytest.approx(0.0, abs=1e-5)


def test_masked_pixels_do_not_count(make_model, make_cameras):
    model = make_model(training_window=0).train()
    outputs = model.get_outputs(make_cameras()[0:1])
    mask = torch.zeros(21, 30, 1, dtype=torch.bool)
    loss = model.get_loss_dict(outputs, {"image": torch.rand(21, 30, 3), "mask": mask})["main_loss"]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    assert not model.cloud.params["means"].grad.any()


def test_loss_is_the_mean_over_the_pixels_that_the_mask_keeps(make_model, make_cameras):
    model = make_model(training_window=0, ssim_lambda=0.0).train()
    outputs = model.get_outputs(make_cameras()[0:1])
    image, mask = outputs["rgb"].detach() + 0.25, torch.ones(21, 30, 1, dtype=torch.bool)
    assert model.get_loss_dict(outputs, {"image": image})["main_loss"].item() == pytest.approx(0.25)
    image[5:], mask[5:] = 7.0, False
    assert model.get_loss_dict(outputs, {"image": image, "mask": mask})["main_loss"].item() == pytest.approx(0.25)


def test_every_parameter_gets_a_gradient(make_model, make_cameras):
    model = make_model(sh_degree_interval=0, training_window=0).train()
    model.cloud.params["scales"].data += torch.tensor([0.0, 0.3, -0.3])  # a ball's rotation has no effect
    torch.nn.init.normal_(model.cloud.params["sg_amplitudes"])  # of a lobe without amplitude the rest has none
    outputs = model.get_outputs(make_cameras()[0:1])
    model.get_loss_dict(outputs, {"image": torch.rand(21, 30, 3)})["main_loss"].backward()
    for name, parameter in model.cloud.params.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_lengths_follow_the_scene(make_model, make_cameras):
    """The same scene ten times larger: the same image, depths ten times larger."""
    small, large = make_model(3.0).eval(), make_model(30.0).eval()
    torch.testing.assert_close(large.cloud.params["means"], small.cloud.params["means"] * 10)
    a = small.get_outputs_for_camera(make_cameras(radius=4.0)[0:1])
    b = large.get_outputs_for_camera(make_cameras(radius=40.0)[0:1])
    torch.testing.assert_close(b["rgb"], a["rgb"], atol=2e-4, rtol=0)
    torch.testing.assert_close(b["depth"], a["depth"] * 10, atol=1e-2, rtol=1e-3)


def test_blender_scenes_are_in_the_papers_units(make_model):
    settings = make_model(3.0, step_size=0.0025).cast_settings
    assert (settings.step, settings.density_threshold) == (pytest.approx(0.0025), pytest.approx(0.1))


def test_seed_points_are_where_it_starts(make_model):
    points, colors = torch.rand(40, 3), torch.randint(256, (40, 3), dtype=torch.uint8)
    model = make_model(seed_points=(points, colors)).eval()
    torch.testing.assert_close(model.cloud.params["means"].data, points)
    seen = view_colors(model._active_colors(), model.cloud.gaussians().means, torch.tensor([0.0, 0.0, 4.0]))
    torch.testing.assert_close(seen.detach(), colors / 255.0)
    assert len(make_model(seed_points=(points, colors), random_init=True).cloud) == 300


def test_crop_box(make_model, make_cameras):
    model = make_model().eval()
    camera = make_cameras()[0:1]
    box = OrientedBox(torch.eye(3), torch.zeros(3), torch.tensor([0.5, 0.5, 0.5]))
    cropped, whole = model.get_outputs_for_camera(camera, box), model.get_outputs_for_camera(camera)
    assert not cropped["accumulation"][0, 0].any()
    assert cropped["accumulation"].sum() < 0.5 * whole["accumulation"].sum()
    assert cropped["accumulation"][10, 15] > 0.01


def test_background_override_and_rgba(make_model, make_cameras):
    model = make_model().eval()
    camera = make_cameras()[0:1]
    white = model.get_outputs_for_camera(camera)
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        red = model.get_outputs_for_camera(camera)
    torch.testing.assert_close(red["background"][0, 0], torch.tensor([1.0, 0.0, 0.0]))
    for outputs in (white, red):
        rgba = model.get_rgba_image(outputs)
        over = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * outputs["background"]
        torch.testing.assert_close(over, outputs["rgb"], atol=1e-5, rtol=0)


def test_random_background_changes_only_in_training(make_model, make_cameras):
    model = make_model(background_color="random", training_window=0)
    camera = make_cameras()[0:1]
    colors = []
    for step in (0, 1, 2, 0):
        model.train().update_to_step(step)
        colors.append(tuple(model.get_outputs(camera)["background"][0, 0].tolist()))
    assert len(set(colors)) == 3
    assert colors[0] == colors[3]  # a matter of the step, so that a resumed run sees what an uninterrupted one does
    assert not model.eval().get_outputs_for_camera(camera)["background"].any()


def test_a_training_step_leaves_nothing_behind(make_model):
    """The hook that reports the gradient to density control must not keep the step's graph alive."""
    model = make_model(training_window=0).train()
    gaussians = model._watched(model.cloud.gaussians(), None)
    watched = weakref.ref(gaussians.means)
    (gaussians.means * 2.0).sum().backward()
    model.density_control.add_observed(Processes())
    torch.testing.assert_close(model.density_control.gradient_sum, torch.full((300,), 2.0 * math.sqrt(3.0)))
    del gaussians
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize(
    ("background", "alpha_color", "remedy"),
    [
        ("white", [1.0, 1.0, 1.0], None),
        ("black", [0.0, 0.0, 0.0], None),
        ("random", None, None),
        ("black", [1.0, 1.0, 1.0], "--alpha-color black"),
        ("random", [1.0, 1.0, 1.0], "--alpha-color None"),
        ("white", [0.0, 0.0, 0.0], "--alpha-color white"),
    ],
)
def test_images_over_another_background_are_refused(background, alpha_color, remedy):
    config = RayGaussModelConfig(background_color=background)
    color = None if alpha_color is None else torch.tensor(alpha_color)
    if remedy is None:
        check_background(config, color)
    else:
        with pytest.raises(UserError, match=remedy):
            check_background(config, color)


def test_eval_metrics_are_plain_floats(make_model, make_cameras):
    model = make_model().eval()
    camera = make_cameras(height=40, width=40)[0:1]
    outputs = model.get_outputs_for_camera(camera)
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": outputs["rgb"]})
    assert metrics["gaussian_count"] == 300.0
    assert metrics["ssim"] == pytest.approx(1.0, abs=1e-3)
    assert all(type(value) is float for value in metrics.values())
    assert images["img"].shape == (40, 120, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strategy", "clone"),
        ("grow_until", -1),
        ("num_downscales", -1),
        ("full_resolution_from", -1),
        ("step_size", 0.0),
        ("step_size", -1.0),
        ("density_threshold", 0.0),
        ("sample_offset", 1.0),
        ("transmittance_threshold", 1.0),
        ("samples_per_slab", 0),
        ("num_random", 0),
        ("initial_density", 0.05),
        ("initial_scale", 0.0),
        ("sh_degree", 3),
        ("training_window", 5),
        ("window_rule", "error"),
        ("densify_every", 0),
        ("num_lobes", -1),
        ("iso_weight", -1e-7),
        ("accumulate_images", 0),
        ("schedule_steps", -1),
        ("reorder_every", -1),
        ("step_growth", -0.1),
        ("transmittance_exponent", 1.5),
        ("max_step", 0.01),
        ("random_extent", 0.0),
    ],
)
def test_senseless_settings_end_in_a_sentence(make_model, field, value):
    with pytest.raises(UserError, match=rf"--pipeline\.model\.{field.replace('_', '-')} must be .*got {value}"):
        make_model(**{field: value})


def test_a_checkpoint_with_another_number_of_gaussians_loads(make_model, make_cameras):
    many, few = make_model(num_random=50).eval(), make_model(num_random=7).eval()
    few.load_state_dict(many.state_dict())
    assert len(few.cloud) == 50
    camera = make_cameras()[0:1]
    assert torch.equal(few.get_outputs_for_camera(camera)["rgb"], many.get_outputs_for_camera(camera)["rgb"])
    assert not any("lpips" in key for key in many.state_dict())


def test_a_state_that_contradicts_itself_is_refused(make_model):
    whole = make_model(num_random=50).state_dict()
    short = {f"density_control.{name}": torch.zeros(49) for name in ("gradient_sum", "times_seen")}
    with pytest.raises(UserError, match="has 50 Gaussians, and density control of 49"):
        make_model(num_random=50).load_state_dict(whole | short)
    with pytest.raises(RuntimeError, match="log_scale_floor"):
        make_model(num_random=50).load_state_dict(whole | {"density_control.log_scale_floor": torch.zeros(49)})


def test_rays_that_meet_nothing_see_the_background(make_model):
    model = make_model().eval()
    rays = RayBundle(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 1))
    outputs = model.get_outputs(rays)
    assert_outputs(outputs, (1,))
    assert outputs["rgb"].tolist() == [[1.0, 1.0, 1.0]]
    assert outputs["accumulation"].item() == 0.0


def test_no_rays_at_all(make_model):
    model = make_model().eval()
    outputs = model.get_outputs(RayBundle(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 1)))
    assert_outputs(outputs, (0,))


def test_unit_and_step_come_from_the_cameras_and_stay_with_the_checkpoint(make_model, make_cameras):
    inside, outside = make_cameras(count=5, radius=1.2), make_cameras(count=5, radius=4.0)
    captured = make_model(step_size=None, cameras=inside)
    assert captured.unit == pytest.approx(0.3)
    assert captured.cast_settings.step == pytest.approx(0.3 * 0.5 * 4.0 / 40.0)
    assert captured.cast_settings.density_threshold == pytest.approx(0.1 / 0.3)
    blender = make_model(step_size=None, cameras=outside)
    assert blender.unit == pytest.approx(1.0)
    blender.load_state_dict(captured.state_dict())
    assert (blender.unit, blender.cast_settings) == (captured.unit, captured.cast_settings)
    assert make_model(scene_unit=2.5, cameras=inside).unit == 2.5
    assert (captured.iso_weight, make_model(cameras=outside).iso_weight) == (2.5e-4, 2.5e-7)
    assert make_model(cameras=inside, iso_weight=0.0).iso_weight == 0.0


def test_a_capture_without_points_starts_where_its_cameras_look(make_model, make_cameras):
    means = make_model(cameras=make_cameras(count=16, radius=1.2), num_random=2000).cloud.params["means"]
    assert (means.abs().amax(-1) > 1.5).any(), "not confined to the box"
    assert make_model(cameras=make_cameras(radius=4.0)).cloud.params["means"].abs().max() <= 1.5


def test_a_capture_starts_where_its_points_leave_gaps_too(make_model, make_cameras):
    points, colors = torch.rand(40, 3) * 0.1 + torch.tensor([0.3, 0.3, 0.0]), torch.full((40, 3), 255)
    start = {"cameras": make_cameras(count=16, radius=1.2), "seed_points": (points, colors)}
    params = make_model(**start, gap_points=500).cloud.params
    assert len(params["means"]) == 40 + 500
    torch.testing.assert_close(params["means"].data[:40], points)
    assert torch.equal(params["sh_base"][40:], params["sh_base"][:1].expand(500, 3))
    assert len(make_model(**start, gap_points=0).cloud) == 40
    away = start | {"cameras": make_cameras(count=16, radius=4.0)}
    assert len(make_model(**away, gap_points=500).cloud) == 40


def texels(points, normals, half):
    """Rays through points against their normals, as nerfstudio's exporter of textured meshes makes them; [H, W, 3]."""
    length = torch.full_like(points[..., :1], 2 * half)
    return RayBundle(points + half * normals, -normals, length * 0 + 1, nears=length * 0, fars=length)


def test_texels_have_the_colour_that_is_seen_along_their_normals(make_model):
    """The same stretch of space, seen by one ray of a camera that stands further back."""
    model = make_model(num_random=60, near_plane=0.3).eval()
    torch.manual_seed(1)
    normals = torch.nn.functional.normalize(torch.randn(6, 5, 3), dim=-1)
    points = torch.rand(6, 5, 3) - 0.5
    rays = texels(points, normals, half=0.2)
    found = model.get_outputs_for_camera_ray_bundle(rays)
    assert found["rgb"].shape == (6, 5, 3)
    assert found["accumulation"].max() > 0.05
    assert model.get_rgba_image(found).shape == (6, 5, 4)
    for i, j in ((0, 0), (2, 3), (5, 4)):
        back = 50.0  # from where a Gaussian's colour is that of the direction
        alone = RayBundle(
            rays.origins[i, j][None] - back * rays.directions[i, j],
            rays.directions[i, j][None],
            rays.pixel_area[i, j][None],
            nears=rays.nears[i, j][None] + back,
            fars=rays.fars[i, j][None] + back,
        )
        wanted = model.get_outputs(alone)
        torch.testing.assert_close(found["accumulation"][i, j], wanted["accumulation"][0], atol=0.03, rtol=0)
        torch.testing.assert_close(found["rgb"][i, j], wanted["rgb"][0], atol=0.03, rtol=0)


def test_rgba_has_no_colour_that_a_byte_can_not_hold(make_model):
    """Colours of Gaussians are not bounded; exporters multiply by 255 and wrap around."""
    rgb = torch.tensor([[1.7, 0.5, -0.4], [0.9, 0.9, 0.9]])
    outputs = {"rgb": rgb, "accumulation": torch.tensor([[1.0], [0.2]]), "background": torch.ones(2, 3)}
    wanted = torch.tensor([[1.0, 0.5, 0.0, 1.0], [0.5, 0.5, 0.5, 0.2]])
    torch.testing.assert_close(make_model().get_rgba_image(outputs), wanted)


def test_small_images_are_averages_and_others_are_as_before(make_model, make_cameras):
    """Of the size that was trained on, and larger: bit for bit the same. The size is part of the checkpoint."""
    cameras = make_cameras(2, height=40, width=40)
    model = make_model(cameras=cameras, initial_scale=0.1, initial_density=30.0).eval()
    plain = make_model(cameras=cameras, initial_scale=0.1, initial_density=30.0, antialiased=False).eval()
    small = downscaled(cameras, 4)
    other = make_model(cameras=small, initial_scale=0.1, initial_density=30.0).eval()
    with torch.no_grad():
        whole = model(cameras[0:1])["rgb"]
        assert torch.equal(whole, plain(cameras[0:1])["rgb"])
        average = whole.view(10, 4, 10, 4, 3).mean((1, 3))
        errors = [float((m(small[0:1])["rgb"] - average).square().mean()) for m in (model, plain, other)]
        assert errors[0] < 0.4 * errors[1]
        assert errors[2] == errors[1]  # trained on small images, so it takes them as they are
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(small[0:1])["rgb"], model(small[0:1])["rgb"])
