"""The methods inside nerfstudio, trained for a few steps on a scene of a few pixels."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.renderers import background_color_override_context

from hardmine_ns.marching import march_rays
from hardmine_ns.marching.hardness_map import strides
from hardmine_ns.method import instant_ngp_hardmine, instant_ngp_hardmine_bounded
from hardmine_ns.model import HardMineModel, HardMineModelConfig
from hardmine_ns.pipeline import AdaptiveRaysPipeline
from hardmine_ns.rendering.visibility import SampleCounts
from ns_support.errors import UserError

SIZE = 24
"""Pixels along an edge of the pictures of conftest.py."""


def small(spec, folder: Path, **model) -> TrainerConfig:
    """The method's own configuration with a smaller table, grid and batch."""
    config = copy.deepcopy(spec.config)
    config.pipeline.datamanager.data = folder
    config.pipeline.target_num_samples = 2048
    settings = {"log2_hashmap_size": 12, "max_res": 128, "grid_resolution": 32, "grid_cells_per_update": 4096}
    settings |= {"hidden_dim": 32, "render_step_size": 0.03, **model}
    for name, value in settings.items():
        assert hasattr(config.pipeline.model, name)
        setattr(config.pipeline.model, name, value)
    return config


class Run:
    """What nerfstudio's trainer does, without its files and its viewer."""

    def __init__(self, config: TrainerConfig):
        torch.manual_seed(0)
        self.config = config
        self.pipeline: AdaptiveRaysPipeline = config.pipeline.setup(device="cpu", test_mode="val")
        self.optimizers = Optimizers(copy.deepcopy(config.optimizers), self.pipeline.get_param_groups())
        self.pipeline.train()
        self.step = 0

    @property
    def model(self) -> HardMineModel:
        return self.pipeline.model

    def train(self, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        losses = []
        for _ in range(steps):
            self.model.update_grid(self.step)
            self.optimizers.zero_grad_all()
            _, loss, metrics = self.pipeline.get_train_loss_dict(self.step)
            loss["rgb_loss"].backward()
            self.optimizers.optimizer_step_all()
            losses.append(loss["rgb_loss"].item())
            self.step += 1
        return losses, metrics


@pytest.mark.parametrize(
    "rule", ["poisson", "off", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("multinomial", "topk"))]
)
def test_training_lowers_the_loss(ball, rule):
    run = Run(small(instant_ngp_hardmine_bounded, ball, mining_rule=rule))
    losses, metrics = run.train(60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    assert {"psnr", "num_samples_per_batch", "mining_fraction", "mining_tau", "num_rays_per_batch"} <= set(metrics)
    mined = run.model.mining.statistics
    assert mined.rows == run.model.sample_counts.visible
    assert mined.fraction == (1 if rule == "off" else pytest.approx(1 / mined.tau if mined.tau > 2 else 0.5, abs=0.1))


@pytest.mark.parametrize("rule", ["poisson", "systematic"])
def test_training_with_separate_heads(ball, rule):
    run = Run(small(instant_ngp_hardmine_bounded, ball, mining_rule=rule, mining_heads="separate"))
    losses, _ = run.train(60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    mined = run.model.mining.statistics
    assert mined.fraction == pytest.approx(min(1 / mined.tau, 0.5), abs=0.1)


@pytest.mark.parametrize("settings", [{}, {"mining_rule": "off"}, {"hash_backend": "reference", "merge_most": 4}])
def test_training_with_strides_by_hardness(ball, settings):
    run = Run(small(instant_ngp_hardmine_bounded, ball, merge_by="hardness", **settings))
    losses, _ = run.train(60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    run.model.update_grid(run.step)  # takes over what the last step has found
    hardness, mean = run.model.hardness_map.known
    assert mean > 0
    known = hardness >= 0
    assert known.sum() > 1000
    found = strides(hardness[known], mean, run.model.config.merge_most)
    assert found.min() == 1 < found.max() == run.model.config.merge_most
    # What begins to be the surface, on which the rays depend, is harder than the space around it.
    thickness = run.model.grid.thickness
    thick = thickness > thickness[known].quantile(0.9)
    assert hardness[known & thick].mean() > 1.5 * hardness[known & ~thick].mean()


def test_the_map_of_hardness_is_in_checkpoints_and_need_not_be(ball):
    run, plain = (Run(small(instant_ngp_hardmine_bounded, ball, merge_by=by)) for by in ("hardness", "thickness"))
    run.train(8)
    state, other = run.pipeline.state_dict(), Run(run.config)
    assert not any("hardness_map" in name for name in plain.pipeline.state_dict())
    other.pipeline.load_pipeline(state, 7)
    assert torch.equal(other.model.hardness_map.values, run.model.hardness_map.values)
    assert other.model.hardness_map.mean == run.model.hardness_map.mean > 0
    plain.pipeline.load_pipeline(state, 7)
    new = Run(run.config)
    new.pipeline.load_pipeline(plain.pipeline.state_dict(), 7)  # of an earlier version
    assert (new.model.hardness_map.values == -1).all()


def test_no_training_by_hardness_on_a_gpu():
    config = HardMineModelConfig(merge_by="hardness", merge_most=8)
    config.check()
    config.check_training("cpu")
    with pytest.raises(UserError, match="merge-by must be thickness unless a CPU trains, got hardness"):
        config.check_training("cuda")


def test_evaluation_outputs(ball):
    run = Run(small(instant_ngp_hardmine_bounded, ball))
    run.train(20)
    run.pipeline.eval()
    camera, batch = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    outputs = run.model.get_outputs_for_camera(camera)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "rgb": (SIZE, SIZE, 3),
        "accumulation": (SIZE, SIZE, 1),
        "depth": (SIZE, SIZE, 1),
        "normals": (SIZE, SIZE, 3),
        "density_slice": (SIZE, SIZE, 1),
    }
    assert all(x.dtype == torch.float32 and torch.isfinite(x).all() and not x.requires_grad for x in outputs.values())
    metrics, images = run.model.get_image_metrics_and_images(outputs, batch)
    assert metrics["psnr"] > 8
    assert all(isinstance(value, float) for value in metrics.values())
    assert images["img"].shape == (SIZE, 3 * SIZE, 3)
    assert run.model.get_rgba_image(outputs).shape == (SIZE, SIZE, 4)
    run.pipeline.get_eval_loss_dict(0)


def test_hash_backend_that_the_device_does_not_run_is_refused_at_once():
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    for backend, device in (("cpu", "cuda:0"), ("cpu", "mps")):
        config = HardMineModelConfig(hash_backend=backend, log2_hashmap_size=8, grid_levels=1, grid_resolution=8)
        with pytest.raises(UserError, match=f"hash-backend {backend} does not run on the device {device}; use"):
            config.setup(scene_box=box, num_train_data=1, metadata={}, device=device)


def test_evaluation_does_not_depend_on_its_chunks(ball, monkeypatch):
    run = Run(small(instant_ngp_hardmine_bounded, ball))
    run.train(10)
    run.pipeline.eval()
    camera, _ = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    whole = run.model.get_outputs_for_camera(camera)
    monkeypatch.setattr("hardmine_ns.model._SAMPLES_AT_ONCE", 500)
    monkeypatch.setattr("hardmine_ns.model._RAYS_AT_ONCE", 70)
    marched = []

    def noting(origins, *args, **kwargs):
        marched.append(len(origins))
        return march_rays(origins, *args, **kwargs)

    monkeypatch.setattr("hardmine_ns.model.march_rays", noting)
    run.model.config.eval_num_rays_per_chunk = 100
    pieces = run.model.get_outputs_for_camera(camera)
    for name in whole:
        assert torch.allclose(whole[name], pieces[name], atol=1e-5)
    assert max(marched) == 70  # although 100 rays are rendered at a time, and four times as many for the normals


def test_checkpoint_restores_everything(ball, tmp_path):
    config = small(instant_ngp_hardmine_bounded, ball)
    run = Run(config)
    run.train(20)
    state = {"pipeline": run.pipeline.state_dict(), "optimizers": run.optimizers.optimizers["fields"].state_dict()}
    torch.save(state, tmp_path / "x.ckpt")
    loaded = torch.load(tmp_path / "x.ckpt")  # with weights_only, torch's default
    assert not any("lpips" in name for name in loaded["pipeline"])
    other = Run(config)
    other.pipeline.load_pipeline(loaded["pipeline"], 19)
    other.optimizers.load_optimizers({"fields": loaded["optimizers"]})
    assert other.model.mining.tau == run.model.mining.tau > 1
    assert torch.equal(other.model.grid.binaries, run.model.grid.binaries)
    for run_ in (run, other):
        run_.pipeline.eval()
    camera, _ = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    assert torch.equal(
        run.model.get_outputs_for_camera(camera)["rgb"], other.model.get_outputs_for_camera(camera)["rgb"]
    )
    other.pipeline.train()
    other.train(2)


def test_mixed_precision(ball):
    run = Run(small(instant_ngp_hardmine_bounded, ball))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run.model.update_grid(0)
        _, loss, _ = run.pipeline.get_train_loss_dict(0)
    assert loss["rgb_loss"].dtype == torch.float32
    loss["rgb_loss"].backward()
    assert all(p.grad.dtype == torch.float32 for p in run.model.field.parameters())


def test_unbounded_method(photos):
    config = small(instant_ngp_hardmine, photos(8))
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    run = Run(config)
    losses, _ = run.train(40)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert run.model.grid.levels == 4


def test_contraction_fits_all_of_space_into_the_cube(ball):
    model = Run(small(instant_ngp_hardmine_bounded, ball, disable_scene_contraction=False)).model
    far = torch.tensor([[1e6, 0.0, 0.0], [-3.0, 5.0, 1e3], [0.0, 0.0, 0.0], [1.5, -1.5, 1.5], [3.0, 0.0, 0.0]])
    unit = model.to_unit(far)
    assert ((unit >= 0) & (unit <= 1)).all()
    assert unit[2].tolist() == [0.5] * 3
    assert unit[3].tolist() == pytest.approx([0.75, 0.25, 0.75])  # a corner of the scene box
    assert unit[4].tolist() == pytest.approx([0.875, 0.5, 0.5])  # m = 2: (2 - 1/2) / 4 + 1/2


def test_one_image(photos):
    config = small(instant_ngp_hardmine, photos(1))
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(auto_scale_poses=False)
    run = Run(config)
    run.train(3)
    with pytest.raises(UserError, match="no image to evaluate on"):
        run.pipeline.get_average_eval_image_metrics()


def test_blank_scene_empties_its_grid_and_trains_on(blank):
    """Nothing but background: the grid has no reason to keep any cell."""
    run = Run(small(instant_ngp_hardmine_bounded, blank))
    losses, _ = run.train(80)
    assert losses[-1] < 0.01


@pytest.mark.parametrize("rule", ["poisson", "off"])
def test_batch_without_a_visible_sample(ball, rule):
    run = Run(small(instant_ngp_hardmine_bounded, ball, mining_rule=rule))
    run.model.grid.binaries.zero_()
    run.step = 1  # no update before the step
    before = [p.detach().clone() for p in run.model.field.parameters()]
    run.train(1)
    assert run.model.sample_counts == SampleCounts(0, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.field.parameters(), strict=True))
    run.pipeline.eval()
    camera, _ = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    outputs = run.model.get_outputs_for_camera(camera)
    assert (outputs["rgb"] == 1).all()  # the white background
    assert (outputs["depth"] == 0).all()


def test_masks_that_hide_everything_are_named(photos):
    config = small(instant_ngp_hardmine, photos(8, mask=0))
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    with pytest.raises(UserError, match=r"masks hide every pixel of all images .*mask_0\.png"):
        Run(config)


def test_appearance_flag_means_what_it_says(ball):
    assert Run(small(instant_ngp_hardmine_bounded, ball)).model.field.appearance is None
    run = Run(small(instant_ngp_hardmine_bounded, ball, use_appearance_embedding=True))
    assert run.model.field.appearance.weight.shape[0] == 6
    before = run.model.field.appearance.weight.detach().clone()
    run.train(3)
    assert not torch.equal(before, run.model.field.appearance.weight)
    run.pipeline.eval()
    camera, _ = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    run.model.get_outputs_for_camera(camera)


def test_background(ball):
    run = Run(small(instant_ngp_hardmine_bounded, ball, background_color="random"))
    run.train(2)
    run.pipeline.eval()
    run.model.grid.binaries.zero_()
    camera, _ = next(iter(run.pipeline.datamanager.fixed_indices_eval_dataloader))
    assert (run.model.get_outputs_for_camera(camera)["rgb"] == 0).all()
    with background_color_override_context(torch.tensor([0.25, 0.5, 0.75])):
        assert run.model.get_outputs_for_camera(camera)["rgb"][0, 0].tolist() == [0.25, 0.5, 0.75]


def test_crop_arrives_as_near_and_far(ball):
    model = Run(small(instant_ngp_hardmine_bounded, ball)).model.eval()
    bundle = RayBundle(
        origins=torch.tensor([[0.0, 0.0, 4.0]]),
        directions=torch.tensor([[0.0, 0.0, -1.0]]),
        pixel_area=torch.ones(1, 1),
        nears=torch.tensor([[3.0]]),
        fars=torch.tensor([[3.5]]),
    )
    with torch.no_grad():
        _, samples = model._march(bundle)
    assert samples.midpoints.min() >= 3.0
    assert samples.midpoints.max() <= 3.5


@pytest.mark.parametrize("color", ["white", "black", "random"])
def test_rgba_is_the_picture_without_its_background(ball, color):
    """nerfstudio's own holds every ray before a background of one colour for opaque: clouds of points in thin air."""
    model = Run(small(instant_ngp_hardmine_bounded, ball, background_color=color)).model.eval()
    alpha, plain = torch.rand(4, 5, 1), torch.rand(4, 5, 3)
    alpha[0] = 0.0
    outputs = {"rgb": plain * alpha + (1 - alpha) * float(color == "white"), "accumulation": alpha}
    rgba = model.get_rgba_image(outputs)
    torch.testing.assert_close(rgba[1:], torch.cat([plain, alpha], -1)[1:], atol=1e-4, rtol=0)
    assert not rgba[0].any()


def test_rays_of_texels_are_not_cut_by_the_near_plane(ball):
    """A stretch of a ray shorter than the distance of the near plane looks as the same stretch of a ray from afar."""
    run = Run(small(instant_ngp_hardmine_bounded, ball, near_plane=0.4))
    run.train(30)
    model = run.model.eval()
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4, 5, 3), dim=-1)
    origins, area = -0.7 * directions + 0.1 * torch.randn(4, 5, 3), torch.ones(4, 5, 1)
    short = RayBundle(origins, directions, area, nears=0 * area, fars=0.3 * area)
    found = model.get_outputs_for_camera_ray_bundle(short)
    far = RayBundle((origins - 2 * directions).view(-1, 3), directions.view(-1, 3), area.view(-1, 1))
    far.nears, far.fars = torch.full((20, 1), 2.0), torch.full((20, 1), 2.3)
    wanted = model.get_outputs(far)
    assert found["accumulation"].max() > 0.03
    # The grid of steps begins elsewhere: the same within a step.
    torch.testing.assert_close(found["accumulation"].view(-1, 1), wanted["accumulation"], atol=0.02, rtol=0.2)


def test_depth_of_what_is_empty_is_the_largest_of_the_image(ball):
    run = Run(small(instant_ngp_hardmine_bounded, ball))
    run.train(60)
    run.pipeline.eval()
    camera, _ = run.pipeline.datamanager.next_eval_image(0)
    run.model.grid.binaries[:, :, : run.model.grid.binaries.shape[2] // 2] = False
    outputs = run.model.get_outputs_for_camera(camera)
    seen = outputs["accumulation"] > 1e-3
    assert seen.any()
    assert (~seen).any()
    assert (outputs["depth"][~seen] == outputs["depth"][seen].max()).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mining_min_fraction": 0.9}, "mining fractions"),
        ({"mining_rule": "best"}, "mining rule"),
        ({"mining_rule": "topk", "mining_heads": "separate"}, "separate mining heads the mining rule must .* 'topk'"),
        ({"grid_resolution": 30, "grid_levels": 2}, "grid-resolution must be a multiple of 4 .*, got 30"),
        ({"grid_resolution": 0}, "grid-resolution must be at least 1, got 0"),
        ({"grid_levels": 9}, "grid-levels must be 1 to 8, got 9"),
        ({"num_levels": 0}, "num-levels must be at least 1, got 0"),
        ({"log2_hashmap_size": 31}, "log2-hashmap-size must be 3 to 30, got 31"),
        ({"max_res": 8}, "max-res must be at least base-res, 16, got 8"),
        ({"merge_by": "hardness", "merge_most": 1}, "merge-by must be thickness with merge-most 1, got hardness"),
        ({"merge_by": "size"}, "merge-by must be thickness or hardness, got size"),
        ({"near_plane": -1.0}, "near-plane must be at least 0, got -1"),
        ({"near_plane": 5.0, "far_plane": 1.0}, "far-plane must be more than near-plane, 5.0, got 1.0"),
        ({"alpha_thre": 2.0}, r"alpha-thre must be in \[0, 1\), got 2.0"),
        ({"early_stop_eps": 1.0}, r"early-stop-eps must be in \[0, 1\), got 1.0"),
        ({"render_step_size": -1.0}, "render-step-size must be more than 0, got -1"),
        ({"cone_angle": -1.0}, "cone-angle must be at least 0, got -1"),
        ({"grid_update_every": 0}, "grid-update-every must be at least 1, got 0"),
        ({"grid_cells_per_update": 0}, "grid-cells-per-update must be at least 1, got 0"),
        ({"grid_warmup_steps": -1}, "grid-warmup-steps must be at least 0, got -1"),
        ({"eval_num_rays_per_chunk": 0}, "eval-num-rays-per-chunk must be at least 1, got 0"),
        ({"render_step_size": None, "steps_per_diagonal": 0}, "steps-per-diagonal must be at least 1, got 0"),
        ({"hash_backend": "tcnn"}, "tiny-cuda-nn"),
    ],
)
def test_bad_settings_end_in_a_sentence(ball, setting, message):
    with pytest.raises(UserError, match=message):
        Run(small(instant_ngp_hardmine_bounded, ball, **setting))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_num_rays": 0}, "min-num-rays must be at least 1, got 0"),
        ({"max_num_rays": 63}, "max-num-rays must be at least min-num-rays, 64, got 63"),
        ({"target_num_samples": 0}, "target-num-samples must be at least 1, got 0"),
        ({"max_searched_ratio": 0.0}, "max-searched-ratio must be more than 0, got 0"),
    ],
)
def test_bad_ray_limits_end_in_a_sentence(ball, settings, message):
    config = small(instant_ngp_hardmine_bounded, ball)
    for name, value in settings.items():
        setattr(config.pipeline, name, value)
    with pytest.raises(UserError, match=message):
        Run(config)


@pytest.mark.parametrize("spec", [instant_ngp_hardmine, instant_ngp_hardmine_bounded])
def test_configuration_survives_yaml(spec):
    again = yaml.load(yaml.dump(spec.config), Loader=yaml.Loader)
    assert again == spec.config
    assert again.method_name in ("instant-ngp-hardmine", "instant-ngp-hardmine-bounded")
    assert again.machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")
