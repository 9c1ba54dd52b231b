"""Scene scale and step size, estimated from the training cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ns_support.lenses.lens import Lens
from raygauss_ns.gaussians.projection import in_camera_space
from raygauss_ns.ssim.api import WINDOW

BLENDER_BOX = 3.0
"""Longest side of the scene box in nerfstudio's Blender parser, whose scenes are in the papers' own units."""
BLENDER_DISTANCE = 4.0
"""Distance of that data set's cameras from what they look at, in the same units."""

COARSEST_SIDE = 100
"""Shorter side of the smallest images that training begins with by itself (pixels)."""

_MIN_CONVERGENCE = 1e-3
_ENOUGH_POINTS = 10_000


def content_distance(world_to_cameras: Tensor, points: Tensor | None = None) -> float | None:
    """Distance from a camera to what it looks at, the median over the cameras (scene units).

    With SfM points: the median distance of the points in front of a camera. Without: the distance to the focus, the
    point nearest to all optical axes, p = argmin sum_i |(I - a_i a_i^T)(p - c_i)|^2.

    Args:
        world_to_cameras: [C, 3, 4]; cameras look along their -z axis.
        points: [N, 3] SfM points, or None.

    Returns:
        None if the cameras do not determine it: their axes are parallel, or do not meet in front of them.
    """
    poses = world_to_cameras.double()
    if points is not None and len(points) > 0:
        # A subset suffices for a median; C times all N would not fit into memory for a large scene.
        some = points[:: max(len(points) // _ENOUGH_POINTS, 1)].to(poses)
        local = (in_camera_space(some, pose) for pose in poses)
        before = [torch.linalg.vector_norm(p[p[:, 2] < 0], dim=-1) for p in local]
        medians = [distances.median() for distances in before if len(distances) > 0]
        return float(torch.stack(medians).median()) if medians else None
    axes = -poses[:, 2, :3]
    centers = camera_centers(poses)
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    if torch.linalg.eigvalsh(across.mean(0))[0] < _MIN_CONVERGENCE:
        return None
    focus = torch.linalg.solve(across.sum(0), (across @ centers[..., None]).sum(0)[:, 0])
    ahead = ((focus - centers) * axes).sum(-1)
    spread = torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).median()
    distance = torch.linalg.vector_norm(focus - centers, dim=-1).median()
    return float(distance) if ahead.median() > 0.25 * spread else None


def scene_unit(box: Tensor, distance: float | None) -> float:
    """The scene scale u (scene units), such that in units of u the content is as large as in the papers' scenes.

    If the cameras are outside the scene box, the content is inside: u = longest side / 3, which is 1 for Blender
    scenes. If they are inside, the scene is a capture. nerfstudio scales a capture such that its *cameras* fit the box,
    and the content may be anywhere: u = content distance / 4, as the distance of Blender's cameras is 4. If that
    distance is unknown, u follows from the box.

    Args:
        box: [2, 3] lower and upper corner of the scene box.
        distance: a capture's `content_distance` (scene units); None: not a capture, or unknown.
    """
    return float((box[1] - box[0]).max()) / BLENDER_BOX if distance is None else distance / BLENDER_DISTANCE


def camera_centers(world_to_cameras: Tensor) -> Tensor:
    """[C, 3] positions of cameras [C, 3, 4]."""
    return -torch.einsum("cji,cj->ci", world_to_cameras[:, :, :3], world_to_cameras[:, :, 3])


def resolved_step(lenses: Sequence[Lens], unit: float, distance: float | None, least: float) -> float:
    """The step (in u) for Gaussians that are not smaller than half a pixel in these images.

    A sum with spacing h over a Gaussian of scale s has a relative error of 2 exp(-2 pi^2 s^2 / h^2), which is 1e-8 at
    h = s. The smallest s in training (`smallest_resolved_scale`) is half a pixel at the Gaussian. So h is half a
    pixel's size at the content's distance from the lens, the median over the lenses.

    Args:
        lenses: of the training images.
        unit: scene scale u (scene units).
        distance: the content's distance from the cameras (scene units); None: as in the papers' scenes, 4 u.
        least: minimum step (u), and the step if there is no camera.
    """
    if not lenses:
        return least
    content = torch.tensor([[0.0, 0.0, -(BLENDER_DISTANCE * unit if distance is None else distance)]])
    sizes = torch.cat([lens.pixel_size(content) for lens in lenses])
    return max(0.5 * float(sizes.median()) / unit, least)


def coarsest_downscales(lenses: Sequence[Lens], wanted: int | None) -> int:
    """How often the sides of these images can be halved at the start of training.

    Args:
        lenses: of the training images.
        wanted: at most so often, and while SSIM's window fits; None: until the shorter side of an image would have
            fewer than `COARSEST_SIDE`.
    """
    if not lenses:
        return 0
    side = min(min(int(lens.width), int(lens.height)) for lens in lenses)
    least = COARSEST_SIDE if wanted is None else WINDOW
    possible = max((side // least).bit_length() - 1, 0)
    return possible if wanted is None else min(possible, wanted)
