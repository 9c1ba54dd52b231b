"""Poses that are fitted to features before a training, and what both methods make of them."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from scipy.spatial.transform import Rotation
from small_runs import begin, both, configure
from small_scenes import write_disc

from ns_support.corrections import matching
from ns_support.corrections.matching import FITTED_POSES, fitted_poses
from ns_support.corrections.poses import PoseRefinementConfig, without_shared_motion
from ns_support.lenses.bundle_adjustment import Adjustment
from ns_support.lenses.features import Matches
from ns_support.rays import camera_extent

COUNT = 6


@pytest.fixture
def cameras():
    poses = torch.eye(4)[:3].repeat(COUNT, 1, 1)
    poses[:, :, 3] = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0))
    return Cameras(poses, 30.0, 30.0, 8.0, 6.0, 16, 12, camera_type=CameraType.PERSPECTIVE)


def fit(monkeypatch, cameras, capsys, adjusted=COUNT, evidence=50.0, shift=0.1):
    poses = cameras.camera_to_worlds.double().clone()
    poses[0, 0, 3] += shift
    found = Adjustment(poses, torch.arange(COUNT) < adjusted, 1234, (2.5, 0.25), evidence)
    monkeypatch.setattr(matching, "adjusted_poses", lambda *_: found)
    fitted = fitted_poses(cameras, Matches([], []))
    return fitted, " ".join(capsys.readouterr().out.split())


def test_poses_that_fit_better_are_taken_without_what_all_share(monkeypatch, cameras, capsys):
    fitted, said = fit(monkeypatch, cameras, capsys)
    assert "fitted to 1,234 points that photographs share, 2.50 pixels off before and 0.25 after" in said
    given = cameras.camera_to_worlds
    shifts = fitted[:, :, 3] - given[:, :, 3]
    turns = Rotation.from_matrix(fitted[:, :, :3].numpy()).as_rotvec()
    assert shifts[0, 0] > 0.02
    unit = camera_extent(cameras)
    changes = torch.cat([shifts / unit, torch.from_numpy(turns).to(shifts)], 1)
    torch.testing.assert_close(without_shared_motion(changes, given, unit), changes, rtol=0, atol=1e-3)


def test_poses_that_fit_already_stay(monkeypatch, cameras, capsys):
    fitted, said = fit(monkeypatch, cameras, capsys, evidence=1.4)
    assert fitted is None
    assert "fit them as they are" in said


def test_poses_that_features_say_little_of_stay(monkeypatch, cameras, capsys):
    fitted, said = fit(monkeypatch, cameras, capsys, adjusted=2)
    assert fitted is None
    assert "too few features match between photographs to fit them (33 % have enough)" in said


@both
@pytest.mark.parametrize("mode", ["SO3xR3", "SE3", "off"])
def test_a_training_begins_at_the_fitted_poses_and_a_resumed_one_where_it_was(method, mode, tmp_path, monkeypatch):
    scene = write_disc(tmp_path / "scene", 24, turning=True)
    looked = []

    def moved(cameras, matches):
        looked.append(len(matches.features))
        poses = cameras.camera_to_worlds.clone()
        poses[0, 0, 3] += 0.3
        return poses

    # Both datamanagers have the function by name.
    for module in ("ns_support.full_images", "hardmine_ns.data"):
        monkeypatch.setattr(f"{module}.fitted_poses", moved)
    config = configure(method, scene, tmp_path / "run", 2)
    config.pipeline.model.camera_optimizer = PoseRefinementConfig(mode=mode, refine_from=0.9)
    trainer = begin(config)
    cameras = trainer.pipeline.datamanager.train_dataset.cameras
    if mode == "off":
        assert not looked
        assert FITTED_POSES not in trainer.pipeline.datamanager.train_dataset.metadata
        return
    assert looked == [len(cameras)]
    refined = trainer.pipeline.model.camera_optimizer.apply_to_cameras()
    shifts = (refined - cameras.camera_to_worlds)[:, :, 3].norm(dim=1)
    assert shifts.argmax() == 0
    assert shifts[0] > 0.1
    more = configure(method, scene, tmp_path / "more", 1)
    more.pipeline.model.camera_optimizer = PoseRefinementConfig(mode=mode, refine_from=0.9)
    more.load_dir = trainer.checkpoint_dir
    resumed = begin(more).pipeline.model.camera_optimizer.apply_to_cameras()
    assert len(looked) == 1
    torch.testing.assert_close(resumed, refined, rtol=0, atol=0.15)  # one step; anew, it were 0.3
