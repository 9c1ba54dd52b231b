"""The Numba kernels of compositing: tiles of 16 x 16 pixels, of which a row is one vector.

A splat is listed for each tile that its extents reach. A thread composites every `threads`-th tile, splat by splat and
row by row, before black: colours are relative to the background. The backward pass goes through a tile in the same
order. With w_i = T_i alpha_i, g the gradient of a pixel's colour and q_i = g c_i,

    dL/dalpha_i = T_i q_i - (sum_{j>i} w_j q_j) / (1 - alpha_i),

and the sum over the splats behind is what the sum over all, g rgb, has left after those in front.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray, IndexArray, IntArray
from ns_support.kernels.simd import (
    LANES,
    Pointer,
    Vector,
    aligned_zeros,
    any_lane,
    exp,
    get,
    load,
    minimum,
    pointer,
    splat,
    store,
    sums,
    where,
)
from raygauss_ns.splatting.projection import LEAST_ALPHA, LEAST_TRANSMITTANCE, MOST_ALPHA

TILE = LANES
_PLANE = TILE * TILE
_PARAMETERS = 9
"""Of a splat on the image: centre (2), conic (3), opacity, colour (3)."""
_LEAST_ALPHA, _MOST_ALPHA = np.float32(LEAST_ALPHA), np.float32(MOST_ALPHA)
_LEAST_T = np.float32(LEAST_TRANSMITTANCE)


@njit(cache=True, nogil=True, error_model="numpy")
def _tiles_of(center: np.float32, extent: np.float32, tiles: int) -> tuple[int, int]:
    """First tile that a splat reaches along an axis, and the one after the last; 0, 0 if it reaches none."""
    low, high = center - extent, center + extent
    if not (high > np.float32(0) and low < np.float32(tiles * TILE)):
        return 0, 0
    return max(int(np.floor(low / TILE)), 0), min(int(np.floor(high / TILE)) + 1, tiles)


@njit(cache=True, nogil=True, error_model="numpy")
def _counts(params: FloatArray, extents: FloatArray, across: int, down: int) -> IndexArray:
    """[tiles + 1] where each tile's part of the list begins."""
    starts = np.zeros(across * down + 1, np.int64)
    for i in range(len(params)):
        left, right = _tiles_of(params[i, 0], extents[i, 0], across)
        top, bottom = _tiles_of(params[i, 1], extents[i, 1], down)
        for row in range(top, bottom):
            for column in range(left, right):
                starts[row * across + column + 1] += 1
    for tile in range(across * down):
        starts[tile + 1] += starts[tile]
    return starts


@njit(cache=True, nogil=True, error_model="numpy")
def _filled(params: FloatArray, extents: FloatArray, across: int, down: int, starts: IndexArray) -> IntArray:
    """The list: for each tile the splats that reach it, from near to far."""
    places = starts[:-1].copy()
    listed = np.empty(starts[-1], np.int32)
    for i in range(len(params)):
        left, right = _tiles_of(params[i, 0], extents[i, 0], across)
        top, bottom = _tiles_of(params[i, 1], extents[i, 1], down)
        for row in range(top, bottom):
            for column in range(left, right):
                tile = row * across + column
                listed[places[tile]] = i
                places[tile] += 1
    return listed


@njit(cache=True, nogil=True, error_model="numpy")
def _rows_of(center: np.float32, extent: np.float32, top: int) -> tuple[int, int]:
    """First row of a tile that a splat reaches, and the one after the last."""
    first = max(int(np.floor(center - extent - np.float32(top))), 0)
    return first, min(int(np.floor(center + extent - np.float32(top))) + 1, TILE)


@njit(cache=True, nogil=True, error_model="numpy")
def _forward_tiles(
    thread: int,
    threads: int,
    params: FloatArray,
    extents: FloatArray,
    listed: IntArray,
    starts: IndexArray,
    lanes: FloatArray,
    image: FloatArray,
) -> None:
    """Composite every `threads`-th tile.

    Args:
        thread: index of this thread.
        threads: number of threads.
        params: [n, 9].
        extents: [n, 2].
        listed: the tiles' splats.
        starts: [tiles + 1] where each tile's part begins.
        lanes: [16] 0.5, 1.5, ...
        image: [3, rows, columns], whole tiles; receives the colours.
    """
    across = image.shape[2] // TILE
    rows, stride = image.shape[1], image.shape[2]
    state = np.empty(4 * _PLANE, np.float32)  # transmittance, colour
    p, s, out, lane = pointer(params), pointer(state), pointer(image), load(pointer(lanes), 0)
    zero, one = splat(0.0), splat(1.0)
    for tile in range(thread, len(starts) - 1, threads):
        top, left = tile // across * TILE, tile % across * TILE
        state[:_PLANE] = np.float32(1)
        state[_PLANE:] = np.float32(0)
        for entry in range(starts[tile], starts[tile + 1]):
            k = listed[entry]
            at = k * _PARAMETERS
            first, last = _rows_of(params[k, 1], extents[k, 1], top)
            dx = lane + (np.float32(left) - get(p, at))
            half_xx, xy, half_yy = np.float32(0.5) * get(p, at + 2), get(p, at + 3), np.float32(0.5) * get(p, at + 4)
            opacity, red, green, blue = get(p, at + 5), get(p, at + 6), get(p, at + 7), get(p, at + 8)
            square, mixed = dx * dx * half_xx, dx * xy
            for row in range(first, last):
                place = row * TILE
                before = load(s, place)
                if not any_lane(before > _LEAST_T):
                    continue
                dy = np.float32(top + row) + np.float32(0.5) - params[k, 1]
                raw = exp(-(square + mixed * dy + half_yy * dy * dy)) * opacity
                alpha = minimum(where(raw < _LEAST_ALPHA, zero, raw), splat(_MOST_ALPHA))
                after = before * (one - alpha)
                weight = where(after > _LEAST_T, before * alpha, zero)
                store(s, place, after)
                store(s, _PLANE + place, load(s, _PLANE + place) + weight * red)
                store(s, 2 * _PLANE + place, load(s, 2 * _PLANE + place) + weight * green)
                store(s, 3 * _PLANE + place, load(s, 3 * _PLANE + place) + weight * blue)
        for row in range(TILE):
            for channel in range(3):
                value = load(s, (channel + 1) * _PLANE + row * TILE)
                store(out, (channel * rows + top + row) * stride + left, value)


@njit(cache=True, nogil=True, error_model="numpy")
def _begin_backward(state: FloatArray, im: Pointer, g: Pointer, rows: int, stride: int, top: int, left: int) -> None:
    """Set a tile's state [5 * 256]: transmittance, the sum over the splats behind, and slopes of the colour."""
    s = pointer(state)
    state[:_PLANE] = np.float32(1)
    for row in range(TILE):
        left_over = splat(0.0)
        for channel in range(3):
            at = (channel * rows + top + row) * stride + left
            slope = load(g, at)
            left_over = left_over + slope * load(im, at)
            store(s, (2 + channel) * _PLANE + row * TILE, slope)
        store(s, _PLANE + row * TILE, left_over)


@njit(cache=True, nogil=True, error_model="numpy")
def _backward_splat(s: Pointer, p: Pointer, at: int, dx: Vector, top: int, first: int, last: int) -> Vector:
    """Go on by one splat in the rows [first, last) of a tile whose state is `s`.

    Returns:
        The derivatives with respect to its parameters, which are at `at` of `p`, in the first nine lanes.
    """
    zero, one, half = splat(0.0), splat(1.0), np.float32(0.5)
    xx, xy, yy = get(p, at + 2), get(p, at + 3), get(p, at + 4)
    opacity, red, green, blue = get(p, at + 5), get(p, at + 6), get(p, at + 7), get(p, at + 8)
    square, mixed = dx * dx * (half * xx), dx * xy
    by_x, by_y, by_xx, by_xy, by_yy = zero, zero, zero, zero, zero
    by_opacity, by_red, by_green, by_blue = zero, zero, zero, zero
    for row in range(first, last):
        place = row * TILE
        before = load(s, place)
        if not any_lane(before > _LEAST_T):
            continue
        dy = np.float32(top + row) + half - get(p, at + 1)
        shape = exp(-(square + mixed * dy + half * yy * dy * dy))
        raw = shape * opacity
        alpha = minimum(where(raw < _LEAST_ALPHA, zero, raw), splat(_MOST_ALPHA))
        after = before * (one - alpha)
        drawn = after > _LEAST_T
        weight = where(drawn, before * alpha, zero)
        on_red, on_green = load(s, 2 * _PLANE + place), load(s, 3 * _PLANE + place)
        on_blue = load(s, 4 * _PLANE + place)
        q = on_red * red + on_green * green + on_blue * blue
        behind = load(s, _PLANE + place) - weight * q
        store(s, place, after)
        store(s, _PLANE + place, behind)
        free = drawn & (raw >= _LEAST_ALPHA) & (raw <= _MOST_ALPHA)
        by_alpha = where(free, before * q - behind / (one - alpha), zero)
        by_red, by_green, by_blue = by_red + weight * on_red, by_green + weight * on_green, by_blue + weight * on_blue
        by_opacity = by_opacity + by_alpha * shape
        by_power = by_alpha * raw
        by_x = by_x + by_power * (dx * xx + xy * dy)
        by_y = by_y + by_power * (mixed + yy * dy)
        by_xx, by_xy = by_xx - by_power * dx * dx, by_xy - by_power * dx * dy
        by_yy = by_yy - by_power * (dy * dy)
    totals = (by_x, by_y, by_xx * half, by_xy, by_yy * half, by_opacity, by_red, by_green, by_blue)
    return sums((*totals, zero, zero, zero, zero, zero, zero, zero))


@njit(cache=True, nogil=True, error_model="numpy")
def _backward_tiles(
    thread: int,
    threads: int,
    params: FloatArray,
    extents: FloatArray,
    listed: IntArray,
    starts: IndexArray,
    lanes: FloatArray,
    image: FloatArray,
    slopes: FloatArray,
    gradients: FloatArray,
) -> None:
    """Gradients of every `threads`-th tile.

    Args:
        thread: index of this thread.
        threads: number of threads.
        params: [n, 9].
        extents: [n, 2].
        listed: the tiles' splats.
        starts: [tiles + 1] where each tile's part begins.
        lanes: [16] 0.5, 1.5, ...
        image: [3, rows, columns] what the forward pass made.
        slopes: [3, rows, columns] derivative of the loss with respect to it.
        gradients: [entries, 16] receives the derivatives with respect to the entries' parameters, in the first 9.
    """
    across = image.shape[2] // TILE
    state = np.empty(5 * _PLANE, np.float32)
    p, s, out, lane = pointer(params), pointer(state), pointer(gradients), load(pointer(lanes), 0)
    im, g = pointer(image), pointer(slopes)
    for tile in range(thread, len(starts) - 1, threads):
        top, left = tile // across * TILE, tile % across * TILE
        _begin_backward(state, im, g, image.shape[1], image.shape[2], top, left)
        for entry in range(starts[tile], starts[tile + 1]):
            k = listed[entry]
            first, last = _rows_of(params[k, 1], extents[k, 1], top)
            dx = lane + (np.float32(left) - params[k, 0])
            store(out, entry * LANES, _backward_splat(s, p, k * _PARAMETERS, dx, top, first, last))


@njit(cache=True, nogil=True, error_model="numpy")
def _summed(listed: IntArray, entries: FloatArray, count: int) -> FloatArray:
    """[n, 9] the sums over each splat's entries, in the order of the list."""
    total = np.zeros((count, _PARAMETERS), np.float32)
    for entry in range(len(listed)):
        k = listed[entry]
        for i in range(_PARAMETERS):
            total[k, i] += entries[entry, i]
    return total


class Composited(NamedTuple):
    """What the backward pass needs of the forward pass.

    Attributes:
        params: [n, 9] centre, conic, opacity, colour.
        extents: [n, 2].
        listed: the tiles' splats.
        starts: [tiles + 1] where each tile's part of it begins.
        image: [3, rows, columns], whole tiles.
    """

    params: FloatArray
    extents: FloatArray
    listed: IntArray
    starts: IndexArray
    image: FloatArray


_LANES = np.arange(LANES, dtype=np.float32) + np.float32(0.5)


def composite(params: FloatArray, extents: FloatArray, size: tuple[int, int]) -> Composited:
    """Composite n splats before black.

    Args:
        params: [n, 9] centre, conic, opacity, colour, from near to far.
        extents: [n, 2].
        size: columns, rows.
    """
    across, down = (-(-side // TILE) for side in size)
    starts = _counts(params, extents, across, down)
    listed = _filled(params, extents, across, down, starts)
    image = aligned_zeros((3, down * TILE, across * TILE))
    threads = min(num_threads(), across * down)
    run_on_threads(
        lambda i, n: _forward_tiles(i, n, params, extents, listed, starts, _LANES, image),
        threads,
    )
    return Composited(params, extents, listed, starts, image)


def gradients(forward: Composited, slopes: FloatArray) -> FloatArray:
    """Derivatives [n, 9] with respect to the parameters.

    Args:
        forward: of `composite`.
        slopes: [rows, columns, 3] derivative of the loss with respect to the image.
    """
    params, extents, listed, starts, image = forward
    padded = aligned_zeros(image.shape)
    padded[:, : slopes.shape[0], : slopes.shape[1]] = slopes.transpose(2, 0, 1)
    entries = aligned_zeros((len(listed), LANES))
    run_on_threads(
        lambda i, n: _backward_tiles(i, n, params, extents, listed, starts, _LANES, image, padded, entries),
        min(num_threads(), len(starts) - 1),
    )
    total: FloatArray = _summed(listed, entries, len(params))
    return total
