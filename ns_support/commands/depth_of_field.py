"""Images through a lens of finite aperture, of any model that renders along `camera_rays`: depth of field.

The image is the mean of images from points of the lens, each along exact rays (`ns_support.lenses.thin_lens`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from ns_support.errors import UserError, require
from ns_support.help import documented
from ns_support.lenses.thin_lens import lens_points
from ns_support.rays import at_lens_point, lens_of


@documented
@dataclass
class LensOptions:
    """The lens that images are rendered through."""

    aperture: float = 0.0
    """Diameter of the lens (scene units), >= 0; 0: a pinhole, with which everything is sharp."""
    focus_distance: float | None = None
    """What is this far from the camera is sharp (scene units), > half of the aperture: along the viewing axis with
    perspective cameras and orthophotos, along each ray with fisheyes and panoramas. Needed with an aperture > 0."""
    lens_samples: int = 64
    """Images that each image is the mean of, >= 1: too few show copies of what is out of focus."""
    lens_seed: int = 0
    """Of the points of the lens, >= 0; they are the same in all images."""

    def check_lens(self) -> None:
        """Refuse what is out of range.

        Raises:
            UserError: names the option and what it may be.
        """
        require("--aperture", 0 <= self.aperture < math.inf, ">= 0 scene units", self.aperture)
        require("--lens-samples", self.lens_samples >= 1, ">= 1", self.lens_samples)
        require("--lens-seed", 0 <= self.lens_seed < 2**63, ">= 0 and < 2^63", self.lens_seed)
        focus = self.focus_distance
        if focus is not None:
            require("--focus-distance", 0 < focus < math.inf, "> 0 scene units", focus)
            wanted = f"> half of --aperture {self.aperture:g}"
            require("--focus-distance", focus > 0.5 * self.aperture, wanted, focus)
        elif self.aperture > 0:
            raise UserError(
                "--aperture needs --focus-distance, the distance from the camera that is to be sharp (scene units)."
            )


def look_through(model: Any, lens: LensOptions) -> None:
    """Let a model render a camera's image through a lens from now on; without an aperture, it stays as it is.

    Args:
        model: renders with `get_outputs_for_camera` along the rays of `camera_rays`. Of its outputs, "rgb" is seen
            through the lens, and so is what `get_rgba_image` makes of it; all others stay those of the pinhole.
        lens: the lens.

    Raises:
        UserError: an option of the lens is out of range.
    """
    lens.check_lens()
    if lens.aperture > 0:
        through = _ThroughLens(lens, model.get_outputs_for_camera, model.get_rgba_image)
        model.get_outputs_for_camera, model.get_rgba_image = through.outputs, through.rgba


class _ThroughLens:
    """What replaces two methods of a model."""

    def __init__(
        self,
        lens: LensOptions,
        render: Callable[..., MutableMapping[str, Tensor]],
        cut_out: Callable[..., Tensor],
    ) -> None:
        self._lens, self._render, self._cut_out = lens, render, cut_out
        self._latest: tuple[MutableMapping[str, Tensor] | None, Tensor | None] = None, None

    @torch.no_grad()
    def outputs(self, camera: Cameras, obb_box: OrientedBox | None = None) -> MutableMapping[str, Tensor]:
        """The outputs of a camera's image, of which "rgb" is the mean in linear light."""
        lens, focus = self._lens, self._lens.focus_distance
        assert focus is not None
        outputs = self._render(camera, obb_box=obb_box)
        color, cut_out = torch.zeros(2, *outputs["rgb"].shape, dtype=torch.float64, device=outputs["rgb"].device)
        alpha = torch.zeros_like(color[..., :1])
        points = lens_points(lens_of(camera).kind, lens.aperture, focus, lens.lens_samples, lens.lens_seed)
        for point in points:
            seen = self._render(at_lens_point(camera, point), obb_box=obb_box)
            rgba = self._cut_out(outputs=seen, output_name="rgb").double()
            color += linear_light(seen["rgb"].double())
            cut_out += rgba[..., 3:] * linear_light(rgba[..., :3])
            alpha += rgba[..., 3:]
        outputs["rgb"] = display_values(color / len(points)).float()
        visible = torch.where(alpha > 0, cut_out / alpha.clamp_min(1e-12), 0.0)
        self._latest = outputs, torch.cat([display_values(visible), alpha / len(points)], -1).float()
        return outputs

    def rgba(self, outputs: MutableMapping[str, Tensor], output_name: str = "rgb") -> Tensor:
        """The latest image without its background, colours being weighted by their opacity, or what the model says."""
        latest, rgba = self._latest
        if outputs is latest and output_name == "rgb" and rgba is not None:
            return rgba
        return self._cut_out(outputs=outputs, output_name=output_name)


def linear_light(values: Tensor) -> Tensor:
    """Linear light in [0, 1] of colours as photographs have them: IEC 61966-2-1 (sRGB), of values cut to [0, 1]."""
    values = values.clamp(0.0, 1.0)
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def display_values(light: Tensor) -> Tensor:
    """The inverse of `linear_light`."""
    light = light.clamp(0.0, 1.0)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
