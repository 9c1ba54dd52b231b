"""Fits splats to ray-cast images, so that a viewer of splats shows what ray casting shows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from raygauss_ns.gaussians.losses import photometric_loss
from raygauss_ns.splatting.api import splat
from raygauss_ns.splatting.projection import Splats
from raygauss_ns.splatting.targets import Camera, Scene, Target, Targets

_RATES = {
    "means": 1e-3,
    "log_scales": 2e-2,
    "quats": 1e-2,
    "logits": 1e-1,
    "sh_base": 2e-2,
    "sh_rest": 4e-3,
}
"""Learning rates of Adam at the start; that of the means is in units of u."""
_FINAL = 0.05
"""Fraction of them at the end; they fall exponentially."""
_WINDOW = {"cpu": 160, "cuda": 1024}
"""Side of the windows that a step sees, at most (pixels)."""
_CHECKED = 8
"""Views between cameras that are kept apart to judge by."""
_SSIM = 0.2


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

    Every step compares a window of one image, before a random background, so that opacities are fitted too.

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
    fitted = Splats(*(value.detach().clone().requires_grad_() for value in splats))
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
        loss = photometric_loss(image, target.before(background), _ssim_weight(target))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    done = Splats(*(value.detach() for value in fitted))
    return Fit(done, steps, targets.count, before, mean_psnr(done, checked))


def _ssim_weight(target: Target) -> float:
    return _SSIM if min(target.rgb.shape[:2]) >= 11 else 0.0


@torch.no_grad()
def mean_psnr(splats: Splats, targets: Sequence[Target]) -> float:
    """PSNR (dB) of splatted against ray-cast images, before white, averaged over the images."""
    white = torch.ones(3, device=splats.means.device)
    errors = [(splat(splats, t.view, white) - t.before(white)).clamp(-1, 1).square().mean() for t in targets]
    return float(-10 * torch.log10(torch.stack(errors).clamp_min(1e-12)).mean())
