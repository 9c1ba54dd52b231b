"""The Numba kernels of `ssim.api`. An image row is 3 W consecutive floats: the next pixel is 3 floats away.

Rows are padded to whole vectors, with a margin of zeros on either side, so that a blur needs no special case at the
edges.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray
from ns_support.kernels.simd import LANES, Pointer, aligned_zeros, get, load, pointer, reduce_add, splat, store, where

_CHANNELS = 3
_MARGIN = 2 * LANES  # at least 10 pixels
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_MAPS = 5  # of the blurred images: x, y, x^2, y^2, xy
_SLOPES = 3  # of the derivatives: by m, X and Z


@njit(cache=True, nogil=True)
def _blur_down(x: Pointer, y: Pointer, weights: Pointer, taps: int, row: int, stride: int, blurred: Pointer) -> None:
    """Blur rows `row` to `row + taps` - 1 of x, y, x^2, y^2 and xy along the columns into five rows."""
    for i in range(0, stride, LANES):
        m, n, xx, yy, xy = splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for k in range(taps):
            a, b = load(x, (row + k) * stride + i), load(y, (row + k) * stride + i)
            w = get(weights, k)
            wa, wb = a * w, b * w
            m = m + wa
            n = n + wb
            xx = xx + wa * a
            yy = yy + wb * b
            xy = xy + wa * b
        store(blurred, i, m)
        store(blurred, stride + i, n)
        store(blurred, 2 * stride + i, xx)
        store(blurred, 3 * stride + i, yy)
        store(blurred, 4 * stride + i, xy)


@njit(cache=True, nogil=True)
def _forward_chunk(
    thread: int,
    threads: int,
    x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    valid: int,
    slopes: FloatArray,
    totals: FloatArray,
) -> None:
    """SSIM of every `threads`-th row of windows, and its derivatives.

    Args:
        thread: index of this thread.
        threads: number of threads.
        x: [H, stride] the image.
        y: [H, stride] the ground truth.
        weights: [taps] of the window.
        valid: values in a row of windows, 3 (W - taps + 1).
        slopes: [rows, 3, stride] receives the derivatives by m, X and Z, zero outside the windows.
        totals: [rows] receives the sums of S.
    """
    taps, stride = len(weights), x.shape[1]
    blurred_rows = np.zeros(_MAPS * stride + _MARGIN, np.float32)
    lanes = np.arange(LANES).astype(np.float32)
    image, truth, taps_at, blurred = pointer(x), pointer(y), pointer(weights), pointer(blurred_rows)
    lane, out = load(pointer(lanes), 0), pointer(slopes)
    for row in range(thread, len(totals), threads):
        _blur_down(image, truth, taps_at, taps, row, stride, blurred)
        total = splat(0.0)
        for i in range(0, valid, LANES):
            m, n, xx, yy, xy = splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            for k in range(taps):
                at, w = _MARGIN + i + _CHANNELS * k, get(taps_at, k)
                m = m + load(blurred, at) * w
                n = n + load(blurred, stride + at) * w
                xx = xx + load(blurred, 2 * stride + at) * w
                yy = yy + load(blurred, 3 * stride + at) * w
                xy = xy + load(blurred, 4 * stride + at) * w
            light, light_norm = m * n * 2.0 + _C1, 1.0 / (m * m + n * n + _C1)
            shape, shape_norm = (xy - m * n) * 2.0 + _C2, 1.0 / (xx - m * m + yy - n * n + _C2)
            luminance, structure = light * light_norm, shape * shape_norm
            similarity = luminance * structure
            by_m = structure * light_norm * (n - luminance * m) - luminance * shape_norm * (n - structure * m)
            inside = lane < np.float32(valid - i)
            at = row * _SLOPES * stride + _MARGIN + i
            store(out, at, where(inside, by_m * 2.0, 0.0))
            store(out, at + stride, where(inside, -(similarity * shape_norm), 0.0))
            store(out, at + 2 * stride, where(inside, luminance * shape_norm * 2.0, 0.0))
            total = total + where(inside, similarity, 0.0)
        totals[row] = reduce_add(total)


@njit(cache=True, nogil=True)
def _backward_chunk(
    thread: int,
    threads: int,
    x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    slopes: FloatArray,
    scale: np.float32,
    gradient: FloatArray,
) -> None:
    """Every `threads`-th row of `scale` times the gradient [H, stride] of the summed SSIM: the transposed blur."""
    taps, stride, rows = len(weights), x.shape[1], len(slopes)
    blurred_rows = np.zeros(_SLOPES * stride + _MARGIN, np.float32)
    image, truth, taps_at, blurred = pointer(x), pointer(y), pointer(weights), pointer(blurred_rows)
    source, out = pointer(slopes), pointer(gradient)
    for row in range(thread, len(x), threads):
        first, last = max(row - taps + 1, 0), min(row, rows - 1)
        for i in range(0, _SLOPES * stride, LANES):
            total = splat(0.0)
            for r in range(first, last + 1):
                total = total + load(source, r * _SLOPES * stride + i) * get(taps_at, row - r)
            store(blurred, i, total)
        for i in range(_MARGIN, stride, LANES):
            by_m, by_xx, by_xy = splat(0.0), splat(0.0), splat(0.0)
            for k in range(taps):
                at, w = i - _CHANNELS * k, get(taps_at, k)
                by_m = by_m + load(blurred, at) * w
                by_xx = by_xx + load(blurred, stride + at) * w
                by_xy = by_xy + load(blurred, 2 * stride + at) * w
            at = row * stride + i
            value = by_m + load(image, at) * by_xx * 2.0 + load(truth, at) * by_xy
            store(out, at, value * scale)


def _padded(image: FloatArray) -> FloatArray:
    """[H, W, 3] as rows [H, stride] with a margin of zeros on both sides."""
    height, width = image.shape[:2]
    values = _CHANNELS * width
    rows = aligned_zeros((height, 2 * _MARGIN + -(-values // LANES) * LANES))
    rows[:, _MARGIN : _MARGIN + values] = image.reshape(height, values)
    return rows


def similarity_and_gradient(
    image: FloatArray, ground_truth: FloatArray, weights: FloatArray, differentiate: bool
) -> tuple[np.float32, FloatArray | None]:
    """Mean SSIM over all windows and channels, and its gradient.

    Args:
        image: [H, W, 3] float32.
        ground_truth: [H, W, 3] float32.
        weights: [taps] of the window along one axis, at most 11 and no more than H and W.
        differentiate: whether to compute the gradient.

    Returns:
        The mean, and [H, W, 3] or None.
    """
    height, width = image.shape[:2]
    rows, valid = height - len(weights) + 1, _CHANNELS * (width - len(weights) + 1)
    x, y = _padded(image), _padded(ground_truth)
    slopes, totals = aligned_zeros((rows, _SLOPES, x.shape[1])), np.zeros(rows, np.float32)
    threads = min(num_threads(), rows)
    run_on_threads(lambda thread, count: _forward_chunk(thread, count, x, y, weights, valid, slopes, totals), threads)
    mean = np.float32(totals.sum(dtype=np.float64) / (rows * valid))
    if not differentiate:
        return mean, None
    gradient, scale = aligned_zeros(x.shape), np.float32(1 / (rows * valid))
    run_on_threads(
        lambda thread, count: _backward_chunk(thread, count, x, y, weights, slopes, scale, gradient), threads
    )
    values = gradient[:, _MARGIN : _MARGIN + _CHANNELS * width]
    return mean, np.ascontiguousarray(values).reshape(height, width, _CHANNELS)
