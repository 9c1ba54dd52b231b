"""What a scene's cameras and points decide before training: the scale of everything, and where the Gaussians start."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from torch import Tensor

from ns_support.errors import UserError
from ns_support.lenses.lens import Lens
from ns_support.lenses.triangulation import cameras_inside
from raygauss_ns.config import PUBLISHED_STEP_SIZE, RayGaussModelConfig
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.foreign_splats import tell_if_unseen
from raygauss_ns.gaussians.initialization import StartPoints, frustum_points, gap_points, random_points
from raygauss_ns.gaussians.losses import ISO_WEIGHT_REAL, ISO_WEIGHT_SYNTHETIC
from raygauss_ns.gaussians.ply_formats import read_cloud
from raygauss_ns.gaussians.projection import pixel_angle
from raygauss_ns.gaussians.scene_scale import (
    BLENDER_DISTANCE,
    camera_centers,
    coarsest_downscales,
    content_distance,
    resolved_step,
    scene_unit,
)


class TrainingViews(NamedTuple):
    """What is known of a scene before training.

    Attributes:
        box: [2, 3] corners of the scene box (scene units).
        world_to_cameras: [C, 3, 4] poses of the training images; C may be 0.
        lenses: C lenses.
        points: SfM points [N, 3] and their colours [N, 3] in 0..255, if the scene has any.
    """

    box: Tensor
    world_to_cameras: Tensor
    lenses: Sequence[Lens]
    points: tuple[Tensor, Tensor] | None


class SceneScale(NamedTuple):
    """The lengths that the configuration leaves to the scene.

    Attributes:
        unit: u, the length that the configuration's lengths are multiples of (scene units).
        step_size: dt, distance between samples (u).
        distance: from a camera to what it looks at (scene units); None where the cameras do not tell.
        capture: whether the cameras are inside the scene box, as those of photographs mostly are.
        downscales: how often the images' sides are halved at the start of training.
        pixel_angle: size of the images' pixels at distance 1, the median over the cameras; 0 if there is none.
    """

    unit: float
    step_size: float
    distance: float | None
    capture: bool
    downscales: int
    pixel_angle: float

    @property
    def iso_weight(self) -> float:
        """The papers' weight of L_iso for this kind of scene."""
        return ISO_WEIGHT_REAL if self.capture else ISO_WEIGHT_SYNTHETIC


def resolve_scale(config: RayGaussModelConfig, views: TrainingViews) -> SceneScale:
    """The configuration's lengths, and the scene's where the configuration leaves them open."""
    capture = cameras_inside(camera_centers(views.world_to_cameras), views.box)
    points = None if views.points is None else views.points[0]
    distance = content_distance(views.world_to_cameras, points) if len(views.world_to_cameras) else None
    unit = config.scene_unit or scene_unit(views.box, distance if capture else None)
    step = config.step_size or resolved_step(views.lenses, unit, distance, PUBLISHED_STEP_SIZE)
    downscales = coarsest_downscales(views.lenses, config.num_downscales)
    angle = median(map(pixel_angle, views.lenses)) if views.lenses else 0.0
    return SceneScale(unit, step, distance, capture, downscales, angle)


def initial_cloud(
    config: RayGaussModelConfig, views: TrainingViews, scale: SceneScale, checkpoint_follows: bool
) -> GaussianCloud:
    """The Gaussians to start from: a file's, or new ones at points.

    Args:
        config: of the model.
        views: of the scene.
        scale: of the scene.
        checkpoint_follows: whether a stored state is about to replace what is made here. What the run once started from
            need not be there any more then.

    Raises:
        UserError: a file's Gaussians are all below the density threshold.
    """
    if config.initial_ply is not None and config.initial_ply.is_file() and not checkpoint_follows:
        half_step = 0.5 * scale.step_size * scale.unit
        cloud = read_cloud(config.initial_ply, scale.unit, config.sh_degree, config.num_lobes, half_step)
        tell_if_unseen(cloud.params["means"], views.world_to_cameras, views.lenses, config.initial_ply)
        if not bool((cloud.params["densities"] > config.density_threshold).any()):
            raise UserError(
                f"None of the {len(cloud)} Gaussians in {config.initial_ply} is denser than "
                f"--pipeline.model.density-threshold {config.density_threshold}."
            )
        return cloud
    if views.points is not None and not config.random_init and len(views.points[0]) > 0:
        positions, colors = views.points
        start = StartPoints(positions, colors / 255.0 if len(colors) == len(positions) else None)
        if config.gap_points > 0 and scale.capture:
            start = start.joined(gap_points(config.gap_points, start, views.world_to_cameras, views.lenses))
    elif scale.capture:
        distance = scale.distance or BLENDER_DISTANCE * scale.unit
        start = frustum_points(config.num_random, views.world_to_cameras, views.lenses, distance)
    else:
        start = random_points(config.num_random, views.box, config.random_extent)
    return GaussianCloud(
        start, scale.unit, config.initial_density, config.initial_scale, config.sh_degree, config.num_lobes
    )
