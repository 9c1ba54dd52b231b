"""Pose refinement: a small rigid motion of each training camera, trained with the scene.

Names and parameters are those of nerfstudio's `CameraOptimizer`: the modes, and six numbers for each camera in the
parameter group "camera_opt". A correction acts in the camera's own frame, camera_to_world' = camera_to_world A_i, so
that it rotates a camera about its own centre. Translations are in units of the cameras' extent, so that one learning
rate fits scenes of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.lie_groups import exp_map_SE3, exp_map_SO3xR3
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial.transform import Rotation
from torch import Tensor

from ns_support.corrections.newton import curvature_term
from ns_support.corrections.ray_curvature import RaysSeen, observed
from ns_support.errors import require
from ns_support.help import documented
from ns_support.rays import camera_extent

_GAUGE_EVERY = 50
"""Steps between two removals of the motion that all cameras share."""
_ALIGNMENT_STEPS, _ALIGNMENT_EVALUATIONS = 12, 18
"""Greatest numbers of iterations of L-BFGS, and of renderings."""


@documented
@dataclass
class PoseRefinementConfig(CameraOptimizerConfig):
    """Whether and how the poses of the training cameras are refined."""

    _target: type = field(default_factory=lambda: PoseRefinement)
    """Class to instantiate."""
    refine_from: float = 0.1
    """Fraction of the training after which poses begin to move, in [0, 1): before, there is nothing to align them
    with."""

    match_features: bool = True
    """Before training, fit the poses to features that match between the photographs, where they don't fit already."""

    def check(self) -> None:
        """Refuse settings that can't be trained with.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        for name, holds, wanted in (
            ("mode", self.mode in ("off", "SO3xR3", "SE3"), "off, SO3xR3 or SE3"),
            ("refine_from", 0 <= self.refine_from < 1, "in [0, 1)"),
            ("trans_l2_penalty", self.trans_l2_penalty >= 0, "at least 0"),
            ("rot_l2_penalty", self.rot_l2_penalty >= 0, "at least 0"),
        ):
            option = f"--pipeline.model.camera-optimizer.{name.replace('_', '-')}"
            require(option, holds, wanted, getattr(self, name))


class PoseRefinement(CameraOptimizer):
    """nerfstudio's pose corrections, applied so that an image's gradient reaches them exactly.

    Args:
        config: the configuration, of a mode that is not "off".
        cameras: the N cameras as the data have them, on the device of the corrections.
    """

    config: PoseRefinementConfig
    poses: Tensor

    def __init__(self, config: PoseRefinementConfig, cameras: Cameras) -> None:
        poses = cameras.camera_to_worlds.reshape(-1, 3, 4).float()
        super().__init__(config, len(poses), poses.device)
        self.curvature = torch.nn.Parameter(torch.zeros(len(poses), 6, 6, device=poses.device))
        """Zeros, whose gradient is the curvature of the loss (`corrections.newton`)."""
        self.register_buffer("poses", poses, persistent=False)
        self.unit = camera_extent(cameras)
        self.progress = 0.0
        """Fraction of the training that is done."""
        self._of_image: Tensor | None = None
        """A view of the adjustments that belongs to the image at hand: what it contributes to the gradient is summed
        before it joins that of other images, whichever process they are in."""
        self._rays: RaysSeen | None = None

    @torch.no_grad()
    def start_at(self, poses: Tensor) -> None:
        """Begin at other poses than the data's, but for what all cameras have in common.

        Args:
            poses: [N, 3, 4].
        """
        given, wanted = self.poses.double(), poses.to(self.poses.device).double()
        inverse = given[:, :, :3].mT
        turns = Rotation.from_matrix((inverse @ wanted[:, :, :3]).cpu().numpy()).as_rotvec()
        shifts = (inverse @ (wanted[:, :, 3:] - given[:, :, 3:]))[..., 0] / self.unit
        both = torch.cat([shifts, torch.from_numpy(turns).to(shifts)], 1)
        both = without_shared_motion(both, self.poses.double(), self.unit)
        if self.config.mode == "SE3":  # whose shifts are turned along the way: V(r) t
            axes = torch.eye(3).to(both).expand(len(both), 3, 3).unbind(1)
            along = torch.stack([exp_map_SE3(torch.cat([axis, both[:, 3:]], 1))[:, :, 3] for axis in axes], 2)
            both[:, :3] = torch.linalg.solve(along, both[:, :3])
        self.pose_adjustment.copy_(both)

    @torch.no_grad()
    def apply_to_cameras(self) -> Tensor:
        """The refined poses [N, 3, 4] of all training cameras."""
        corrections = self(torch.arange(len(self.poses), device=self.poses.device))
        axes = self.poses[:, :, :3]
        return torch.cat([axes @ corrections[:, :, :3], axes @ corrections[:, :, 3:] + self.poses[:, :, 3:]], 2)

    @property
    def moves(self) -> bool:
        """Whether poses are refined at the step at hand: not in evaluation, nor before `refine_from`."""
        return self.training and self.progress >= self.config.refine_from

    def forward(self, indices: Tensor | slice) -> Tensor:
        """Corrections A_i [n, 3, 4] of cameras [n], with translations in scene units."""
        if self.training and torch.is_grad_enabled():
            self._of_image = self.pose_adjustment.view_as(self.pose_adjustment)
            rows = self._of_image[indices]
        else:
            rows = self.pose_adjustment[indices]
        found = exp_map_SE3(rows) if self.config.mode == "SE3" else exp_map_SO3xR3(rows)
        return torch.cat([found[:, :, :3], found[:, :, 3:] * self.unit], dim=2)

    def corrected(self, camera: Cameras) -> tuple[Cameras, Tensor | None]:
        """A training camera at its refined pose.

        Args:
            camera: one camera of shape [1], with the number of its image as metadata "cam_idx".

        Returns:
            The camera, its pose without a graph; and its motion (v, w) [6] of value 0, x -> x + w x x + v in the world
            (scene units, radians), through which a gradient with respect to the pose reaches the corrections; None if
            the pose does not move at this step.
        """
        index = (camera.metadata or {}).get("cam_idx")
        if index is None:
            return camera, None
        given = camera.camera_to_worlds[0]
        (own,) = self(slice(index, index + 1)).to(given.device)
        turned, center = given[:, :3] @ own[:, :3], given[:, :3] @ own[:, 3] + given[:, 3]
        moved = copy(camera)
        moved.camera_to_worlds = torch.cat([turned, center[:, None]], dim=1).detach()[None]
        if not self.moves:
            return moved, None
        skew = turned @ turned.detach().T
        rotation = torch.stack([skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]]) / 2
        still = center.detach()
        return moved, torch.cat([center - still - torch.linalg.cross(rotation, still), rotation])

    def corrected_rays(self, rays: RayBundle) -> RayBundle:
        """Rays of training cameras as their refined poses send them; differentiable in the corrections.

        Args:
            rays: R rays with `camera_indices` [R, 1], of the poses as the data have them.
        """
        if not self.training or rays.camera_indices is None:
            return rays
        corrections = self(torch.arange(len(self.poses), device=self.poses.device))
        if not self.moves:
            corrections = corrections.detach()
        axes = self.poses[:, :, :3]
        turns = axes @ corrections[:, :, :3] @ axes.transpose(1, 2)
        shifts = (axes @ corrections[:, :, 3:])[..., 0]
        index = rays.camera_indices[..., 0]
        moved, centers = copy(rays), self.poses[:, :, 3].index_select(0, index)
        turn, shift = turns.index_select(0, index), shifts.index_select(0, index)
        directions = (turn @ rays.directions[..., None])[..., 0]
        # A lens whose rays do not all start in its centre turns as a whole.
        offsets = (turn @ (rays.origins - centers)[..., None])[..., 0]
        if self.moves:
            frames = (turn @ axes.index_select(0, index)).detach()
            self._rays = RaysSeen(index, frames, self.unit)
            offsets, directions = observed(offsets, directions, self.curvature, self._rays)
        moved.origins, moved.directions = centers + offsets + shift, directions
        return moved

    def note_residuals(self, squares: Tensor) -> None:
        """Take note of the squared residuals of the rays that were corrected last, before their gradient is computed.

        Args:
            squares: [R] each summed over the colours; the loss is their mean over rays and colours.
        """
        if self._rays is not None:
            self._rays.squares = squares.detach()

    def get_metrics_dict(self, metrics_dict: dict[str, Any]) -> None:
        """Add the sizes of the corrections: translations in units, rotations in degrees. Nothing waits for a GPU."""
        shifts, turns = (part.norm(dim=-1) for part in self.pose_adjustment.detach().split(3, dim=1))
        for name, sizes in (("translation", shifts), ("rotation", turns.rad2deg())):
            metrics_dict |= {f"camera_opt_{name}_max": sizes.max(), f"camera_opt_{name}_mean": sizes.mean()}

    def apply_to_raybundle(self, raybundle: RayBundle) -> None:
        """`corrected_rays`, in place."""
        moved = self.corrected_rays(raybundle)
        raybundle.origins, raybundle.directions = moved.origins, moved.directions

    def apply_to_camera(self, camera: Cameras) -> Tensor:
        """The refined pose [1, 3, 4] of a training camera, for `ns-export cameras`."""
        return self.corrected(camera)[0].camera_to_worlds

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Now and then remove what the corrections of all cameras have in common.

        A motion and a scaling of all cameras together leave every training image as it is, once the scene has followed,
        and take held-out cameras out of place.
        """
        self._of_image = self._rays = None
        if self.moves and (step + 1) % _GAUGE_EVERY == 0:
            self.pose_adjustment.copy_(without_shared_motion(self.pose_adjustment, self.poses, self.unit))

    def curvature_of(self, photo: int, changes: Tensor, weight: Tensor) -> Tensor:
        """A term of the loss, of value 0, by which `VisitNewton` learns how far to move a photograph's camera.

        Args:
            photo: number of the photograph.
            changes: [n, 3, 6] derivatives of colours with respect to its camera's motion (`view_change`).
            weight: [n] second derivative of the loss with respect to a colour of each pixel.
        """
        parts = (changes.new_full((3,), p) for p in (self.config.trans_l2_penalty, self.config.rot_l2_penalty))
        penalty = 2 * torch.cat(list(parts))
        curvature = torch.einsum("n,nci,ncj->ij", weight, changes, changes)
        return curvature_term(self.curvature[photo], curvature + torch.diag(penalty))

    def penalty(self, photo: Tensor | int) -> Tensor:
        """Mean square of the corrections of a photograph, or of several, with the configuration's weights; a scalar.

        nerfstudio penalises the norm, whose gradient does not vanish at 0: every camera would tremble.
        """
        adjustments = self.pose_adjustment if self._of_image is None else self._of_image
        shifts, turns = adjustments[photo].square().view(-1, 2, 3).sum(2).mean(0).unbind()
        return shifts * self.config.trans_l2_penalty + turns * self.config.rot_l2_penalty


def without_shared_motion(adjustments: Tensor, poses: Tensor, unit: float) -> Tensor:
    """Corrections without the similarity of the whole space that comes closest to them, to first order.

    Minimises, over a shift v, a rotation w and a scaling s about the mean centre c of the cameras,

        sum_i |R_i t_i - v - w x (c_i - c) - s (c_i - c)|^2 / unit^2 + |R_i r_i - w|^2

    Args:
        adjustments: [N, 6] t_i (units) and r_i (radians), each in its camera's frame.
        poses: [N, 3, 4] camera to world, R_i and c_i.
        unit: length of a translation of 1 (scene units), and the length over which a radian counts as much.

    Returns:
        [N, 6].
    """
    axes = poses[:, :, :3].double()
    offsets = (poses[:, :, 3] - poses[:, :, 3].mean(0)).double() / unit
    moves = torch.einsum("nij,nkj->nki", axes, adjustments.double().view(-1, 2, 3))  # [N, shift or turn, 3]
    count = len(offsets)
    eye = torch.eye(3, dtype=torch.float64, device=offsets.device)
    system = offsets.new_zeros(count, 2, 3, 7)
    system[:, 0, :, :3] = eye
    # w x a = sum_k w_k (e_k x a)
    system[:, 0, :, 3:6] = torch.linalg.cross(eye.expand(count, 3, 3), offsets[:, None].expand(-1, 3, -1)).mT
    system[:, 0, :, 6] = offsets
    system[:, 1, :, 3:6] = eye
    columns = system.reshape(-1, 7)
    # The pseudo-inverse: of one camera, or of several in one place, not every motion can be told.
    shared = torch.linalg.pinv(columns) @ moves.reshape(-1)
    rest = moves - (columns @ shared).view_as(moves)
    return torch.einsum("nij,nki->nkj", axes, rest).reshape(-1, 6).to(adjustments)


Loss = Callable[[Cameras, Tensor], Tensor]
"""Compares an image with a camera's: given the camera and its motion, as `PoseRefinement.corrected` gives them."""


def aligned(camera: Cameras, loss: Loss, unit: float) -> Cameras:
    """A camera moved to where its image fits the trained scene best, with L-BFGS.

    Args:
        camera: one camera of shape [1].
        loss: smooth, the same at each call for the same camera, differentiable in the motion.
        unit: extent of the scene's cameras (scene units).
    """
    camera = copy(camera)
    camera.metadata = {**(camera.metadata or {}), "cam_idx": 0}
    refinement = PoseRefinement(PoseRefinementConfig(mode="SO3xR3", refine_from=0.0), camera)
    refinement.unit = unit
    pose = refinement.pose_adjustment
    optimizer = torch.optim.LBFGS(
        [pose], max_iter=_ALIGNMENT_STEPS, max_eval=_ALIGNMENT_EVALUATIONS, line_search_fn="strong_wolfe"
    )

    def evaluate() -> float:
        moved, motion = refinement.corrected(camera)
        assert motion is not None
        found = loss(moved, motion)
        (pose.grad,) = torch.autograd.grad(found, [pose])
        return float(found.detach())

    with torch.enable_grad():
        optimizer.step(evaluate)
    return refinement.corrected(camera)[0]


def telling_tiles(image: Tensor, side: int, cells: int) -> list[tuple[int, int, int, int]]:
    """Small windows of an image that tell its camera's pose: from all over it, and where there is most to see.

    Args:
        image: [H, W, C] floating point.
        side: of a window (pixels); smaller if `cells` of them would not fit beside each other.
        cells: each side of the image is divided into so many parts, > 0.

    Returns:
        First row, first column, rows, columns of at most cells^2 windows: of each part that with the largest variance.
    """
    height, width = image.shape[:2]
    rows, columns = (max(1, min(side, size // cells)) for size in (height, width))
    parts = image.mean(-1)[: height // rows * rows, : width // columns * columns]
    down, across = parts.shape[0] // rows, parts.shape[1] // columns
    variance = parts.view(down, rows, across, columns).var((1, 3), correction=0)
    tiles = []
    for cell_rows in torch.arange(down).tensor_split(min(cells, down)):
        for cell_columns in torch.arange(across).tensor_split(min(cells, across)):
            best = int(variance[cell_rows][:, cell_columns].argmax())
            row, column = cell_rows[best // len(cell_columns)], cell_columns[best % len(cell_columns)]
            tiles.append((int(row) * rows, int(column) * columns, rows, columns))
    return tiles
