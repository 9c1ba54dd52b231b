"""What the kernels need of each Gaussian and of each ray, and the way back to the parameters: one kernel for each.

`types.whitening_matrices`, `hierarchy` and `moments`, with their formulas, are what these kernels are tested against.
As operations of PyTorch they took 300 launches in a training step, each of which reads and writes all Gaussians.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.packets import load_vector
from raygauss_ns.casting.types import MOST_SAMPLES, CastSettings, Rays

_BLOCK, _WARPS = 128, 4
BROKEN = tl.constexpr(-2)
"""In the place of a ray's end: its direction is not of unit length."""


@triton.jit
def _finite(x: ty.Lanes) -> ty.Lanes:
    return tl.abs(x) < float("inf")


@triton.jit
def _all_finite(v: ty.Vector) -> ty.Lanes:
    return _finite(v[0]) & _finite(v[1]) & _finite(v[2])


@triton.jit
def _unit_quaternion(at: ty.Pointer, valid: ty.Lanes) -> tuple[ty.Lanes, ty.Vector, ty.Lanes, ty.Lanes]:
    """w, (x, y, z), the factor that normalises, and whether it is the inverse length (else the length is all but 0)."""
    w = tl.load(at, mask=valid, other=1.0)
    x, y, z = load_vector(at + 1, valid, 0.0)
    length = tl.sqrt(w * w + x * x + y * y + z * z)
    inverse = 1.0 / tl.maximum(length, 1e-12)
    return w * inverse, (x * inverse, y * inverse, z * inverse), inverse, length > 1e-12


@triton.jit
def _whitening(w: ty.Lanes, v: ty.Vector, scale: ty.Vector) -> tuple[ty.Vector, ty.Vector, ty.Vector]:
    """The rows of A = diag(1/s) R^T."""
    x, y, z = v
    a, b, c = 1.0 / scale[0], 1.0 / scale[1], 1.0 / scale[2]
    return (
        ((1 - 2 * (y * y + z * z)) * a, 2 * (x * y + w * z) * a, 2 * (x * z - w * y) * a),
        (2 * (x * y - w * z) * b, (1 - 2 * (x * x + z * z)) * b, 2 * (y * z + w * x) * b),
        (2 * (x * z + w * y) * c, 2 * (y * z - w * x) * c, (1 - 2 * (x * x + y * y)) * c),
    )


@triton.jit
def _row_over_square(row: ty.Vector) -> ty.Vector:
    """A row of A over its square: s R^T."""
    inverse = 1.0 / (row[0] * row[0] + row[1] * row[1] + row[2] * row[2])
    return row[0] * inverse, row[1] * inverse, row[2] * inverse


@triton.jit
def _store_vector(at: ty.Pointer, value: ty.Vector, kept: ty.Lanes, valid: ty.Lanes) -> None:
    """Three consecutive floats per lane, 0 where they are not kept."""
    tl.store(at, tl.where(kept, value[0], 0.0), mask=valid)
    tl.store(at + 1, tl.where(kept, value[1], 0.0), mask=valid)
    tl.store(at + 2, tl.where(kept, value[2], 0.0), mask=valid)


@triton.jit(do_not_specialize=["number"])
def supports_kernel(
    means: ty.Pointer,
    scales: ty.Pointer,
    quats: ty.Pointer,
    densities: ty.Pointer,
    colors: ty.Pointer,
    records: ty.Pointer,
    corners: ty.Pointer,
    cutoffs: ty.Pointer,
    boxes: ty.Pointer,
    number: ty.Scalar,
    eps: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """Records, corners of supports and squared cutoffs of a block of Gaussians, and the box around their means.

    Writes records [N, 16], corners [N, 6] (the lower ones, then the upper ones negated), squared cutoffs [N] and, for
    each program, boxes [6] like the corners; infinite if no Gaussian is alive.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    mean = load_vector(means + 3 * i, valid, 0.0)
    scale = load_vector(scales + 3 * i, valid, 0.0)
    color = load_vector(colors + 3 * i, valid, 0.0)
    density = tl.load(densities + i, mask=valid, other=0.0)
    w, v, inverse, _ = _unit_quaternion(quats + 4 * i, valid)
    rows = _whitening(w, v, scale)
    finite = _all_finite(mean) & _all_finite(scale) & _all_finite(color) & _finite(density)
    finite &= _all_finite((1.0 / scale[0], 1.0 / scale[1], 1.0 / scale[2]))
    finite &= _finite(w) & _all_finite(v) & (inverse > 0.0)  # 0: the length is infinite
    squared = 2.0 * tl.log(density / eps)
    p, q, r = _row_over_square(rows[0]), _row_over_square(rows[1]), _row_over_square(rows[2])
    # Padded by more than float32's rounding error: a box never cuts what the exact test would keep.
    half = (
        tl.sqrt(squared * (p[0] * p[0] + q[0] * q[0] + r[0] * r[0])) * 1.0001 + 1e-6 * (1.0 + tl.abs(mean[0])),
        tl.sqrt(squared * (p[1] * p[1] + q[1] * q[1] + r[1] * r[1])) * 1.0001 + 1e-6 * (1.0 + tl.abs(mean[1])),
        tl.sqrt(squared * (p[2] * p[2] + q[2] * q[2] + r[2] * r[2])) * 1.0001 + 1e-6 * (1.0 + tl.abs(mean[2])),
    )
    alive = valid & finite & (density > eps) & (squared > 0.0) & _finite(color[0] + color[1] + color[2])
    alive &= _all_finite(half)
    to = records + 16 * i
    _store_vector(to, mean, finite, valid)
    _store_vector(to + 3, rows[0], finite, valid)
    _store_vector(to + 6, rows[1], finite, valid)
    _store_vector(to + 9, rows[2], finite, valid)
    tl.store(to + 12, tl.where(finite, density, 0.0), mask=valid)
    _store_vector(to + 13, color, finite, valid)
    tl.store(cutoffs + i, tl.where(alive, squared * 1.00001 + 1e-6, -1.0), mask=valid)
    box = boxes + 6 * tl.program_id(0)
    for axis in tl.static_range(3):
        at = corners + 6 * i + axis
        tl.store(at, tl.where(alive, mean[axis] - half[axis], 3e38), mask=valid)
        tl.store(at + 3, tl.where(alive, -(mean[axis] + half[axis]), 3e38), mask=valid)
        tl.store(box + axis, tl.min(tl.where(alive, mean[axis], float("inf")), 0))
        tl.store(box + axis + 3, tl.min(tl.where(alive, -mean[axis], float("inf")), 0))


@triton.jit(do_not_specialize=["number"])
def geometry_gradient_kernel(
    sums: ty.Pointer,
    order: ty.Pointer,
    records: ty.Pointer,
    cutoffs: ty.Pointer,
    scales: ty.Pointer,
    quats: ty.Pointer,
    of_means: ty.Pointer,
    of_scales: ty.Pointer,
    of_quats: ty.Pointer,
    of_densities: ty.Pointer,
    of_colors: ty.Pointer,
    number: ty.Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """From the moments of a block of records (`casting.moments`) to the gradients of their Gaussians' parameters."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    to = tl.load(order + i, mask=valid, other=0)
    alive = valid & (tl.load(cutoffs + i, mask=valid, other=-1.0) >= 0.0)
    at, whitening = sums + 16 * i, records + 16 * i + 3
    m0 = tl.load(at, mask=alive, other=0.0)
    y1 = load_vector(at + 1, alive, 0.0)
    xx, xy, xz = load_vector(at + 4, alive, 0.0)
    yy, yz, zz = load_vector(at + 7, alive, 0.0)
    _store_vector(of_colors + 3 * to, load_vector(at + 10, alive, 0.0), alive, valid)
    density = tl.load(records + 16 * i + 12, mask=alive, other=1.0)
    tl.store(of_densities + to, tl.where(m0 != 0.0, m0 / density, 0.0), mask=valid)
    mx, my, mz = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    # dL/dR^T, by rows. Of a record that is culled, everything here is 0.
    for axis in tl.static_range(3):
        a, b, c = load_vector(whitening + 3 * axis, alive, 0.0)
        along = a * y1[0] + b * y1[1] + c * y1[2]
        mx += a * along
        my += b * along
        mz += c * along
    _store_vector(of_means + 3 * to, (mx, my, mz), alive, valid)
    p, by_p = _row_gradient(whitening, scales + 3 * to, alive, xx, xy, xz, yy, yz, zz)
    q, by_q = _row_gradient(whitening + 3, scales + 3 * to + 1, alive, xx, xy, xz, yy, yz, zz)
    r, by_r = _row_gradient(whitening + 6, scales + 3 * to + 2, alive, xx, xy, xz, yy, yz, zz)
    _store_vector(of_scales + 3 * to, (by_p, by_q, by_r), alive, valid)
    w, v, inverse, projects = _unit_quaternion(quats + 4 * to, alive)
    x, y, z = v
    gw = 2.0 * (z * (p[1] - q[0]) + y * (r[0] - p[2]) + x * (q[2] - r[1]))
    gx = 2.0 * (y * (p[1] + q[0]) + z * (p[2] + r[0]) + w * (q[2] - r[1])) - 4.0 * x * (q[1] + r[2])
    gy = 2.0 * (x * (p[1] + q[0]) + z * (q[2] + r[1]) + w * (r[0] - p[2])) - 4.0 * y * (p[0] + r[2])
    gz = 2.0 * (x * (p[2] + r[0]) + y * (q[2] + r[1]) + w * (p[1] - q[0])) - 4.0 * z * (p[0] + q[1])
    along = tl.where(projects, w * gw + x * gx + y * gy + z * gz, 0.0)
    tl.store(of_quats + 4 * to, tl.where(alive, (gw - w * along) * inverse, 0.0), mask=valid)
    turned = ((gx - x * along) * inverse, (gy - y * along) * inverse, (gz - z * along) * inverse)
    _store_vector(of_quats + 4 * to + 1, turned, alive, valid)


@triton.jit
def _row_gradient(
    at: ty.Pointer,
    scale_at: ty.Pointer,
    alive: ty.Lanes,
    xx: ty.Lanes,
    xy: ty.Lanes,
    xz: ty.Lanes,
    yy: ty.Lanes,
    yz: ty.Lanes,
    zz: ty.Lanes,
) -> tuple[ty.Vector, ty.Lanes]:
    """The gradient of a row of R^T and of its scale, from dL/dA = -A Y2."""
    a, b, c = load_vector(at, alive, 0.0)
    inverse = 1.0 / tl.load(scale_at, mask=alive, other=1.0)
    p = -(a * xx + b * xy + c * xz)
    q = -(a * xy + b * yy + c * yz)
    r = -(a * xz + b * yz + c * zz)
    return (p * inverse, q * inverse, r * inverse), -(p * a + q * b + r * c) * inverse


@triton.jit(do_not_specialize=["number", "origin_stride", "axis_stride", "near_stride", "far_stride"])
def rays_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    nears: ty.Pointer,
    fars: ty.Pointer,
    origin_stride: ty.Scalar,
    axis_stride: ty.Scalar,
    near_stride: ty.Scalar,
    far_stride: ty.Scalar,
    out_origins: ty.Pointer,
    out_nears: ty.Pointer,
    out_ends: ty.Pointer,
    number: ty.Scalar,
    step: ty.Scalar,
    step_rest: ty.Scalar,
    offset: ty.Scalar,
    reach: ty.Scalar,
    most: ty.Scalar,
    GROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Where a block of rays begins and ends: `types.sample_counts` or, if the step grows, `types.far_ends`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < number
    for axis in tl.static_range(3):
        coordinate = tl.load(origins + i * origin_stride + axis * axis_stride, mask=valid, other=0.0)
        tl.store(out_origins + 3 * i + axis, coordinate, mask=valid)
    d = load_vector(directions + 3 * i, valid, 1.0)
    unit = tl.abs(tl.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) - 1.0) < 1e-3
    near = tl.load(nears + i * near_stride, mask=valid, other=0.0)
    far = tl.load(fars + i * far_stride, mask=valid, other=0.0)
    if GROWS:
        some = near < far
        end = tl.where(some, tl.minimum(far, near + reach), -1.0)
        near = tl.where(some, near, 0.0)
    else:
        # In float64, so that back ends of different precision march the same samples.
        exact = tl.zeros([BLOCK], tl.float64) + step + step_rest
        steps = tl.ceil((far.to(tl.float64) - near.to(tl.float64)) / exact - offset)
        steps = tl.where(steps == steps, steps, 0.0)  # infinity less infinity
        end = tl.minimum(tl.maximum(steps, 0.0), most).to(tl.int32)
    tl.store(out_nears + i, near, mask=valid)
    tl.store(out_ends + i, tl.where(unit, end, BROKEN), mask=valid)


class Supports(NamedTuple):
    """N Gaussians in their own order, as `supports_kernel` writes them; and the box of the means of those alive."""

    records: Tensor
    corners: Tensor
    cutoffs: Tensor
    box: Tensor


def supports(parameters: tuple[Tensor, ...], density_threshold: float) -> Supports:
    """What the hierarchy is built of.

    Args:
        parameters: means [N, 3], scales [N, 3], quats [N, 4], densities [N] and colours [N, 3], float32, contiguous.
        density_threshold: eps (1/length).
    """
    means = parameters[0]
    number = len(means)
    programs = triton.cdiv(number, _BLOCK)
    shapes = (number, 16), (number, 6), (number,), (programs, 6)
    found = Supports(*(means.new_empty(shape) for shape in shapes))
    supports_kernel[(programs,)](*parameters, *found, number, density_threshold, BLOCK=_BLOCK, num_warps=_WARPS)
    return found._replace(box=found.box.amin(0))


def geometry_gradients(
    sums: Tensor, order: Tensor, records: Tensor, cutoffs: Tensor, scales: Tensor, quats: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of means, scales, quats, densities and colours.

    Args:
        sums: [N, 16] the moments by record; the last three are not used.
        order: [N] of each record its Gaussian.
        records: [N, 16] in that order.
        cutoffs: [N] likewise.
        scales: [N, 3] in the Gaussians' own order.
        quats: [N, 4] likewise.
    """
    number = len(scales)
    shapes = (number, 3), (number, 3), (number, 4), (number,), (number, 3)
    gradients = tuple(sums.new_empty(shape) for shape in shapes)
    inputs = (sums, order, records, cutoffs, scales, quats)
    geometry_gradient_kernel[(triton.cdiv(number, _BLOCK),)](
        *inputs, *gradients, number, BLOCK=_BLOCK, num_warps=_WARPS
    )
    return gradients


def ray_ends(rays: Rays, settings: CastSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origins [R, 3], directions [R, 3], nears [R] and ends [R] of R > 0 rays, as `launch.GpuRays` has them.

    A ray whose direction is not of unit length ends at `BROKEN`, where the kernels march no sample and return NaN.
    """
    origins, directions, nears, fars = (tensor.detach().float() for tensor in rays[:4])
    directions = directions.contiguous()
    number, step = len(directions), np.float32(settings.step)
    starts, firsts = torch.empty_like(directions), directions.new_empty(number)
    ends = firsts.new_empty(number, dtype=torch.float32 if settings.grows else torch.int32)
    bounded = settings.step_growth == 0 or settings.max_step > 0
    reach = MOST_SAMPLES * max(settings.step, settings.max_step) if bounded else float("inf")
    rays_kernel[(triton.cdiv(number, _BLOCK),)](
        *(origins, directions, nears, fars, *origins.stride(), nears.stride(0), fars.stride(0)),
        *(starts, firsts, ends, number, float(step), settings.step - float(step), settings.sample_offset),
        *(reach, float(MOST_SAMPLES)),
        GROWS=settings.grows,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return starts, directions, firsts, ends
