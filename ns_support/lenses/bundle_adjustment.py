"""Bundle adjustment: poses of cameras that fit features which match between their images, and the poses as given.

Given poses are taken for measurements too: without them, cameras that few features hold would drift away, and the
whole would be free to move. COLMAP's adjustment knows no such priors on rotations, nor this package's lenses. A feature
counts by its ray, so that all lenses are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation
from torch import Tensor

from ns_support.lenses.features import Matches
from ns_support.lenses.lens import Lens

_FEWEST_FEATURES = 15
"""A camera with fewer features in tracks keeps its pose."""
_MOST_TRACKS = 20_000
"""Of more, the longest are used."""
_MIN_PARALLAX = 1.5
"""Largest angle between two rays of a track, below which its point is too uncertain (degrees)."""
_FIRST_ERROR, _LATER_ERROR = 1.5, 2.0
"""Distance of matching rays from their epipolar planes above which a match is wrong: with the poses as given (degrees),
and with those of the first adjustment (pixels)."""
_FIRST_PRIOR = (0.02, np.radians(1.0))
"""Standard deviations of the given poses at first: of shifts (the cameras' extent) and of turns (radians)."""
_FIRST_PIXELS = 1.0
"""Standard deviation of features at first (pixels)."""
_LEAST = 1e-4
"""Least standard deviation of anything (pixels, the cameras' extent, radians)."""
_DENSE = 3000
"""Largest number of unknowns of all cameras that is solved for as a dense system."""
_ITERATIONS = 30
"""Most steps of Levenberg's and Marquardt's method."""
_SETTLED = 1e-5
"""Relative change of the loss at which it ends."""

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Adjustment(NamedTuple):
    """What bundle adjustment found for C cameras.

    Attributes:
        poses: [C, 3, 4] camera to world, float64; of cameras that were not adjusted, as given.
        adjusted: [C] bool, which cameras have enough features.
        points: number of points.
        errors: median reprojection errors (pixels), with the given poses and with the adjusted ones, each with the
            points where they fit best.
        evidence: by how much the adjusted poses fit better, relative to what adjusting would gain by chance: the
            statistic of an F-test. About 1 if the given poses were exact.
    """

    poses: Tensor
    adjusted: Tensor
    points: int
    errors: tuple[float, float]
    evidence: float


class _Tracks(NamedTuple):
    """T points that several images show, with O observations in order of their tracks.

    Attributes:
        of_track: [O] track of each observation.
        of_camera: [O] its camera.
        feature: [O] its feature, of all features of all cameras.
        points: [T, 3].
    """

    of_track: Indices
    of_camera: Indices
    feature: Indices
    points: Array


class _Spread(NamedTuple):
    """Standard deviations: of features (pixels), of given shifts (the cameras' extent) and of given turns (radians)."""

    pixels: float
    shift: float
    turn: float


def adjusted_poses(matches: Matches, camera_to_worlds: Tensor, lenses: Sequence[Lens], unit: float) -> Adjustment:
    """Poses that fit matching features, and the given poses, best.

    Cameras and points are adjusted together so that

        sum log(1 + (e / s)^2) + sum (t / s_t)^2 + sum (r / s_r)^2

    over reprojection errors e, shifts t and turns r is least. The standard deviations s are estimated: a first
    adjustment is made with ones that let poses move by some degrees, and its results' medians are those of the second.
    Intrinsics stay.

    Args:
        matches: features of C images.
        camera_to_worlds: [C, 3, 4], right to a degree or so; cameras look along their -z axis.
        lenses: C lenses.
        unit: extent of the cameras (scene units), > 0.
    """
    given: Array = camera_to_worlds.double().cpu().numpy()
    rays = _Rays(matches, lenses)
    spread = _Spread(_FIRST_PIXELS, *_FIRST_PRIOR)
    tracks = _supported(rays.tracks(given, np.radians(_FIRST_ERROR)), len(given))
    first = _Problem(rays, tracks, given, unit, spread).solved()
    spread = _spread_of(first, spread)
    limit = np.maximum(_LATER_ERROR, 4 * spread.pixels) / rays.focal[rays.camera[rays.edges[:, 0]]]
    tracks = _supported(rays.tracks(first.poses, limit), len(given))
    adjusted = np.zeros(len(given), bool)
    adjusted[tracks.of_camera] = True
    still = _Problem(rays, tracks, given, unit, spread).solved(move_cameras=False)
    final = _Problem(rays, tracks, given, unit, spread, first.poses).solved()
    before, after = (np.linalg.norm(one.residuals(), axis=1) for one in (still, final))
    gained = max(6 * int(adjusted.sum()), 1)
    free = max(2 * len(after) - 3 * len(tracks.points), 1)
    losses = [float(np.log1p((errors / spread.pixels) ** 2).sum()) for errors in (before, after)]
    evidence = (losses[0] - losses[1]) / gained / max(losses[1] / free, 1e-12)
    medians = (float(np.median(before)), float(np.median(after))) if len(after) else (0.0, 0.0)
    return Adjustment(torch.from_numpy(final.poses), torch.from_numpy(adjusted), len(tracks.points), medians, evidence)


class _Rays:
    """All features of all cameras, numbered through."""

    def __init__(self, matches: Matches, lenses: Sequence[Lens]) -> None:
        counts = [len(features.pixels) for features in matches.features]
        start = np.cumsum([0, *counts])
        self.camera = np.repeat(np.arange(len(counts)), counts)
        empty = np.zeros((0, 3))
        features = matches.features
        self.local: Array = np.concatenate([empty, *(one.directions.double().numpy() for one in features)])
        self.offsets: Array = np.zeros_like(self.local)
        for first, count, one in zip(start, counts, features, strict=False):
            if one.origins is not None:
                self.offsets[first : first + count] = one.origins.double().numpy()
        self.focal = np.array([_pixels_per_radian(lens) for lens in lenses])
        edges = [np.stack([start[i] + a.numpy(), start[j] + b.numpy()], 1) for i, j, a, b in matches.pairs]
        joined = np.concatenate([np.zeros((0, 2), np.int64), *edges])
        self.edges = joined[np.isfinite(self.local[joined, 0]).all(1)]

    def world(self, poses: Array, chosen: Indices) -> tuple[Array, Array]:
        """Origins and directions [n, 3] of features' rays in the world."""
        own = poses[self.camera[chosen]]
        origins = np.einsum("nij,nj->ni", own[:, :, :3], self.offsets[chosen]) + own[:, :, 3]
        return origins, np.einsum("nij,nj->ni", own[:, :, :3], self.local[chosen])

    def tracks(self, poses: Array, limit: Array | float) -> _Tracks:
        """Join matches to tracks, and place their points where they are nearest to their rays.

        Args:
            poses: [C, 3, 4].
            limit: greatest angle of a match's second ray from its epipolar plane (radians), of all matches or of each.
        """
        (origin, first), (other, second) = (self.world(poses, end) for end in self.edges.T)
        normal = np.cross(first, other - origin)
        sine = np.abs((normal * second).sum(1)) / np.maximum(np.linalg.norm(normal, axis=1), 1e-300)
        edges = self.edges[np.arcsin(np.minimum(sine, 1)) < limit]
        links = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(self.local),) * 2)
        label = connected_components(links, directed=False)[1]
        members = np.unique(edges)
        members = members[np.lexsort((self.camera[members], label[members]))]
        track, count = np.unique(label[members], return_inverse=True, return_counts=True)[1:]
        twice = np.zeros(len(count), bool)  # two features of one image are not one point
        twice[track[1:][(np.diff(track) == 0) & (np.diff(self.camera[members]) == 0)]] = True
        points, good = self._placed(poses, members, track, len(count))
        good &= ~twice
        longest = np.argsort(-np.where(good, count, 0), kind="stable")[:_MOST_TRACKS]
        keep = np.zeros(len(count), bool)
        keep[longest] = good[longest]
        of = keep[track]
        return _Tracks((np.cumsum(keep) - 1)[track[of]], self.camera[members[of]], members[of], points[keep])

    def _placed(self, poses: Array, members: Indices, track: Indices, count: int) -> tuple[Array, NDArray[np.bool_]]:
        """[T, 3] the point nearest to the rays of each track, and whether it is before all cameras, with parallax."""
        origins, directions = self.world(poses, members)
        across = np.eye(3) - directions[:, :, None] * directions[:, None]
        system, target, mean = np.zeros((count, 3, 3)), np.zeros((count, 3)), np.zeros((count, 3))
        np.add.at(system, track, across)
        np.add.at(target, track, (across @ origins[:, :, None])[:, :, 0])
        np.add.at(mean, track, directions)
        points = np.linalg.solve(system + 1e-9 * np.eye(3), target[:, :, None])[:, :, 0]
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)
        wrong, spread = np.zeros(count, bool), np.zeros(count)
        wrong[track[((points[track] - origins) * directions).sum(1) <= 0]] = True
        # Of rays that are this far from their mean direction, some two differ by at least as much.
        np.maximum.at(spread, track, np.linalg.norm(np.cross(directions, mean[track]), axis=1))
        return points, ~wrong & (spread > np.sin(np.radians(0.5 * _MIN_PARALLAX)))


def _pixels_per_radian(lens: Lens) -> float:
    """In the middle of the image; a panorama's `fx` is per turn."""
    step = 1e-4
    ahead = torch.tensor([[-step, -step, -1.0], [step, step, -1.0]], dtype=torch.float64)
    column, row, _ = lens.project(ahead)
    return float((column.diff().abs() + row.diff().abs()) / (4 * step))


def _supported(tracks: _Tracks, cameras: int) -> _Tracks:
    """The tracks without cameras that have too few features in them."""
    while True:
        count = np.bincount(tracks.of_camera, minlength=cameras)
        length = np.bincount(tracks.of_track, minlength=len(tracks.points))
        poor = (count > 0) & (count < _FEWEST_FEATURES)
        if not poor.any() and (length >= 2).all():
            return tracks
        kept = ~poor[tracks.of_camera] & (length >= 2)[tracks.of_track]
        left, of_track = np.unique(tracks.of_track[kept], return_inverse=True)
        tracks = _Tracks(of_track, tracks.of_camera[kept], tracks.feature[kept], tracks.points[left])


class _Problem:
    """Cameras and points, which `solved` moves to where the loss is least.

    Args:
        rays: of all features.
        tracks: what the images show.
        given: [C, 3, 4] the given poses.
        unit: extent of the cameras (scene units).
        spread: standard deviations.
        start: [C, 3, 4] where to begin; by default, at the given poses.
    """

    def __init__(
        self, rays: _Rays, tracks: _Tracks, given: Array, unit: float, spread: _Spread, start: Array | None = None
    ) -> None:
        self.tracks, self.given, self.unit, self.spread = tracks, given, unit, spread
        self.poses, self.points = (given if start is None else start).copy(), tracks.points.copy()
        self.offsets = rays.offsets[tracks.feature]
        axis = rays.local[tracks.feature]
        # Two directions across each ray, in pixels.
        helper = np.eye(3)[np.abs(axis).argmin(1)]
        first = np.cross(axis, helper)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        self.across = np.stack([first, np.cross(axis, first)], 1) * rays.focal[tracks.of_camera][:, None, None]

    def solved(self, move_cameras: bool = True) -> _Problem:
        """Itself, after Levenberg's and Marquardt's method, with points eliminated (the Schur complement).

        Args:
            move_cameras: whether cameras move, or points alone.
        """
        damping, loss = 1e-4, self.loss()
        for _ in range(_ITERATIONS if len(self.tracks.feature) else 0):
            before = self.poses, self.points
            self._step(damping, move_cameras)
            found = self.loss()
            if found <= loss:
                settled, loss, damping = loss - found < _SETTLED * loss, found, max(damping / 5, 1e-9)
                if settled:
                    break
            else:
                self.poses, self.points = before
                damping *= 10
        return self

    def local(self) -> Array:
        """[O, 3] the points in the frames of the cameras that see them."""
        own = self.poses[self.tracks.of_camera]
        seen: Array = np.einsum("nji,nj->ni", own[:, :, :3], self.points[self.tracks.of_track] - own[:, :, 3])
        return seen

    def residuals(self) -> Array:
        """[O, 2] by how much points lie beside their features' rays (pixels; an angle times the focal length)."""
        away = self.local() - self.offsets
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        beside: Array = np.einsum("nij,nj->ni", self.across, away)
        return beside

    def motions(self) -> Array:
        """[C, 6] shifts (the cameras' extent) and turns (radians) from the given poses, in the cameras' frames."""
        shifts = np.einsum("nji,nj->ni", self.given[:, :, :3], self.poses[:, :, 3] - self.given[:, :, 3]) / self.unit
        turns = Rotation.from_matrix(np.swapaxes(self.given[:, :, :3], 1, 2) @ self.poses[:, :, :3]).as_rotvec()
        return np.concatenate([shifts, turns], 1)

    def loss(self) -> float:
        """The sum of which the least is looked for."""
        squares = (self.residuals() ** 2).sum(1) / self.spread.pixels**2
        return float(np.log1p(squares).sum() + (self.motions() ** 2 * self._prior()).sum())

    def _prior(self) -> Array:
        return np.repeat([self.spread.shift**-2.0, self.spread.turn**-2.0], 3)

    def _derivatives(self) -> tuple[Array, Array]:
        """Of the residuals: [O, 2, 6] in their cameras' motions, [O, 2, 3] in their points."""
        seen = self.local()
        away = seen - self.offsets
        length = np.linalg.norm(away, axis=1)[:, None, None]
        away = away[:, :, None] / length
        by_place = (self.across - (self.across @ away) * np.swapaxes(away, 1, 2)) / length
        # A turn r of the camera moves what it sees by seen x r, and a shift t moves it by -t.
        turned = np.cross(seen[:, None], np.eye(3)[None], axis=2).transpose(0, 2, 1)
        by_motion = np.concatenate([-self.unit * by_place, by_place @ turned], 2)
        rotations = self.poses[self.tracks.of_camera, :, :3]
        return by_motion, by_place @ np.swapaxes(rotations, 1, 2)

    def _step(self, damping: float, move_cameras: bool) -> None:
        """One step of the damped Gauss-Newton method, with weights 1 / (1 + e^2) for the robust loss."""
        tracks, cameras, points = self.tracks, len(self.poses), len(self.points)
        residuals = self.residuals() / self.spread.pixels
        by_motion, by_point = (derivative / self.spread.pixels for derivative in self._derivatives())
        weight = 1 / (1 + (residuals**2).sum(1))
        weighted = np.swapaxes(by_point, 1, 2) * weight[:, None, None]
        within, slope = np.zeros((points, 3, 3)), np.zeros((points, 3))
        np.add.at(within, tracks.of_track, weighted @ by_point)
        np.add.at(slope, tracks.of_track, (weighted @ residuals[:, :, None])[:, :, 0])
        diagonal = np.einsum("nii->ni", within)
        diagonal += damping * diagonal + 1e-12 * diagonal.max()
        inverse = np.linalg.inv(within)
        moves = np.zeros((cameras, 6))
        if move_cameras:
            moves = self._camera_step(by_motion, weighted, weight, residuals, inverse, slope, damping)
        change = slope.copy()
        np.add.at(change, tracks.of_track, (weighted @ (by_motion @ moves[tracks.of_camera][:, :, None]))[:, :, 0])
        self.points = self.points - (inverse @ change[:, :, None])[:, :, 0]
        turns = Rotation.from_rotvec(moves[:, 3:]).as_matrix()
        shifts = np.einsum("nij,nj->ni", self.poses[:, :, :3], self.unit * moves[:, :3])
        self.poses = np.concatenate([self.poses[:, :, :3] @ turns, (self.poses[:, :, 3] + shifts)[:, :, None]], 2)

    def _camera_step(
        self,
        by_motion: Array,
        weighted: Array,
        weight: Array,
        residuals: Array,
        inverse: Array,
        slope: Array,
        damping: float,
    ) -> Array:
        """[C, 6] motions of the cameras, the points following them (Triggs et al. 2000, section 6.1)."""
        tracks, cameras = self.tracks, len(self.poses)
        prior = self._prior()
        turned = np.swapaxes(by_motion, 1, 2) * weight[:, None, None]
        own, gradient = np.zeros((cameras, 6, 6)), self.motions() * prior
        np.add.at(own, tracks.of_camera, turned @ by_motion)
        np.add.at(gradient, tracks.of_camera, (turned @ residuals[:, :, None])[:, :, 0])
        diagonal = np.einsum("nii->ni", own)
        diagonal += damping * diagonal + prior
        both = np.swapaxes(weighted @ by_motion, 1, 2)  # [O, 6, 3]
        through = both @ inverse[tracks.of_track]
        shape = (6 * cameras, 3 * len(self.points))
        rows = (6 * tracks.of_camera[:, None, None] + np.arange(6)[:, None]).repeat(3, 2).reshape(-1)
        columns = (3 * tracks.of_track[:, None, None] + np.arange(3)).repeat(6, 1).reshape(-1)
        joint, reduced = (
            scipy.sparse.csr_matrix((blocks.reshape(-1), (rows, columns)), shape=shape) for blocks in (both, through)
        )
        system = scipy.sparse.block_diag(list(own), "csc") - (reduced @ joint.T).tocsc()
        target = reduced @ slope.reshape(-1) - gradient.reshape(-1)
        if 6 * cameras > _DENSE:
            moves = scipy.sparse.linalg.spsolve(system, target)
        else:
            moves = scipy.linalg.solve(system.toarray(), target, assume_a="pos", overwrite_a=True)
        return np.asarray(moves).reshape(cameras, 6)


def _spread_of(found: _Problem, otherwise: _Spread) -> _Spread:
    """Standard deviations, from the medians of the lengths of two and of three of their kind."""
    if len(found.tracks.feature) == 0:
        return otherwise
    pixels = float(np.median(np.linalg.norm(found.residuals(), axis=1))) / 1.177
    motions = found.motions()[np.unique(found.tracks.of_camera)].reshape(-1, 2, 3)
    shift, turn = (np.median(np.linalg.norm(motions, axis=2), axis=0) / 1.538).tolist()
    return _Spread(max(pixels, _LEAST), max(shift, _LEAST), max(turn, _LEAST))
