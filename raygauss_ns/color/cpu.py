"""Colours on a CPU: `colors_reference` and its gradients as one Numba kernel each, 16 Gaussians per vector.

In PyTorch every product of the formula is a pass over memory, and autograd keeps each of them. Here a block of 16
Gaussians is transposed into a workspace that stays in the cache, one vector for each of its up to 87 numbers. The
backward pass recomputes the terms of the colours. With g = dL/dc, s_j = exp(lambda_j (u_j - 1)) and u_j = d . n_j:

    dL/da_j = s_j g,  dL/dlambda_j = (g . a_j) s_j (u_j - 1),  dL/du_j = (g . a_j) s_j lambda_j
    dL/dv_j = dL/du_j (d - u_j n_j) / |v_j|,  dL/dd = sum_i (g . k_i) grad Y_i + sum_j dL/du_j n_j
    dL/dmu = (dL/dd - d (d . dL/dd)) / |mu - o|
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray, IndexArray, float_array
from ns_support.kernels.harmonics import Y0, Y1, Y2
from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    exp,
    get,
    load,
    maximum,
    minimum,
    pointer,
    put,
    sqrt,
    store,
    where,
)

_A, _B, _C = Y2
_TINY = 1e-12
_MIN_ROWS_PER_THREAD = 2048
"""With fewer rows, waking a thread costs more than it saves."""

# Offsets of a Gaussian's numbers in the workspace, in vectors.
_MEAN, _BASE, _GRADIENT, _REST = 0, 3, 6, 9


@njit(cache=True, nogil=True)
def _gather(
    ws: Pointer, slot: int, source: Pointer, stride: int, count: int, rows: Pointer, first: int, last: int
) -> None:
    """Transpose `count` numbers of 16 rows into as many vectors; lanes beyond the last row repeat it."""
    for lane in range(LANES):
        row = get(rows, min(first + lane, last - 1)) * stride
        for j in range(count):
            put(ws, (slot + j) * LANES + lane, get(source, row + j))


@njit(cache=True, nogil=True)
def _scatter(
    ws: Pointer, slot: int, target: Pointer, stride: int, count: int, rows: Pointer, first: int, last: int
) -> None:
    for lane in range(min(LANES, last - first)):
        row = get(rows, first + lane) * stride
        for j in range(count):
            put(target, row + j, get(ws, (slot + j) * LANES + lane))


@njit(inline="always")
def _at(ws: Pointer, slot: int) -> Vector:
    return load(ws, slot * LANES)


@njit(inline="always")
def _set(ws: Pointer, slot: int, value: Vector) -> None:
    store(ws, slot * LANES, value)


@njit(inline="always")
def _set3(ws: Pointer, slot: int, x: Vector, y: Vector, z: Vector) -> None:
    _set(ws, slot, x)
    _set(ws, slot + 1, y)
    _set(ws, slot + 2, z)


@njit(inline="always")
def _softplus_and_slope(x: Vector) -> tuple[Vector, Vector]:
    """log(1 + e^x) and its derivative, relative error below 1e-6.

    max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 atanh(z), z = e / (2 + e) <= 1/3, by its Taylor series.
    """
    e = exp(minimum(x, -x))
    z = e / (e + 2.0)
    q = z * z
    p = q * (1.0 / 15.0) + (1.0 / 13.0)
    p = p * q + (1.0 / 11.0)
    p = p * q + (1.0 / 9.0)
    p = p * q + (1.0 / 7.0)
    p = p * q + (1.0 / 5.0)
    p = p * q + (1.0 / 3.0)
    p = p * q + 1.0
    slope = where(x > 0.0, 1.0, e) / (e + 1.0)
    return maximum(x, 0.0) + z * p * 2.0, slope


class Arrays(NamedTuple):
    """The parameters of N Gaussians' colours, or their gradients; shapes as in `ColorBasis`."""

    means: FloatArray
    base: FloatArray
    rest: FloatArray
    amplitudes: FloatArray
    sharpness: FloatArray
    axes: FloatArray


@njit(inline="always")
def _pointers(arrays: Arrays) -> tuple[Pointer, Pointer, Pointer, Pointer, Pointer, Pointer]:
    means, base, rest = pointer(arrays.means), pointer(arrays.base), pointer(arrays.rest)
    return means, base, rest, pointer(arrays.amplitudes), pointer(arrays.sharpness), pointer(arrays.axes)


@njit(inline="always")
def _harmonic(band: int, x: Vector, y: Vector, z: Vector) -> Vector:
    """The spherical harmonic of a number, beyond degree 0, along directions (x, y, z)."""
    if band == 0:
        value = y * -Y1
    elif band == 1:
        value = z * Y1
    elif band == 2:
        value = x * -Y1
    elif band == 3:
        value = x * y * _A
    elif band == 4:
        value = y * z * -_A
    elif band == 5:
        value = (z * z * 2.0 - x * x - y * y) * _B
    elif band == 6:
        value = x * z * -_A
    else:
        value = (x * x - y * y) * _C
    return value


@njit(cache=True, nogil=True)
def _forward(
    arrays: Arrays,
    center: FloatArray,
    rows: IndexArray,
    begin: int,
    end: int,
    workspace: FloatArray,
    colors: FloatArray,
) -> None:
    """Colours of the Gaussians rows[begin:end]."""
    bands, lobes = arrays.rest.shape[1], arrays.sharpness.shape[1]
    ws, index, p_colors = pointer(workspace), pointer(rows), pointer(colors)
    p_means, p_base, p_rest, p_amplitudes, p_sharpness, p_axes = _pointers(arrays)
    ox, oy, oz = center[0], center[1], center[2]
    at_a = _REST + 3 * bands
    at_l, at_v = at_a + 3 * lobes, at_a + 4 * lobes
    for first in range(begin, end, LANES):
        _gather(ws, _MEAN, p_means, 3, 3, index, first, end)
        _gather(ws, _BASE, p_base, 3, 3, index, first, end)
        _gather(ws, _REST, p_rest, 3 * bands, 3 * bands, index, first, end)
        x, y, z = _at(ws, _MEAN) - ox, _at(ws, _MEAN + 1) - oy, _at(ws, _MEAN + 2) - oz
        scale = 1.0 / maximum(sqrt(x * x + y * y + z * z), _TINY)
        x, y, z = x * scale, y * scale, z * scale
        r = _at(ws, _BASE) * Y0 + 0.5
        g = _at(ws, _BASE + 1) * Y0 + 0.5
        b = _at(ws, _BASE + 2) * Y0 + 0.5
        for i in range(bands):
            value = _harmonic(i, x, y, z)
            slot = _REST + 3 * i
            r, g, b = r + _at(ws, slot) * value, g + _at(ws, slot + 1) * value, b + _at(ws, slot + 2) * value
        if lobes > 0:
            _gather(ws, at_a, p_amplitudes, 3 * lobes, 3 * lobes, index, first, end)
            _gather(ws, at_l, p_sharpness, lobes, lobes, index, first, end)
            _gather(ws, at_v, p_axes, 3 * lobes, 3 * lobes, index, first, end)
        for j in range(lobes):
            vx, vy, vz = _at(ws, at_v + 3 * j), _at(ws, at_v + 3 * j + 1), _at(ws, at_v + 3 * j + 2)
            u = (vx * x + vy * y + vz * z) / maximum(sqrt(vx * vx + vy * vy + vz * vz), _TINY)
            sharp, _ = _softplus_and_slope(_at(ws, at_l + j))
            value = exp(sharp * (u - 1.0))
            slot = at_a + 3 * j
            r, g, b = r + _at(ws, slot) * value, g + _at(ws, slot + 1) * value, b + _at(ws, slot + 2) * value
        _set3(ws, _BASE, r, g, b)
        _scatter(ws, _BASE, p_colors, 3, 3, index, first, end)


@njit(inline="always")
def _lobe_gradients(
    ws: Pointer, at_a: int, at_l: int, at_v: int, x: Vector, y: Vector, z: Vector, r: Vector, g: Vector, b: Vector
) -> tuple[Vector, Vector, Vector]:
    """Replace one lobe's parameters by their gradients, and return its part of dL/dd."""
    vx, vy, vz = _at(ws, at_v), _at(ws, at_v + 1), _at(ws, at_v + 2)
    scale = 1.0 / maximum(sqrt(vx * vx + vy * vy + vz * vz), _TINY)
    vx, vy, vz = vx * scale, vy * scale, vz * scale
    u = vx * x + vy * y + vz * z
    sharp, slope = _softplus_and_slope(_at(ws, at_l))
    value = exp(sharp * (u - 1.0))
    h = (r * _at(ws, at_a) + g * _at(ws, at_a + 1) + b * _at(ws, at_a + 2)) * value
    du = h * sharp
    _set3(ws, at_a, r * value, g * value, b * value)
    _set(ws, at_l, h * (u - 1.0) * slope)
    _set3(ws, at_v, du * (x - vx * u) * scale, du * (y - vy * u) * scale, du * (z - vz * u) * scale)
    return du * vx, du * vy, du * vz


@njit(inline="always")
def _band_gradient(ws: Pointer, band: int, value: Vector, r: Vector, g: Vector, b: Vector) -> Vector:
    """Replace a harmonic's coefficients by their gradients, and return g . k."""
    slot = _REST + 3 * band
    product = r * _at(ws, slot) + g * _at(ws, slot + 1) + b * _at(ws, slot + 2)
    _set3(ws, slot, r * value, g * value, b * value)
    return product


@njit(cache=True, nogil=True)
def _backward(
    arrays: Arrays,
    center: FloatArray,
    gradient: FloatArray,
    rows: IndexArray,
    begin: int,
    end: int,
    workspace: FloatArray,
    targets: Arrays,
) -> None:
    """Gradients of the Gaussians rows[begin:end]; the other rows of the targets are not changed."""
    bands, lobes = arrays.rest.shape[1], arrays.sharpness.shape[1]
    ws, index, p_gradient = pointer(workspace), pointer(rows), pointer(gradient)
    p_means, _, p_rest, p_amplitudes, p_sharpness, p_axes = _pointers(arrays)
    q_means, q_base, q_rest, q_amplitudes, q_sharpness, q_axes = _pointers(targets)
    ox, oy, oz = center[0], center[1], center[2]
    at_a = _REST + 3 * bands
    at_l, at_v = at_a + 3 * lobes, at_a + 4 * lobes
    for first in range(begin, end, LANES):
        _gather(ws, _MEAN, p_means, 3, 3, index, first, end)
        _gather(ws, _GRADIENT, p_gradient, 3, 3, index, first, end)
        _gather(ws, _REST, p_rest, 3 * bands, 3 * bands, index, first, end)
        x, y, z = _at(ws, _MEAN) - ox, _at(ws, _MEAN + 1) - oy, _at(ws, _MEAN + 2) - oz
        length = sqrt(x * x + y * y + z * z)
        scale = 1.0 / maximum(length, _TINY)
        x, y, z = x * scale, y * scale, z * scale
        r, g, b = _at(ws, _GRADIENT), _at(ws, _GRADIENT + 1), _at(ws, _GRADIENT + 2)
        _set3(ws, _BASE, r * Y0, g * Y0, b * Y0)
        dx, dy, dz = x * 0.0, y * 0.0, z * 0.0
        if bands >= 3:
            dy = dy - _band_gradient(ws, 0, y * -Y1, r, g, b) * Y1
            dz = dz + _band_gradient(ws, 1, z * Y1, r, g, b) * Y1
            dx = dx - _band_gradient(ws, 2, x * -Y1, r, g, b) * Y1
        if bands >= 8:
            q = _band_gradient(ws, 3, x * y * _A, r, g, b) * _A
            dx, dy = dx + y * q, dy + x * q
            q = _band_gradient(ws, 4, y * z * -_A, r, g, b) * -_A
            dy, dz = dy + z * q, dz + y * q
            q = _band_gradient(ws, 5, (z * z * 2.0 - x * x - y * y) * _B, r, g, b) * (2.0 * _B)
            dx, dy, dz = dx - x * q, dy - y * q, dz + z * q * 2.0
            q = _band_gradient(ws, 6, x * z * -_A, r, g, b) * -_A
            dx, dz = dx + z * q, dz + x * q
            q = _band_gradient(ws, 7, (x * x - y * y) * _C, r, g, b) * (2.0 * _C)
            dx, dy = dx + x * q, dy - y * q
        if lobes > 0:
            _gather(ws, at_a, p_amplitudes, 3 * lobes, 3 * lobes, index, first, end)
            _gather(ws, at_l, p_sharpness, lobes, lobes, index, first, end)
            _gather(ws, at_v, p_axes, 3 * lobes, 3 * lobes, index, first, end)
            for j in range(lobes):
                lx, ly, lz = _lobe_gradients(ws, at_a + 3 * j, at_l + j, at_v + 3 * j, x, y, z, r, g, b)
                dx, dy, dz = dx + lx, dy + ly, dz + lz
            _scatter(ws, at_a, q_amplitudes, 3 * lobes, 3 * lobes, index, first, end)
            _scatter(ws, at_l, q_sharpness, lobes, lobes, index, first, end)
            _scatter(ws, at_v, q_axes, 3 * lobes, 3 * lobes, index, first, end)
        along = x * dx + y * dy + z * dz
        scale = where(length > _TINY, scale, 0.0)  # for a Gaussian at the camera's centre d is undefined
        _set3(ws, _MEAN, (dx - x * along) * scale, (dy - y * along) * scale, (dz - z * along) * scale)
        _scatter(ws, _MEAN, q_means, 3, 3, index, first, end)
        _scatter(ws, _BASE, q_base, 3, 3, index, first, end)
        _scatter(ws, _REST, q_rest, 3 * bands, 3 * bands, index, first, end)


def _on_threads(kernel: Any, before: list[Any], rows: IndexArray, after: list[Any], vectors: int) -> None:
    """Run a kernel over all rows; each thread takes a range of whole blocks and has its own workspace."""
    blocks = -(-len(rows) // LANES)
    threads = max(min(num_threads(), len(rows) // _MIN_ROWS_PER_THREAD), 1)

    def work(thread: int, count: int) -> None:
        begin, end = (min(blocks * t // count * LANES, len(rows)) for t in (thread, thread + 1))
        kernel(*before, rows, begin, end, np.empty(vectors * LANES, np.float32), *after)

    run_on_threads(work, threads)


class KernelColors(torch.autograd.Function):
    """`view_colors` on a CPU in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        sh_base: Tensor,
        sh_rest: Tensor,
        sg_amplitudes: Tensor,
        sg_sharpness: Tensor,
        sg_axes: Tensor,
        center: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Colours [N, 3]; those of Gaussians not listed in `rows` are 0."""
        colors = torch.zeros(len(means), 3)
        inputs = (means, sh_base, sh_rest, sg_amplitudes, sg_sharpness, sg_axes)
        vectors = _REST + 3 * sh_rest.shape[1] + 7 * sg_sharpness.shape[1]
        before = [Arrays(*map(float_array, inputs)), float_array(center)]
        _on_threads(_forward, before, rows.numpy(), [colors.numpy()], vectors)
        ctx.save_for_backward(*inputs, center, rows)
        return colors

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the means and the basis; Gaussians whose colour has no gradient are skipped."""
        means, base, rest, amplitudes, sharpness, axes, center, rows = ctx.saved_tensors
        rows = rows[(gradient[rows] != 0).any(-1)]
        parameters = (means, base, rest, amplitudes, sharpness, axes)
        targets = [torch.zeros_like(parameter) for parameter in parameters]
        vectors = _REST + 3 * rest.shape[1] + 7 * sharpness.shape[1]
        before = [Arrays(*map(float_array, parameters)), float_array(center), float_array(gradient)]
        _on_threads(_backward, before, rows.numpy(), [Arrays(*(t.numpy() for t in targets))], vectors)
        needed = [t if needs else None for t, needs in zip(targets, ctx.needs_input_grad, strict=False)]
        return (*needed, None, None)
