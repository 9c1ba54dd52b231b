import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ns_support.lenses.bundle_adjustment import _FIRST_PIXELS, _FIRST_PRIOR, _Problem, _Rays, _Spread, adjusted_poses
from ns_support.lenses.features import Features, Matches, Pair
from ns_support.lenses.lens import LensType, make_lens

FOCAL, SIDE = 200.0, 400


def ring(count, radius=3.0):
    """[C, 3, 4] cameras on a ring that look at the origin."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        center = radius * np.array([np.cos(angle), np.sin(angle), 0.3])
        back = center / np.linalg.norm(center)
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, center], 1))
    return torch.from_numpy(np.stack(poses))


def photographed(poses, lens, points, noise=0.2, wrong=0.0, seed=0):
    """Matches between all neighbours of points [T, 3] that cameras see, `noise` pixels off, some of them wrong."""
    random = np.random.default_rng(seed)
    features, known = [], []
    for pose in poses:
        column, row, seen = lens.project((points - pose[:, 3]) @ pose[:, :3])
        pixels = torch.stack([column, row], 1)[seen] + torch.from_numpy(random.normal(0, noise, (int(seen.sum()), 2)))
        rays = lens.rays(pixels[:, 0], pixels[:, 1])
        features.append(Features(rays.origins, rays.directions, pixels, np.zeros((len(pixels), 0)), torch.zeros(0)))
        known.append({int(point): i for i, point in enumerate(seen.nonzero()[:, 0])})
    pairs = []
    for i in range(len(poses)):
        for j in range(i + 1, min(i + 4, len(poses))):
            both = sorted(known[i].keys() & known[j].keys())
            a, b = torch.tensor([known[i][p] for p in both]), torch.tensor([known[j][p] for p in both])
            if wrong:
                some = torch.from_numpy(random.choice(len(b), int(wrong * len(b)), replace=False))
                b[some] = b[some.roll(1)]
            pairs.append(Pair(i, j, a, b))
    return Matches(features, pairs)


def disturbed(poses, degrees, shift, seed=1):
    random = np.random.default_rng(seed)
    turns = random.normal(size=(len(poses), 3))
    turns *= degrees / np.linalg.norm(turns, axis=1, keepdims=True)
    moved = poses.clone()
    moved[:, :, :3] = poses[:, :, :3] @ torch.from_numpy(Rotation.from_rotvec(turns, degrees=True).as_matrix())
    moved[:, :, 3] += torch.from_numpy(random.normal(0, shift, (len(poses), 3)))
    return moved


def degrees_off(poses, others):
    """Mean angle between the relative turns of neighbouring cameras, which no motion of the whole changes."""
    relative = [p[1:, :, :3].mT @ p[:-1, :, :3] for p in (poses, others)]
    between = Rotation.from_matrix((relative[0].mT @ relative[1]).numpy())
    return float(np.degrees(between.magnitude()).mean())


LENSES = {
    "pinhole": make_lens(LensType.PERSPECTIVE, (FOCAL, FOCAL), (SIDE / 2, SIDE / 2), (SIDE, SIDE), ()),
    "distorted": make_lens(
        LensType.PERSPECTIVE, (FOCAL, FOCAL), (SIDE / 2, SIDE / 2), (SIDE, SIDE), (0.05, -0.02, 0, 0, 0.001, 0.002)
    ),
    "fisheye": make_lens(LensType.FISHEYE, (FOCAL, FOCAL), (SIDE / 2, SIDE / 2), (SIDE, SIDE), (0.02, 0, 0, 0, 0, 0)),
    "panorama": make_lens(LensType.EQUIRECTANGULAR, (2 * SIDE, SIDE), (SIDE, SIDE / 2), (2 * SIDE, SIDE), ()),
    "stereo": make_lens(LensType.VR180_L, (SIDE, SIDE), (SIDE / 2, SIDE / 2), (SIDE, SIDE), ()),
}
POINTS = 0.8 * torch.randn(150, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LENSES)
def test_disturbed_poses_come_back_whatever_the_lens(name):
    exact, lens = ring(12), LENSES[name]
    given = disturbed(exact, 0.5, 0.015)
    found = adjusted_poses(photographed(exact, lens, POINTS, wrong=0.1), given, [lens] * 12, unit=3.0)
    assert found.adjusted.all()
    assert found.evidence > 10
    assert found.errors[1] < 0.5 < found.errors[0]
    assert degrees_off(given, exact) > 0.6
    assert degrees_off(found.poses, exact) < 0.15 * degrees_off(given, exact)


def test_there_is_no_evidence_against_exact_poses():
    exact, lens = ring(12), LENSES["pinhole"]
    found = adjusted_poses(photographed(exact, lens, POINTS), exact, [lens] * 12, unit=3.0)
    assert found.evidence < 2


def test_cameras_without_features_stay_and_others_do_not_mind():
    exact, lens = ring(12), LENSES["pinhole"]
    given = disturbed(exact, 0.5, 0.015)
    matches = photographed(exact, lens, POINTS)
    matches = Matches(matches.features, [pair for pair in matches.pairs if 5 not in pair[:2]])
    found = adjusted_poses(matches, given, [lens] * 12, unit=3.0)
    assert found.adjusted.tolist() == [i != 5 for i in range(12)]
    assert torch.equal(found.poses[5], given[5])
    assert degrees_off(found.poses[6:], exact[6:]) < 0.2 * degrees_off(given[6:], exact[6:])


@pytest.mark.parametrize("cameras", [0, 1, 12])
def test_without_matches_nothing_moves(cameras):
    poses, lens = ring(12)[:cameras], LENSES["pinhole"]
    matches = photographed(poses, lens, POINTS)
    found = adjusted_poses(Matches(matches.features, []), poses, [lens] * cameras, unit=3.0)
    assert not found.adjusted.any()
    assert found.points == 0
    assert torch.equal(found.poses, poses)


@pytest.mark.parametrize("name", ["pinhole", "stereo"])
def test_derivatives_are_those_of_central_differences(name):
    lens = LENSES[name]
    exact = ring(5)
    rays = _Rays(photographed(exact, lens, POINTS[:40]), [lens] * 5)
    given = disturbed(exact, 0.5, 0.01).numpy()
    problem = _Problem(rays, rays.tracks(given, 1.0), given, 3.0, _Spread(_FIRST_PIXELS, *_FIRST_PRIOR))
    by_motion, by_point = problem._derivatives()
    poses, points, step = problem.poses, problem.points, 1e-6

    def changed(motion, shift):
        problem.points = points + shift
        turns = Rotation.from_rotvec(np.tile(motion[3:], (5, 1))).as_matrix()
        moved = poses[:, :, 3] + 3.0 * poses[:, :, :3] @ motion[:3]
        problem.poses = np.concatenate([poses[:, :, :3] @ turns, moved[:, :, None]], 2)
        return problem.residuals()

    for k in range(6):
        motion = step * np.eye(6)[k]
        expected = (changed(motion, 0) - changed(-motion, 0)) / (2 * step)
        np.testing.assert_allclose(by_motion[:, :, k], expected, rtol=1e-5, atol=1e-4)
    for k in range(3):
        shift = step * np.eye(3)[k]
        expected = (changed(np.zeros(6), shift) - changed(np.zeros(6), -shift)) / (2 * step)
        np.testing.assert_allclose(by_point[:, :, k], expected, rtol=1e-5, atol=1e-4)
