"""Fits splats to ray-cast images, so that a viewer of splats shows what ray casting shows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from raygauss_ns.splatting.api import splat
from raygauss_ns.splatting.projection import LOW_PASS, Splats
from raygauss_ns.splatting.targets import Camera, Scene, Target, Targets

_RATES = {
    "means": 2e-3,
    "log_scales": 4e-2,
    "quats": 2e-2,
    "logits": 2e-1,
    "sh_base": 4e-2,
    "sh_rest": 8e-3,
}
"""Learning rates of Adam at the start; that of the means is in units of u."""
_FINAL = 0.03
"""Fraction of them at the end; they fall exponentially."""
_LEAST_VARIANCE = 0.04
"""Fraction of a splat's variances that is left when what viewers add has been taken from them."""
_WINDOW = {"cpu": 160, "cuda": 1024}
"""Side of the windows that a step sees, at most (pixels)."""
_CHECKED = 8
"""Views between cameras that are kept apart to judge by."""


class Fit(NamedTuple):
    """What came of a fit.

    Attributes:
        splats: the fitted ones.
        steps: of the optimiser.
        images: that were cast.
        before: PSNR of the splatted against the ray-cast image at the start (dB), the mean over views that the fit has
            not seen.
        after: the same at the end.
    """

    splats: Splats
    steps: int
    images: int
    before: float
    after: float


def fit_splats(
    splats: Splats,
    scene: Scene,
    cameras: Sequence[Camera],
    seconds: float,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Fit:
    """Fit splats to ray-cast images of a scene.

    Begins with the variance that viewers add taken from the splats (`sharpened`). Every step compares a window of one
    image, before a random background, so that opacities are fitted too.

    Args:
        splats: to start from, on the device to compute on.
        scene: what they are to look like, on that device.
        cameras: the training cameras, as pinholes; at least one.
        seconds: time for the fit.
        seed: of what is drawn at random.
        stopped: asked before every step; True ends the fit early.
    """
    device = splats.means.device
    targets = Targets(scene, cameras, _WINDOW[device.type], seed)
    checked = [targets.cast(targets.between_cameras(), whole=True) for _ in range(_CHECKED)]
    before = mean_psnr(splats, checked)
    fitted = Splats(*(value.detach().clone().requires_grad_() for value in sharpened(splats, cameras)))
    rates = {**_RATES, "means": _RATES["means"] * scene.cloud.unit}
    groups = [{"params": [getattr(fitted, name)], "lr": rate, "start": rate} for name, rate in rates.items()]
    optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)
    generator = torch.Generator().manual_seed(seed)
    begin, steps = time.perf_counter(), 0
    while (passed := (time.perf_counter() - begin) / seconds) < 1 and not stopped():
        for group in optimizer.param_groups:
            group["lr"] = group["start"] * math.exp(passed * math.log(_FINAL))
        background = torch.rand(3, generator=generator).to(device)
        target = targets.draw()
        image = splat(fitted, target.view, background)
        # Unlike photographs, ray-cast images have no noise and no outliers that a mean square would follow.
        loss = (image - target.before(background)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    done = Splats(*(value.detach() for value in fitted))
    return Fit(done, steps, targets.count, before, mean_psnr(done, checked))


@torch.no_grad()
def sharpened(splats: Splats, cameras: Sequence[Camera]) -> Splats:
    """Splats without the variance that viewers add to them on the image, as far as they have it.

    On the image of a pinhole of focal length f at the distance d, v square pixels are v (d / f)^2 in the scene:

        s'^2 = max(s^2 - 0.3 p^2, 0.04 s^2),    p = the mean of d / f over the cameras.

    Args:
        splats: N.
        cameras: for whose images they are; at least one.
    """
    sizes = torch.zeros_like(splats.logits)
    for camera in cameras:
        center = camera.camera_to_world[:, 3].to(splats.means)
        focal = math.sqrt(float(camera.lens.fx) * float(camera.lens.fy))
        sizes += torch.linalg.vector_norm(splats.means - center, dim=-1) / (focal * len(cameras))
    variances = (2 * splats.log_scales).exp()
    left = (variances - LOW_PASS * sizes[:, None] ** 2).maximum(_LEAST_VARIANCE * variances)
    return splats._replace(log_scales=0.5 * left.log())


@torch.no_grad()
def mean_psnr(splats: Splats, targets: Sequence[Target]) -> float:
    """PSNR (dB) of splatted against ray-cast images, before white, averaged over the images."""
    white = torch.ones(3, device=splats.means.device)
    errors = [(splat(splats, t.view, white) - t.before(white)).clamp(-1, 1).square().mean() for t in targets]
    return float(-10 * torch.log10(torch.stack(errors).clamp_min(1e-12)).mean())
