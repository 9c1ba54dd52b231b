"""The definition: every sample of every ray against every Gaussian, in PyTorch, at any float precision.

Notation: Gaussian l has mean mu, A = diag(1/s) R^T, peak density sigma~ and colour c; ray r has samples t_k.

    f_l(x) = sigma~_l exp(-|A_l (x - mu_l)|^2 / 2) where that exceeds eps, else 0
    sigma = sum_l f_l,  E = sum_l f_l c_l,  x = sigma dt,  phi = (1 - e^-x) / x
    rgb = sum_k T_k dt phi_k E_k,  T_{k+1} = T_k e^-x_k,  depth = sum_k T_k (1 - e^-x_k) t_k

dt is the same everywhere, unless it grows from slab to slab of a ray as `ladder` has it; then dt_k in place of dt.
phi keeps the colour free of a division by sigma. A sample contributes only while T_k > transmittance_threshold.
Gradients come from autograd. Cost and memory grow with rays x samples x Gaussians: for tests and very small scenes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygauss_ns.casting.steps import ladder_of, step_lengths
from raygauss_ns.casting.types import CastSettings, RayOutputs, Rays, WhitenedGaussians


def absorbed_fraction(x: Tensor) -> Tensor:
    """phi(x) = (1 - e^-x) / x for x >= 0, with accurate values and gradients down to x = 0.

    Args:
        x: optical depth of a step, any shape.

    Returns:
        Same shape, 1 at x = 0.
    """
    small = x < 0.1  # where the direct form's gradient, a difference of terms of size 1 / x, loses digits in float32
    series, tiny = torch.ones_like(x), torch.where(small, x, 0.0)
    for n in range(11, 1, -1):
        series = 1 - tiny / n * series
    large = torch.where(small, 1.0, x)
    return torch.where(small, series, -torch.expm1(-large) / large)


@torch.no_grad()
def _passage(field: WhitenedGaussians, rays: Rays, settings: CastSettings) -> tuple[Tensor, Tensor]:
    """Distances [R] between which each ray may be within the sphere around all supports; infinite if there are none."""
    alive = field.densities > settings.density_threshold
    if not bool(alive.any()):
        nowhere = torch.full_like(rays.nears, torch.inf)
        return nowhere, -nowhere
    reach = torch.sqrt(2 * torch.log(field.densities[alive] / settings.density_threshold))
    radii = reach / torch.linalg.norm(field.whitenings[alive], dim=-1).amin(-1)
    lower = (field.means[alive] - radii[:, None]).amin(0)
    upper = (field.means[alive] + radii[:, None]).amax(0)
    center, radius = (lower + upper) / 2, torch.linalg.norm(upper - lower) / 2
    closest = ((center - rays.origins) * rays.directions).sum(-1)
    return closest - radius, closest + radius


@torch.no_grad()
def _sampled_range(field: WhitenedGaussians, rays: Rays, counts: Tensor, settings: CastSettings) -> tuple[int, int]:
    """First and one past the last sample index at which some ray may be within the sphere around all supports.

    Never empty: one sample that nothing reaches keeps the outputs in autograd's graph.
    """
    enter, leave = _passage(field, rays, settings)
    first = ((enter - rays.nears) / settings.step - settings.sample_offset).floor().clamp_min(0)
    last = ((leave - rays.nears) / settings.step - settings.sample_offset).ceil() + 1
    last = torch.minimum(last, counts.to(last.dtype))
    seen = first < last
    if not bool(seen.any()):
        return 0, 1
    return int(first[seen].min()), int(last[seen].max())


def _add_samples(
    so_far: RayOutputs,
    t: Tensor,
    dt: Tensor | float,
    exists: Tensor,
    field: WhitenedGaussians,
    rays: Rays,
    settings: CastSettings,
) -> RayOutputs:
    """Composite further samples at distances [R, K], with a step [R, 1] or one for all, behind what there is."""
    rgb, transmittance, depth = so_far
    points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
    whitened = torch.einsum("nij,rknj->rkni", field.whitenings, points[:, :, None] - field.means)
    f = field.densities * torch.exp(-(whitened**2).sum(-1) / 2)
    f = torch.where((f > settings.density_threshold) & exists[..., None], f, 0.0)
    x = f.sum(-1) * dt
    before = transmittance[:, None] * torch.exp(x - torch.cumsum(x, -1))
    live = before > settings.transmittance_threshold
    step_weight = torch.where(live, before * absorbed_fraction(x), 0.0)
    rgb = rgb + torch.einsum("rk,rkn,nc->rc", dt * step_weight, f, field.colors)
    depth = depth + (step_weight * x * t).sum(-1)
    transmittance = transmittance * torch.exp(-torch.where(live, x, 0.0).sum(-1))
    return RayOutputs(rgb, transmittance, depth)


def cast_reference(field: WhitenedGaussians, rays: Rays, ends: Tensor, settings: CastSettings) -> RayOutputs:
    """Cast R rays at N Gaussians; differentiable in the Gaussians.

    Args:
        field: the Gaussians.
        rays: the rays; where they end is in `ends`.
        ends: [R] number of samples of each ray (`sample_counts`) or, if the step grows, where it ends (`far_ends`).
        settings: how rays are sampled.

    Returns:
        Colour, transmittance and depth of each ray.
    """
    count = len(rays.origins)
    nothing = RayOutputs(rays.origins.new_zeros(count, 3), rays.origins.new_ones(count), rays.origins.new_zeros(count))
    if settings.grows:
        return _cast_growing(nothing, field, rays._replace(fars=ends), settings)
    outputs, dt = nothing, settings.step
    rays = rays._replace(nears=torch.where(ends > 0, rays.nears, 0.0))  # an empty ray may begin at infinity
    begin, end = _sampled_range(field, rays, ends, settings)
    for first in range(begin, end, settings.samples_per_slab):
        k = torch.arange(first, min(first + settings.samples_per_slab, end), device=rays.origins.device)
        t = rays.nears[:, None] + (k + settings.sample_offset) * dt
        outputs = _add_samples(outputs, t, dt, k < ends[:, None], field, rays, settings)
    return outputs


def _cast_growing(nothing: RayOutputs, field: WhitenedGaussians, rays: Rays, settings: CastSettings) -> RayOutputs:
    """As `cast_reference`, with a step for each ray and slab, as `ladder` has it."""
    ladder, nears, fars = ladder_of(settings), rays.nears, rays.fars
    k = torch.arange(ladder.samples, device=nears.device) + settings.sample_offset
    enter, leave = _passage(field, rays, settings)
    begins, limit = nears, torch.minimum(fars, leave)
    # One sample that nothing reaches keeps the outputs in autograd's graph.
    absent = torch.zeros(len(nears), 1, dtype=torch.bool, device=nears.device)
    outputs = _add_samples(nothing, nears[:, None], settings.step, absent, field, rays, settings)
    while True:
        through = outputs.transmittance.detach()
        marching = (begins < limit) & (through > settings.transmittance_threshold)
        if not bool(marching.any()):
            return outputs
        dt = step_lengths(begins, through, ladder)
        following = begins + ladder.samples * dt
        if bool((marching & (following > enter)).any()):
            t = begins[:, None] + k * dt[:, None]
            exists = marching[:, None] & (t < fars[:, None])
            outputs = _add_samples(outputs, t, dt[:, None], exists, field, rays, settings)
        begins = torch.where(marching, following, begins)
