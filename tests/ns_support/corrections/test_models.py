"""Corrections within both methods, in trainings of a few steps."""

import pytest
import torch
from nerfstudio.exporter.exporter_utils import collect_camera_poses
from small_runs import begin, both, configure
from small_scenes import write_disc

from hardmine_ns.method import instant_ngp_hardmine, instant_ngp_hardmine_bounded
from ns_support.corrections import poses
from ns_support.corrections.poses import PoseRefinementConfig
from raygauss_ns.method import raygauss


def test_exposures_are_looked_at_by_default_as_the_page_says():
    """docs/corrections.md; measured on lego_200 and fox_270."""
    modes = [
        one.config.pipeline.model.exposure for one in (raygauss, instant_ngp_hardmine, instant_ngp_hardmine_bounded)
    ]
    assert modes == ["auto", "auto", "off"]


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene"), 24, turning=True)


def corrected(method, scene, output, steps=12, mode="SO3xR3"):
    config = configure(method, scene, output, steps)
    model = config.pipeline.model
    model.camera_optimizer, model.exposure, model.ignore_moving = PoseRefinementConfig(mode=mode), "on", True
    return config


@both
@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_poses_and_exposures_are_trained_and_scored(method, mode, disc, tmp_path, monkeypatch):
    monkeypatch.setattr(poses, "_ALIGNMENT_EVALUATIONS", 3)  # how well they are aligned is for other tests
    trainer = begin(corrected(method, disc, tmp_path, mode=mode))
    model, pipeline = trainer.pipeline.model, trainer.pipeline
    assert bool(model.camera_optimizer.pose_adjustment.any())
    assert bool(model.exposure.adjustments.any())
    assert float(model.moving.errors.max()) > 0
    pipeline.eval()
    metrics = pipeline.get_average_eval_image_metrics(get_std=True)
    for name in ("psnr", "cc_psnr", "aligned_psnr", "aligned_cc_psnr", "aligned_psnr_std"):
        assert metrics[name] >= 0, name
    given = pipeline.datamanager.train_dataset.cameras.camera_to_worlds
    exported = torch.tensor([frame["transform"] for frame in collect_camera_poses(pipeline)[0]])
    assert exported.shape == given.shape
    assert not torch.equal(exported, given)
    torch.testing.assert_close(exported, given, rtol=0, atol=0.25)
    asked = []
    monkeypatch.setattr(model, "aligned", lambda camera, batch: asked.append(camera) or given_cameras[0:1])
    given_cameras = pipeline.datamanager.train_dataset.cameras
    elsewhere = pipeline.get_average_eval_image_metrics()
    assert elsewhere["psnr"] == pytest.approx(metrics["psnr"], abs=1e-4)
    assert elsewhere["aligned_psnr"] != metrics["aligned_psnr"]
    assert len(asked) == len(pipeline.datamanager.eval_dataset)


@both
def test_a_checkpoint_without_corrections_loads_and_stays_uncorrected(method, disc, tmp_path):
    plain = configure(method, disc, tmp_path / "a", 4)
    plain.pipeline.model.exposure = "off"
    first = begin(plain)
    more = configure(method, disc, tmp_path / "b", 3)
    more.pipeline.model.exposure = "auto"
    more.load_dir = first.checkpoint_dir
    resumed = begin(more).pipeline.model
    assert not resumed.exposure.corrects
    assert not resumed.exposure.adjustments.any()


@both
def test_what_belongs_to_photographs_begins_anew_on_others(method, disc, tmp_path):
    first = begin(corrected(method, disc, tmp_path / "a", 6))
    before = first.pipeline.model.per_photograph()
    rows = {"exposure.adjustments", "camera_optimizer.pose_adjustment", "moving.errors", "moving.moved"}
    assert set(before) == rows | {"exposure.curvature", "camera_optimizer.curvature"}
    fewer = write_disc(tmp_path / "fewer", 24, views=3)
    config = corrected(method, fewer, tmp_path / "b", 1)
    config.load_dir, config.resume_on_other_data = first.checkpoint_dir, True
    resumed = begin(config)
    for name, value in resumed.pipeline.model.per_photograph().items():
        assert len(before[name]) / 4 == len(value) / 3, name
    for group in ("exposure", "camera_opt"):
        (state,) = resumed.optimizers.optimizers[group].state.values()
        assert state["visits"].max() == 1, group


@both
def test_a_scene_can_be_looked_at_when_photographs_are_gone(method, disc, tmp_path):
    first = begin(corrected(method, disc, tmp_path / "a", 6)).pipeline.model
    fewer = write_disc(tmp_path / "fewer", 24, views=3)
    other = begin(corrected(method, fewer, tmp_path / "b", 1)).pipeline.model
    other.load_state_dict(first.state_dict())
    for name, value in first.per_photograph().items():
        assert torch.equal(other.per_photograph()[name], value), name
    assert torch.equal(other.exposure.mean_map()[0], first.exposure.mean_map()[0])


@both
def test_a_state_of_two_numbers_of_photographs_is_refused(method, disc, tmp_path):
    model = begin(corrected(method, disc, tmp_path, 2)).pipeline.model
    whole = model.state_dict()
    for name, value in model.per_photograph().items():
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            model.load_state_dict(whole | {name: value[:-1].clone()})
    name = "exposure.curvature"
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        model.load_state_dict(whole | {name: whole[name][..., :-1].clone()})


@both
def test_a_photograph_looks_as_it_was_taken(method, disc, tmp_path, monkeypatch):
    model = begin(corrected(method, disc, tmp_path, 2)).pipeline.model.eval()
    with torch.no_grad():
        model.exposure.adjustments.zero_()
        model.exposure.adjustments[1, :, :3] = -0.5 * torch.eye(3)
    camera = model.kwargs["metadata"]["train_cameras"][0:1]
    mean = model.get_outputs_for_camera(camera)
    monkeypatch.setattr("ns_support.corrections.model.viewer_asks", lambda: True)
    model.look.slider.value = 2
    second = model.get_outputs_for_camera(camera)
    behind = (1 - mean["accumulation"]) * model.get_outputs(camera)["background"] if method == "raygauss" else 0
    count = len(model.exposure.adjustments)
    scene = (mean["rgb"] - behind) / (1 - 0.5 / count)
    torch.testing.assert_close(second["rgb"] - behind, scene * 0.5, rtol=0, atol=2e-3)


@both
def test_clipped_pixels_do_not_pull_at_exposed_colours(method, disc, tmp_path):
    model = begin(corrected(method, disc, tmp_path, 2)).pipeline.model.train()
    model.before_corrected_step(1.0)
    rgb = torch.full((12, 12, 3) if method == "raygauss" else (144, 3), 1.3, requires_grad=True)
    indices = torch.stack([torch.zeros(144), torch.arange(144) // 12, torch.arange(144) % 12], 1).long()
    batch = {"image": torch.ones_like(rgb), "indices": indices, "image_idx": 0}
    outputs = {"rgb": rgb, "accumulation": torch.ones_like(rgb[..., :1]), "background": torch.zeros_like(rgb)}
    model.exposure(rgb.detach().flatten(0, -2), torch.ones(144, 1), 0 if method == "raygauss" else indices[:, 0])
    name = {"raygauss": "main_loss"}.get(method, "rgb_loss")
    assert float(model.get_loss_dict(outputs, batch)[name].detach()) == pytest.approx(0.0, abs=1e-6)
    batch["image"] = batch["image"] * 0.9
    assert float(model.get_loss_dict(outputs, batch)[name].detach()) > 0.01


def test_hidden_pixels_have_no_part_in_the_curvature(disc, tmp_path):
    """Half of a crop behind a mask is as if the crop had ended there."""
    model = begin(corrected("raygauss", disc, tmp_path, 2)).pipeline.model.train()
    model.before_corrected_step(1.0)
    draw = torch.Generator().manual_seed(0)
    residuals, changes = torch.rand(8, 6, 3, generator=draw), torch.rand(8, 6, 3, 6, generator=draw)
    colors, mask = torch.rand(48, 3, generator=draw), torch.zeros(8, 6, 1, dtype=torch.bool)
    mask[:4] = True

    def curvature(rows, mask):
        model.zero_grad()
        model.exposure(colors[: 6 * rows], torch.ones(6 * rows, 1), 0)
        sum(model.correction_curvature(0, residuals[:rows], mask, changes[:rows], 0.8).values()).backward()
        return model.exposure.curvature.grad.clone(), model.camera_optimizer.curvature.grad.clone()

    torch.testing.assert_close(curvature(8, mask), curvature(4, None))
