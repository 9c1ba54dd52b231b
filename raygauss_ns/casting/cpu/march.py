"""The caster on a CPU: Numba kernels over packets of 16 lanes (see `packets`).

A packet marches its rows slab by slab:

    collect the Gaussians whose boxes meet the slab -> accumulate sigma, E = sum f c on its rows -> composite the rows

Nothing is dropped: Gaussians are added as they are found. The backward pass recomputes a slab's rows, turns them into P
and Q, and visits the same Gaussians again:

    dL/df_l = w = P (g . c_l) + Q,   P = T dt phi,   Q = T dt^2 phi' (g . E) - dt (g . what comes later) + depth's part

It keeps 13 sums per Gaussian: sum w f, sum w f (x - mu), sum w f (x - mu)(x - mu)^T, sum P f g. Along a ray x - mu is
p + d tau with tau = t - t*, so that four sums over the samples (of w f, w f tau, w f tau^2 and P f) give all 13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray, IntArray
from ns_support.kernels.simd import (
    LANES,
    Pointer,
    aligned_zeros,
    exp,
    get,
    load,
    pointer,
    put,
    reduce_add,
    splat,
    store,
    sums,
    where,
)
from raygauss_ns.casting.cpu.bvh import RECORD_SIZE, Bvh
from raygauss_ns.casting.cpu.compositing import composite, composite_gradients
from raygauss_ns.casting.cpu.packets import (
    DEPTH,
    DX,
    DY,
    DZ,
    GB,
    GDEPTH,
    GG,
    GR,
    LATER,
    LOCAL,
    OX,
    OY,
    OZ,
    ROW_SIZE,
    ROWS,
    TILE,
    B,
    G,
    March,
    P,
    Q,
    R,
    RayArrays,
    RayPointers,
    T,
    enter_slab,
    finished,
    next_row,
    open_packet,
)
from raygauss_ns.casting.cpu.slabs import (
    BB,
    BLOCK,
    CANDIDATE,
    CLOSEST,
    FIRST,
    HIGH,
    HIT_SIZE,
    LAST,
    LEVEL,
    LOW,
    MAX_HITS,
    NUM_INTS,
    RECORD,
    Scene,
    begin_search,
    collect,
    fill_slab,
    project,
    start_block,
)
from raygauss_ns.casting.types import CastSettings

NUM_MOMENTS = 13
"""Sums per Gaussian: M0 1, Y1 3, Y2 6 (xx, xy, xz, yy, yz, zz), colour 3."""


@njit(cache=True, nogil=True)
def _differentiate(
    ws: Pointer, ints: Pointer, scene: Scene, hit: int, slot: int, row: int, march: March, totals: Pointer
) -> None:
    """Add the slab's part to a Gaussian's 13 sums."""
    first, last = get(ints, FIRST + hit), get(ints, LAST + hit)
    block = get(ints, BLOCK + hit)
    record = get(ints, RECORD + hit)
    at = record * RECORD_SIZE
    density = get(scene.records, at + 12)
    gr, gg, gb = load(ws, GR), load(ws, GG), load(ws, GB)
    g_c = gr * get(scene.records, at + 13) + gg * get(scene.records, at + 14) + gb * get(scene.records, at + 15)
    closest = load(ws, slot + CLOSEST)
    bend = exp(load(ws, slot + BB) * (-march.pitch * march.pitch))
    s0, s1, s2, sp = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for start in range(first, last + 1, block):
        profile, slope = start_block(ws, slot, start, block, march)
        profile = profile * density
        tau = np.float32(start) * march.pitch - closest
        for j in range(start, min(start + block, last + 1)):
            f = where(profile > march.eps, profile, 0.0)
            source = ROWS + (j - row) * ROW_SIZE
            p_f = load(ws, source + P) * f
            w_f = p_f * g_c + load(ws, source + Q) * f
            w_f_tau = w_f * tau
            sp = sp + p_f
            s0 = s0 + w_f
            s1 = s1 + w_f_tau
            s2 = s2 + w_f_tau * tau
            profile = profile * slope
            slope = slope * bend
            tau = tau + march.pitch
    dx, dy, dz = load(ws, DX), load(ws, DY), load(ws, DZ)
    along = closest + load(ws, LOCAL)
    x = load(ws, OX) - get(scene.records, at) + along * dx
    y = load(ws, OY) - get(scene.records, at + 1) + along * dy
    z = load(ws, OZ) - get(scene.records, at + 2) + along * dz
    # Y1 = p s0 + d s1 and Y2 = p (p s0 + d s1)^T + d (p s1 + d s2)^T.
    x1, y1, z1 = x * s0 + dx * s1, y * s0 + dy * s1, z * s0 + dz * s1
    x2, y2, z2 = x * s1 + dx * s2, y * s1 + dy * s2, z * s1 + dz * s2
    zero = splat(0.0)
    moments = (
        *(s0, x1, y1, z1),
        *(x * x1 + dx * x2, x * y1 + dx * y2, x * z1 + dx * z2, y * y1 + dy * y2, y * z1 + dy * z2, z * z1 + dz * z2),
        *(gr * sp, gg * sp, gb * sp),
        *(zero, zero, zero),
    )
    to = record * LANES
    store(totals, to, load(totals, to) + sums(moments))


@njit(cache=True, nogil=True)
def differentiate_slab(
    ws: Pointer, ints: Pointer, scene: Scene, row: int, march: March, hits: int, totals: Pointer
) -> None:
    """Differentiate every Gaussian of the slab; those that were not kept are searched for again."""
    slots = ROWS + march.slab * ROW_SIZE
    if hits <= MAX_HITS:
        for hit in range(hits):
            _differentiate(ws, ints, scene, hit, slots + hit * HIT_SIZE, row, march, totals)
        return
    begin_search(ws, ints, scene)
    while get(ints, LEVEL) < scene.depth:
        for i in range(collect(ws, ints, scene)):
            if project(ws, ints, scene, get(ints, CANDIDATE + i), 0, slots, row, march):
                _differentiate(ws, ints, scene, 0, slots, row, march, totals)


@njit(cache=True, nogil=True)
def pointers_of(bvh: Bvh, rays: RayArrays) -> tuple[Scene, RayPointers]:
    """The arrays' addresses; whoever asks must keep the arrays alive."""
    depth = len(bvh.levels) - 1
    scene = Scene(pointer(bvh.records), pointer(bvh.reach), pointer(bvh.boxes), pointer(bvh.levels), depth)
    origins, directions = pointer(rays.origins), pointer(rays.directions)
    nears, ends = pointer(rays.nears), pointer(rays.ends)
    return scene, RayPointers(origins, directions, nears, ends, len(rays.nears), rays.width)


@njit(cache=True, nogil=True)
def store_outputs(ws: Pointer, ints: Pointer, outputs: Pointer, packet: int, single: bool) -> None:
    """Write what a packet's rays have brought."""
    if single:
        put(outputs, 5 * packet, reduce_add(load(ws, R)))
        put(outputs, 5 * packet + 1, reduce_add(load(ws, G)))
        put(outputs, 5 * packet + 2, reduce_add(load(ws, B)))
        put(outputs, 5 * packet + 3, get(ws, T))
        put(outputs, 5 * packet + 4, reduce_add(load(ws, DEPTH)))
        return
    for lane in range(LANES):
        ray = get(ints, lane)
        if ray >= 0:
            put(outputs, 5 * ray, get(ws, R + lane))
            put(outputs, 5 * ray + 1, get(ws, G + lane))
            put(outputs, 5 * ray + 2, get(ws, B + lane))
            put(outputs, 5 * ray + 3, get(ws, T + lane))
            put(outputs, 5 * ray + 4, get(ws, DEPTH + lane))


@njit(cache=True, nogil=True)
def _forward_share(
    thread: int,
    threads: int,
    packets: int,
    bvh: Bvh,
    rays: RayArrays,
    march: March,
    workspace: FloatArray,
    integers: IntArray,
    out: FloatArray,
) -> None:
    """Cast every `threads`-th packet."""
    scene, ray_pointers = pointers_of(bvh, rays)
    ws, ints, outputs = pointer(workspace), pointer(integers), pointer(out)
    single = rays.width == 0
    for packet in range(thread, packets, threads):
        row, rows = 0, open_packet(ws, ints, ray_pointers, packet, pointer(bvh.bounds), march)
        while row < rows and not finished(ws, row, march):
            if enter_slab(ws, row, march):
                if fill_slab(ws, ints, scene, row, march, False) > 0:
                    composite(ws, row, get(ints, LOW), get(ints, HIGH), march, single)
                row = next_row(ws, row, march)
            else:
                row += march.slab
        store_outputs(ws, ints, outputs, packet, single)


@njit(cache=True, nogil=True)
def open_gradients(ws: Pointer, ints: Pointer, outputs: Pointer, gradients: Pointer) -> None:
    """Load the lanes' output gradients and g . (all that the ray will bring), the transmittance at its end included."""
    for lane in range(LANES):
        ray = get(ints, lane)
        later = np.float32(0.0)
        red, green, blue, depth = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        if ray >= 0:
            for channel in range(5):
                later += get(gradients, 5 * ray + channel) * get(outputs, 5 * ray + channel)
            red, green = get(gradients, 5 * ray), get(gradients, 5 * ray + 1)
            blue, depth = get(gradients, 5 * ray + 2), get(gradients, 5 * ray + 4)
        put(ws, GR + lane, red)
        put(ws, GG + lane, green)
        put(ws, GB + lane, blue)
        put(ws, GDEPTH + lane, depth)
        put(ws, LATER + lane, later)


@njit(cache=True, nogil=True)
def _backward_share(
    thread: int,
    threads: int,
    packets: int,
    bvh: Bvh,
    rays: RayArrays,
    march: March,
    workspace: FloatArray,
    integers: IntArray,
    out: FloatArray,
    grad_out: FloatArray,
    totals: FloatArray,
) -> None:
    """Differentiate every `threads`-th packet into this thread's own sums [M, 16]."""
    scene, ray_pointers = pointers_of(bvh, rays)
    ws, ints, outputs, gradients = pointer(workspace), pointer(integers), pointer(out), pointer(grad_out)
    total_pointer = pointer(totals)
    single = rays.width == 0
    for packet in range(thread, packets, threads):
        row, rows = 0, open_packet(ws, ints, ray_pointers, packet, pointer(bvh.bounds), march)
        if rows > 0:
            open_gradients(ws, ints, outputs, gradients)
        while row < rows and not finished(ws, row, march):
            if enter_slab(ws, row, march):
                hits = fill_slab(ws, ints, scene, row, march, True)
                if hits > 0:
                    composite_gradients(ws, row, get(ints, LOW), get(ints, HIGH), march, single)
                    differentiate_slab(ws, ints, scene, row, march, hits, total_pointer)
                row = next_row(ws, row, march)
            else:
                row += march.slab


@njit(cache=True, nogil=True)
def _sum_threads(parts: FloatArray, order: IntArray, out: FloatArray) -> None:
    """Add up the threads' sums [threads, M, 16] and scatter them to the Gaussians' own places [N, 13]."""
    for m in range(len(order)):
        for i in range(NUM_MOMENTS):
            total = parts[0, m, i]
            for thread in range(1, len(parts)):
                total += parts[thread, m, i]
            out[order[m], i] = total


def _march(rays: RayArrays, settings: CastSettings) -> March:
    """The settings in rows."""
    single = rays.width == 0
    rows = max(settings.samples_per_slab // LANES, 1) if single else settings.samples_per_slab
    dt = np.float32(settings.step)
    pitch = np.float32(settings.step * (LANES if single else 1))
    return March(
        settings.step,
        settings.sample_offset,
        dt,
        pitch,
        np.float32(settings.transmittance_threshold),
        np.float32(settings.density_threshold),
        rows,
    )


def _packets(rays: RayArrays) -> int:
    """How many packets the rays fill."""
    if rays.width == 0:
        return len(rays.nears)
    return -(-(len(rays.nears) // rays.width) // TILE) * -(-rays.width // TILE)


def _workspaces(rows: int, threads: int) -> tuple[FloatArray, IntArray]:
    return (
        aligned_zeros((threads, ROWS + rows * ROW_SIZE + (MAX_HITS + 1) * HIT_SIZE)),
        np.zeros((threads, NUM_INTS), np.int32),
    )


def forward_with(kernel: Callable[..., None], march: Any, bvh: Bvh, rays: RayArrays) -> FloatArray:
    """Cast R rays.

    Args:
        kernel: casts a thread's share; `_forward_share` names its arguments.
        march: the settings as the kernel wants them; `slab` is the number of rows of a slab.
        bvh: the Gaussians.
        rays: the rays.

    Returns:
        [R, 5] float32: red, green, blue, transmittance, depth.
    """
    out = np.zeros((len(rays.nears), 5), np.float32)
    out[:, 3] = 1.0
    packets = _packets(rays)
    if len(bvh.order) > 0 and packets > 0:
        threads = num_threads()
        floats, ints = _workspaces(march.slab, threads)
        run_on_threads(
            lambda thread, count: kernel(thread, count, packets, bvh, rays, march, floats[thread], ints[thread], out),
            threads,
        )
    return out


def backward_with(
    kernel: Callable[..., None],
    march: Any,
    bvh: Bvh,
    rays: RayArrays,
    out: FloatArray,
    grad_out: FloatArray,
    num_gaussians: int,
) -> FloatArray:
    """Gradients of a loss on the outputs, as 13 moments per Gaussian.

    Args:
        kernel: differentiates a thread's share; `_backward_share` names its arguments.
        march: as in the forward pass.
        bvh: the Gaussians.
        rays: the rays.
        out: [R, 5] what the forward pass returned.
        grad_out: [R, 5] gradient of the loss with respect to that.
        num_gaussians: N, dead ones included.

    Returns:
        [N, 13] float32; the sums are in the module's docstring.
    """
    moments = np.zeros((num_gaussians, NUM_MOMENTS), np.float32)
    packets = _packets(rays)
    if len(bvh.order) > 0 and packets > 0:
        threads = num_threads()
        floats, ints = _workspaces(march.slab, threads)
        totals = aligned_zeros((threads, len(bvh.order), LANES))
        run_on_threads(
            lambda thread, count: kernel(
                thread, count, packets, bvh, rays, march, floats[thread], ints[thread], out, grad_out, totals[thread]
            ),
            threads,
        )
        _sum_threads(totals, bvh.order, moments)
    return moments


def cast_forward(bvh: Bvh, rays: RayArrays, settings: CastSettings) -> FloatArray:
    """`forward_with` for a step that is the same everywhere."""
    return forward_with(_forward_share, _march(rays, settings), bvh, rays)


def cast_backward(
    bvh: Bvh, rays: RayArrays, settings: CastSettings, out: FloatArray, grad_out: FloatArray, num_gaussians: int
) -> FloatArray:
    """`backward_with` for a step that is the same everywhere."""
    return backward_with(_backward_share, _march(rays, settings), bvh, rays, out, grad_out, num_gaussians)
