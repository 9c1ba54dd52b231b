"""What `raygauss` shows beside the colour, and the controls with which the viewer's own images are changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerElement, ViewerSlider
from torch import Tensor

from ns_support.errors import UserError
from ns_support.terminal import say
from ns_support.viewer.controls import SlicePlane, ViewerRun
from ns_support.viewer.normals import normal_picture, surface_normals
from ns_support.viewer.outputs import Extra
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

_THIN = 1e-3
"""Optical depth of the densest Gaussian over the step that `densities_at` takes."""
_NORMAL_SHIFT = 0.005
"""By how much `normals` moves rays aside (u)."""


class RayGaussPictures(SlicePlane):
    """The folder of the controls that change what the viewer shows, and nothing else.

    Training, evaluation and what is saved go on with the configuration's values.

    Args:
        box: [2, 3] corners of the scene box (scene units).
        unit: length u that the configuration's lengths are in (scene units).
        density_threshold: eps of the configuration (1/u).
        step_size: dt of the configuration (u).
    """

    def __init__(self, box: Tensor, unit: float, density_threshold: float, step_size: float) -> None:
        super().__init__(box)
        self._unit = unit
        self.cutoff = _slider(
            *("Density cut-off", density_threshold, 0.01, 5.0, 0.01),
            "Gaussians thinner than this are left out. Higher: faster and coarser",
        )
        self.step = _slider(
            *("Step size", step_size, 0.0005, 0.05, 0.0005),
            "Distance between samples along a ray. Larger: faster and coarser",
        )
        self.scale = _slider("Gaussian scale", 1.0, 0.05, 2.0, 0.05, "Size of all Gaussians, by what it really is")

    def controls(self) -> list[ViewerElement[Any]]:
        """The controls that act on images only, in the order in which they are shown."""
        return [self.cutoff, self.step, self.scale, *super().controls()]

    def follow_checkpoint(self, unit: float, step_size: float) -> None:
        """Start from what was trained with, where a checkpoint says otherwise than the scene.

        Args:
            unit: length u (scene units).
            step_size: dt (u).
        """
        self._unit, self.step.value = unit, step_size

    def settings(self, settings: CastSettings) -> CastSettings:
        """How to sample: as given, but for what the sliders say."""
        step = float(self.step.value) * self._unit
        return settings._replace(
            density_threshold=float(self.cutoff.value) / self._unit,
            step=step,
            max_step=max(settings.max_step, step) if settings.max_step > 0 else 0.0,
        )

    def gaussians(self, gaussians: Gaussians) -> Gaussians:
        """What to cast at: the given Gaussians, scaled as the slider stands."""
        return gaussians._replace(scales=gaussians.scales * float(self.scale.value))


class RayGaussRun(ViewerRun):
    """The controls that act on the run: the stop button, and one that saves what there is as a splat file.

    Args:
        pictures: whose controls stand beside them.
    """

    always = ("save_splat",)

    def __init__(self, pictures: RayGaussPictures) -> None:
        super().__init__()
        self.picture_controls = pictures.controls
        self.save_splat = ViewerButton("Save splat.ply", cb_hook=lambda _: self._save_splat())

    def _save_splat(self) -> None:
        """Write the scene as it is now, for viewers of Gaussian splatting, into the run's folder; say so."""
        from raygauss_ns.export import save_splat  # needs the model's module, which needs this one

        path = self.viewer.log_filename.parent / "splat.ply"
        try:
            said = save_splat(self.viewer.pipeline.model, path)
        except UserError as error:
            said = error.message
        say(said)
        if self.words is not None:
            self.words.content = said


def _slider(name: str, value: float, least: float, most: float, step: float, hint: str) -> ViewerSlider[float]:
    return ViewerSlider(name, value, min(least, value), max(most, value), step, hint=hint)


@torch.no_grad()
def densities_at(gaussians: Gaussians, points: Tensor, settings: CastSettings, image_width: int = 0) -> Tensor:
    """Density sigma(x) = sum of the Gaussians above the cut-off, by rays of one sample each.

    A ray of white Gaussians that begins at x and takes one step brings back 1 - exp(-sigma dt). dt is short enough for
    that to be as accurate as float32 is, whatever sigma.

    Args:
        gaussians: the N Gaussians.
        points: [P, 3]; one that is not finite has density 0.
        settings: the cut-off is used; the rest makes no difference.
        image_width: pixels of a row, if the points are those of an image's pixels, row by row; else 0.

    Returns:
        [P] >= 0 (1/length).
    """
    densest = float(gaussians.densities.max()) if len(gaussians.densities) else 0.0
    dt = _THIN / max(densest, settings.density_threshold)
    single = CastSettings(dt, settings.density_threshold, 0.0, 0.0, samples_per_slab=1)
    known = points.isfinite().all(-1)
    directions = torch.zeros_like(points)
    directions[:, 2] = 1.0
    nears = torch.zeros_like(points[:, 0])
    fars = torch.where(known, 0.5 * dt, 0.0)
    origins = torch.where(known[:, None], points, 0.0)
    rays = Rays(origins, directions, nears, fars, image_width)
    out = cast(gaussians, torch.ones_like(gaussians.means), rays, single)
    return -torch.log1p(-out.rgb[:, 0]) / dt


@torch.no_grad()
def expected_normals(gaussians: Gaussians, rays: Rays, settings: CastSettings, shift: float) -> Tensor:
    """Normals [R, 3] of the surface of the expected distance, by `surface_normals`.

    Args:
        gaussians: the N Gaussians.
        rays: R rays.
        settings: how rays are sampled.
        shift: by how much they are moved aside (length).
    """
    black = torch.zeros_like(gaussians.means)

    def distance_of(origins: Tensor, directions: Tensor) -> Tensor:
        moved = Rays(origins, directions, rays.nears.repeat(4), rays.fars.repeat(4), rays.image_width)
        out = cast(gaussians, black, moved, settings)
        return out.depth / (1.0 - out.transmittance).clamp_min(math.sqrt(torch.finfo(out.depth.dtype).tiny))

    return surface_normals(distance_of, rays.origins, rays.directions, shift)


def extra_outputs(
    gaussians: Gaussians,
    rays: Rays,
    settings: CastSettings,
    plane: SlicePlane,
    rendered: Mapping[str, Tensor],
    unit: float,
) -> dict[str, Extra]:
    """What can be looked up beside colour, depth and accumulation; costs nothing until then.

    Args:
        gaussians: the N Gaussians.
        rays: R rays, of which `rendered` was rendered.
        settings: how rays are sampled.
        plane: where `density_slice` lies.
        rendered: "accumulation" [*, 1], whose shape is that of what is returned.
        unit: length u (scene units).

    Returns:
        "normals" [*, 3] as colours in [0, 1]; "density_slice" [*, 1], the density (1/u) where a ray meets the plane, 0
        where it does not.
    """
    shape, accumulation = rendered["accumulation"].shape[:-1], rendered["accumulation"].reshape(-1)

    def normals() -> Tensor:
        found = expected_normals(gaussians, rays, settings, _NORMAL_SHIFT * unit)
        return normal_picture(found, accumulation).view(*shape, 3)

    def density_slice() -> Tensor:
        distances = plane.distances(rays.origins, rays.directions)
        distances = torch.where((distances >= rays.nears) & (distances < rays.fars), distances, torch.inf)
        points = rays.origins + distances[:, None] * rays.directions
        return (densities_at(gaussians, points, settings, rays.image_width) * unit).view(*shape, 1)

    return {"normals": Extra(normals, 3), "density_slice": Extra(density_slice)}
