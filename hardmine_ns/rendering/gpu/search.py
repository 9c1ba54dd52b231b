"""The visibility pass on a GPU: one kernel marches, looks densities up and stops; another puts the rays in order.

`visibility.search` needs to know how many samples were marched, and how many each of its rounds looks at. Here a
program has one ray and goes along its lattice, front to back:

    64 points at a time   which lie in an occupied voxel
    16 of these at a time  encode, run the density network, add up the optical thickness x
    until the transmittance T = exp(-sum of x) is less than `early_stop`

Samples that are not needed are never stored, and a ray looks at no more than 15 samples behind its last visible one.
Whoever finds visible samples takes places for them from a counter: `order_kernel` copies them to where they belong, by
ray and along each ray, so that the result does not depend on which program came first.

The result has a fixed capacity, which the caller chooses. A ray whose samples do not fit has none, and is said to be
left out.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hardmine_ns.marching.gpu.compositing import opacity
from hardmine_ns.marching.gpu.marching import edge, located, occupied
from hardmine_ns.rendering.gpu.density import encode, load_levels, network
from ns_support.kernels import triton_types as ty


@triton.jit
def _switch(start: ty.Scalar, numbers: ty.Pointer) -> tuple[ty.Scalar, ty.Scalar]:
    """Where steps begin to grow; `lattice.cone_switch`."""
    step = tl.load(numbers)
    start = start.to(tl.float64)
    switch = tl.maximum(tl.floor((step / tl.load(numbers + 1) - start) / step) + 1.0, 0.0)
    return switch.to(tl.int64), start + switch * step


@triton.jit
def _index(t: ty.Scalar, lattice: ty.Fields, CONE: tl.constexpr) -> ty.Scalar:
    """The k >= 0 whose interval holds t, up to rounding; `lattice.lattice_index`."""
    start, step, switch, t_switch, log2_growth = lattice
    distance = tl.minimum(tl.maximum(t, -1e9), 1e9)
    k = tl.floor((distance - start) / step)
    if CONE:
        ratio = tl.maximum(distance / t_switch.to(tl.float32), 1.0)
        beyond = switch.to(tl.float32) + tl.floor(tl.log2(ratio) / log2_growth.to(tl.float32))
        k = tl.where(k < switch.to(tl.float32), k, beyond)
    return tl.maximum(k, 0.0).to(tl.int64)


@triton.jit
def _between(origin: ty.Pointer, direction: ty.Pointer, box: ty.Pointer, reach: ty.Scalar) -> ty.Fields:
    """Distances at which a ray enters and leaves the outermost box, along one axis; `lattice.box_interval`."""
    o = (tl.load(origin) - tl.load(box)) * tl.load(box + 3)
    d = tl.load(direction) * tl.load(box + 3)
    parallel = d == 0.0
    inverse = 1.0 / tl.where(parallel, 1.0, d)
    low = (-reach - o) * inverse
    high = (reach - o) * inverse
    outside = parallel & (tl.abs(o) >= reach)
    near = tl.where(parallel, tl.where(outside, 3e38, -3e38), tl.minimum(low, high))
    return near, tl.where(parallel, 3e38, tl.maximum(low, high))


@triton.jit
def _range(
    ray: ty.Fields, box: ty.Pointer, levels: ty.Scalar, lattice: ty.Fields, far: ty.Scalar, CONE: tl.constexpr
) -> tuple[ty.Scalar, ty.Scalar]:
    """The first step of a ray that may be in the grid, and the one behind the last; `lattice.lattice_range`."""
    origin, direction = ray
    start, _, _, _, _ = lattice
    reach = tl.exp2((levels - 1).to(tl.float32))
    near_x, far_x = _between(origin, direction, box, reach)
    near_y, far_y = _between(origin + 1, direction + 1, box + 1, reach)
    near_z, far_z = _between(origin + 2, direction + 2, box + 2, reach)
    enter = tl.maximum(near_x, tl.maximum(near_y, near_z))
    leave = tl.minimum(tl.minimum(far_x, far), tl.minimum(far_y, far_z))
    first = tl.maximum(_index(enter, lattice, CONE) - 1, 0)
    last = _index(leave, lattice, CONE) + 2
    return first, tl.where(leave > tl.maximum(enter, start), last, first)


@triton.jit
def _to_unit(x: ty.Lanes, y: ty.Lanes, z: ty.Lanes, box: ty.Pointer, CONTRACTS: tl.constexpr) -> ty.Vector:
    """Points of the scene in the field's cube; `field.UnitCube`. A number that is none counts as 0."""
    x = (x - tl.load(box)) * tl.load(box + 3)
    y = (y - tl.load(box + 1)) * tl.load(box + 4)
    z = (z - tl.load(box + 2)) * tl.load(box + 5)
    scale = 0.5
    if CONTRACTS:
        m = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.maximum(tl.abs(z), 1.0))
        scale = ((2.0 - 1.0 / m) / m) * 0.25
    x = x * scale + 0.5
    y = y * scale + 0.5
    z = z * scale + 0.5
    x = tl.where(x > 0.0, tl.minimum(x, 1.0), 0.0)
    y = tl.where(y > 0.0, tl.minimum(y, 1.0), 0.0)
    return x, y, tl.where(z > 0.0, tl.minimum(z, 1.0), 0.0)


@triton.jit
def _along(ray: ty.Fields, axis: ty.Scalar, middle: ty.Lanes) -> ty.Lanes:
    origin, direction = ray
    return tl.load(origin + axis) + tl.load(direction + axis) * middle


@triton.jit(do_not_specialize=["levels", "resolution", "capacity", "early_stop", "alpha_threshold", "step"])
def search_kernel(
    origins: ty.Pointer,
    directions: ty.Pointer,
    starts: ty.Pointer,
    fars: ty.Pointer,
    numbers: ty.Pointer,
    box: ty.Pointer,
    binaries: ty.Pointer,
    mean: ty.Pointer,
    table: ty.Pointer,
    scales: ty.Pointer,
    geometry: ty.Pointer,
    first_layer: ty.Pointer,
    second_layer: ty.Pointer,
    places: ty.Pointer,
    intervals: ty.Pointer,
    units: ty.Pointer,
    outputs: ty.Pointer,
    features: ty.Pointer,
    counters: ty.Pointer,
    counts: ty.Pointer,
    lost: ty.Pointer,
    looked_up: ty.Pointer,
    observed: ty.Pointer,
    levels: ty.Scalar,
    resolution: ty.Scalar,
    step: ty.Scalar,
    early_stop: ty.Scalar,
    alpha_threshold: ty.Scalar,
    capacity: ty.Scalar,
    CONE: tl.constexpr,
    CONTRACTS: tl.constexpr,
    OBSERVES: tl.constexpr,
    F: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Find the visible samples of one ray.

    What it reads, beside the arguments of `launch.visible_of_rays`:

    - numbers, float64 [3]: the step, the cone angle, log2(1 + cone angle)
    - box [6]: centre of the grid, and one over half its extent
    - mean []: the grid's mean thickness; the least opacity is no more than that

    What it writes:

    - places, int32 [capacity, 2]: the ray and the rank on it of each visible sample
    - intervals [capacity, 3]: its begin, end and middle
    - units [capacity, 3]: its position in the field's cube
    - outputs [capacity, OUT] of the density network, and features [capacity, INPUTS], its inputs
    - counters, int64 [2]: places taken, and samples looked up, of all rays
    - counts, int64 [R]: visible samples of each ray; 0 if one of them found no place, and lost, uint8 [R], is then 1
    - looked_up, int64 [R]: samples of each ray whose density was evaluated
    - observed [cells]: the greatest thickness of a step that was seen in a cell, if `OBSERVES`
    """
    number = tl.program_id(0).to(tl.int64)
    ray = (origins + number * 3, directions + number * 3)
    grid = (box, binaries, levels, resolution)
    start = tl.load(starts + number)
    lattice = (start, step, 0, 0.0, 0.0)
    if CONE:
        switch, t_switch = _switch(start, numbers)
        lattice = (start, step, switch, t_switch, tl.load(numbers + 2))
    far = tl.load(fars + number)
    k, last = _range(ray, box, levels, lattice, far, CONE)
    least = alpha_threshold
    if alpha_threshold > 0.0:
        least = tl.minimum(least, tl.load(mean))
    column = tl.arange(0, IN)[None, :]
    wanted = column < INPUTS
    level = load_levels(scales, geometry, column, wanted, F)
    depth = start * 0.0
    seen = k * 0
    evaluated = k * 0
    fits = k * 0 + 1
    while (k < last) & (tl.exp(-depth) >= early_stop):
        steps = k + tl.arange(0, POINTS)
        middle = (edge(steps, lattice, CONE) + edge(steps + 1, lattice, CONE)) * 0.5
        kept = occupied(middle, (steps < last) & (middle < far), ray, grid).to(tl.int32)
        rank = tl.cumsum(kept, 0) - kept
        number_kept = tl.sum(kept, 0)
        begin = number_kept * 0
        lane = tl.arange(0, ROWS)
        while (begin < number_kept) & (tl.exp(-depth) >= early_stop):
            # The next 16 of those: row j has the point of rank j.
            j = begin + lane
            exists = j < number_kept
            mine = (rank[None, :] == j[:, None]) & (kept[None, :] > 0)
            own = k + tl.sum(tl.where(mine, tl.arange(0, POINTS)[None, :], 0), 1)
            t0 = edge(own, lattice, CONE)
            t1 = edge(own + 1, lattice, CONE)
            m = (t0 + t1) * 0.5
            unit = _to_unit(_along(ray, 0, m), _along(ray, 1, m), _along(ray, 2, m), box, CONTRACTS)
            encoded = encode(unit, exists, table, level, column, wanted, F)
            output = network(encoded, first_layer, second_layer, INPUTS, HIDDEN, IN, OUT, UNITS, PRECISION)
            out = tl.arange(0, OUT)[None, :]
            density = tl.exp(tl.sum(tl.where(out == 0, output, 0.0), 1))
            x = tl.where(exists, density * (t1 - t0), 0.0)
            # Shifted by one: subtracting a sample from its own sum would leave rounding.
            before = tl.where(lane > 0, tl.gather(x, tl.maximum(lane - 1, 0), 0), 0.0)
            through = tl.exp(-(depth + tl.cumsum(before, 0)))
            visible = exists & (through >= early_stop) & (opacity(x) >= least)
            shown = visible.to(tl.int32)
            total = tl.sum(shown, 0)
            if total > 0:
                place = tl.atomic_add(counters, total.to(tl.int64), sem="relaxed") + tl.cumsum(shown, 0) - shown
                into = visible & (place < capacity)
                fits = fits & (tl.sum(into.to(tl.int32), 0) == total).to(tl.int64)
                tl.store(places + place * 2, (number + place * 0).to(tl.int32), mask=into)
                tl.store(places + place * 2 + 1, (seen + tl.cumsum(shown, 0) - shown).to(tl.int32), mask=into)
                tl.store(intervals + place * 3, t0, mask=into)
                tl.store(intervals + place * 3 + 1, t1, mask=into)
                tl.store(intervals + place * 3 + 2, m, mask=into)
                tl.store(units + place * 3, unit[0], mask=into)
                tl.store(units + place * 3 + 1, unit[1], mask=into)
                tl.store(units + place * 3 + 2, unit[2], mask=into)
                tl.store(outputs + place[:, None] * OUT + out, output, mask=into[:, None])
                tl.store(features + place[:, None] * INPUTS + column, encoded, mask=into[:, None] & wanted)
            if OBSERVES:
                cell, inside = located(m, ray, grid)
                thickness = tl.where(density == density, tl.minimum(density * step, 3.4028235e38), 0.0)
                tl.atomic_max(observed + cell, thickness, mask=exists & inside, sem="relaxed")
            seen += total
            evaluated += tl.sum(exists.to(tl.int32), 0)
            depth += tl.sum(x, 0)
            begin += ROWS
        k += POINTS
    tl.store(counts + number, seen * fits)
    tl.store(lost + number, (1 - fits).to(tl.uint8))
    tl.store(looked_up + number, evaluated)
    tl.atomic_add(counters + 1, evaluated, sem="relaxed")


@triton.jit(do_not_specialize=["capacity", "num_rays"])
def order_kernel(
    places: ty.Pointer,
    intervals: ty.Pointer,
    units: ty.Pointer,
    outputs: ty.Pointer,
    features: ty.Pointer,
    counters: ty.Pointer,
    ends: ty.Pointer,
    lost: ty.Pointer,
    ray_indices: ty.Pointer,
    t_starts: ty.Pointer,
    t_ends: ty.Pointer,
    t_middles: ty.Pointer,
    out_units: ty.Pointer,
    out_outputs: ty.Pointer,
    out_features: ty.Pointer,
    offsets: ty.Pointer,
    kept: ty.Pointer,
    report: ty.Pointer,
    capacity: ty.Scalar,
    num_rays: ty.Scalar,
    INPUTS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Copy a block of samples to where their rays have them; say of a block of rays what they have.

    It reads what `search_kernel` has written, and ends, int64 [R + 1], the sums of the rays' counts from 0. It writes
    the results of `launch.visible_of_rays`, in which 0 stands where nothing comes.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(ends + row, mask=row <= num_rays, other=0)
    tl.store(offsets + row, tl.minimum(end, capacity.to(tl.int64)), mask=row <= num_rays)
    behind = tl.load(ends + row + 1, mask=row < num_rays, other=0)
    missing = tl.load(lost + row, mask=row < num_rays, other=0) != 0
    tl.store(kept + row, tl.where((behind <= capacity) & (~missing), 1.0, 0.0), mask=row < num_rays)
    placed = tl.load(counters)
    if tl.program_id(0) == 0:
        tl.store(report, tl.maximum(tl.load(ends + num_rays), placed).to(tl.float64))
        tl.store(report + 1, tl.load(counters + 1).to(tl.float64))

    exists = row < tl.minimum(placed, capacity.to(tl.int64))
    ray = tl.load(places + row * 2, mask=exists, other=0).to(tl.int64)
    rank = tl.load(places + row * 2 + 1, mask=exists, other=0).to(tl.int64)
    whole = tl.load(lost + ray, mask=exists, other=1) == 0
    goes = exists & whole & (tl.load(ends + ray + 1, mask=exists, other=0) <= capacity)
    to = tl.load(ends + ray, mask=goes, other=0) + rank
    tl.store(ray_indices + to, ray, mask=goes)
    tl.store(t_starts + to, tl.load(intervals + row * 3, mask=goes), mask=goes)
    tl.store(t_ends + to, tl.load(intervals + row * 3 + 1, mask=goes), mask=goes)
    tl.store(t_middles + to, tl.load(intervals + row * 3 + 2, mask=goes), mask=goes)
    for axis in tl.static_range(3):
        tl.store(out_units + to * 3 + axis, tl.load(units + row * 3 + axis, mask=goes), mask=goes)
    out = tl.arange(0, OUT)[None, :]
    values = tl.load(outputs + row[:, None] * OUT + out, mask=goes[:, None])
    tl.store(out_outputs + to[:, None] * OUT + out, values, mask=goes[:, None])
    column = tl.arange(0, IN)[None, :]
    mask = goes[:, None] & (column < INPUTS)
    values = tl.load(features + row[:, None] * INPUTS + column, mask=mask)
    tl.store(out_features + to[:, None] * INPUTS + column, values, mask=mask)
