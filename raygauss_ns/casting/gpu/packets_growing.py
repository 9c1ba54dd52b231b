"""Functions of both kernels with the adaptive step: a packet, its schedule, its slabs, the windows of its list.

`schedule` is, in this order: step, growth, limit and samples of a slab (`casting.steps`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ns_support.kernels import triton_types as ty
from raygauss_ns.casting.gpu.lists import collect, ends_of, farthest, nearest, next_entry
from raygauss_ns.casting.gpu.packets import bounds_interval, load_vector, open_slab


@triton.jit
def stretch_of(transmittance: ty.Lanes, exponent: ty.Scalar) -> ty.Lanes:
    """T^-gamma."""
    return tl.exp2(-exponent * tl.log2(tl.maximum(transmittance, 1e-30)))


@triton.jit
def step_at(begin: ty.Lanes, stretch: ty.Lanes, schedule: ty.Fields) -> ty.Lanes:
    """The steps of slabs that begin at distances [RAYS]; `schedule` is step, growth, limit and samples of a slab."""
    step, growth, limit, _ = schedule
    return tl.minimum(tl.maximum(begin * growth, step) * stretch, limit)


@triton.jit
def advance(begin: ty.Lanes, target: ty.Lanes, stretch: ty.Lanes, schedule: ty.Fields) -> ty.Lanes:
    """From `begin` to the slab that contains a distance, as `steps.advance`: [RAYS] in the precision of the arguments.

    Returned as a difference, which keeps its digits where `begin` is large.
    """
    step, growth, limit, samples = schedule
    gap = tl.maximum(tl.minimum(target, 1e30) - begin, 0.0)
    # Up to dt0 / g. Without growth that is infinitely far, and `growth * begin < step` always.
    near = growth * begin < step
    length = samples * tl.minimum(step * stretch, limit)
    whole = tl.floor(gap / length)
    slabs = tl.ceil((step / growth - begin) / length)
    first = tl.where(near, tl.minimum(whole, slabs), 0.0) * length
    arrived = near & (whole <= slabs)
    # Then in proportion to the distance. 1 + y is rounded, and the quotient corrects for it: log2(r) keeps its digits.
    start = tl.maximum(begin + first, 1e-30)
    y = samples * growth * stretch
    r = 1.0 + y
    per_slab = tl.log2(r) * (y / (r - 1.0))
    whole = tl.floor(tl.log2(1.0 + tl.maximum(gap - first, 0.0) / start) / per_slab)
    slabs = tl.ceil(tl.log2(limit / (growth * start * stretch)) / per_slab)
    rises = growth * start * stretch < limit
    second = first + tl.where(rises, tl.exp2(tl.minimum(whole, slabs) * per_slab) - 1.0, 0.0) * start
    steady = ~(rises & (whole <= slabs))
    # Then at the largest step.
    length = samples * limit
    third = second + tl.floor(tl.maximum(gap - second, 0.0) / length) * length
    return tl.where(arrived, first, tl.where(steady, third, second))


@triton.jit
def open_growing_packet(
    ray: ty.Lanes, valid: ty.Lanes, rays: ty.Fields, bounds: ty.Pointer, march: ty.Fields, TILED: tl.constexpr
) -> tuple[ty.Vector, ty.Vector, ty.Lanes, ty.Lanes, ty.Lanes]:
    """Load the packet's rays.

    Args:
        ray: [RAYS] which rays.
        valid: [RAYS] which lanes have one.
        rays: the arrays of origins, directions, nears and far ends.
        bounds: lower and upper corner of the box of all Gaussians.
        march: step, its rounding error (the step is a float32), growth, limit, samples of a slab.
        TILED: whether the packet's own origins are at one distance for all rays, or each where its ray begins.

    Returns:
        The packet's own origins, directions, and distances [RAYS]: of the packet's own origin from the ray's, and from
        there to the first slab and to the end of the ray (minus infinity if the ray has nothing to march through).
    """
    origins, directions, nears, fars = rays
    step, step_rest, growth, limit, samples = march
    origin = load_vector(origins + ray * 3, valid, 0.0)
    direction = load_vector(directions + ray * 3, valid, 1.0)
    near = tl.load(nears + ray, mask=valid, other=0.0)
    far = tl.load(fars + ray, mask=valid, other=-1.0)
    enter, leave = bounds_interval(bounds, origin, direction)
    # Bounded, because the box of an empty scene is almost infinitely far away; and widened by float32's rounding error.
    enter = tl.minimum(tl.maximum(enter, -1e28), 1e28)
    leave = tl.minimum(tl.maximum(leave, -1e28), 1e28)
    met = enter <= leave
    enter -= 2.0 * step + 1e-5 * tl.abs(enter)
    end = tl.minimum(leave + 2.0 * step + 1e-5 * tl.abs(leave), far)
    # In float64: the rounding of a far origin would shift all samples.
    wide = tl.zeros([32], tl.float64)
    begin = near.to(tl.float64)
    schedule = (wide + step + step_rest, wide + growth, wide + limit, wide + samples)
    begin += advance(begin, enter.to(tl.float64), wide + 1.0, schedule)
    some = met & (begin < end)
    base = tl.where(some, begin, 0.0).to(tl.float32)
    if TILED:
        first = tl.min(tl.where(some, base, float("inf")), 0)
        base = tl.where(first < float("inf"), first, 0.0) + tl.zeros([32], tl.float32)
    start = base.to(tl.float64)
    ox = (origin[0].to(tl.float64) + start * direction[0].to(tl.float64)).to(tl.float32)
    oy = (origin[1].to(tl.float64) + start * direction[1].to(tl.float64)).to(tl.float32)
    oz = (origin[2].to(tl.float64) + start * direction[2].to(tl.float64)).to(tl.float32)
    place = tl.where(some, begin - start, 0.0).to(tl.float32)
    end = tl.where(some, (end.to(tl.float64) - start).to(tl.float32), -float("inf"))
    return (ox, oy, oz), direction, base, place, end


@triton.jit
def skip(
    listed: ty.Fields,
    window: ty.Fields,
    base: ty.Lanes,
    place: ty.Lanes,
    end: ty.Lanes,
    stretch: ty.Lanes,
    schedule: ty.Fields,
    WINDOWED: tl.constexpr,
) -> ty.Lanes:
    """Where each lane's next slab begins if the slabs before the next Gaussian of the list are skipped.

    Args:
        listed: as in `lists`.
        window: the number of entries, whether the list is too short, and the distance up to which it was written.
        base: [RAYS] distance of the packet's own origin from the ray's.
        place: [RAYS] distance from the packet's own origin to the next slab.
        end: [RAYS] distance from the packet's own origin to the end of the ray.
        stretch: [RAYS] T^-gamma.
        schedule: step, growth, limit and samples of a slab.
        WINDOWED: whether the list is of a window, not of whole rays.
    """
    count, full, stop = window
    last = farthest(end)
    near = nearest(tl.where(place < end, tl.maximum(place, 0.0), float("inf")))
    entered = next_entry(listed, count, near)
    if WINDOWED:
        # Nothing is known of what is behind the window, or of a slab that has more Gaussians than the list holds.
        entered = tl.where(stop < last, tl.minimum(entered, stop), entered)
        entered = tl.where(full > 0, near, entered)
    # One step early: the distance is rounded.
    target = tl.minimum(entered - schedule[0], end)
    moved = place + advance(base + place, base + target, stretch, schedule)
    return tl.where(entered < last, moved, tl.maximum(place, end))


@triton.jit
def open_window(
    scene: ty.Fields,
    listed: ty.Fields,
    rays: ty.Fields,
    reach: ty.Scalar,
    length: ty.Scalar,
    TILED: tl.constexpr,
) -> tuple[ty.Scalar, ty.Scalar, ty.Scalar, ty.Scalar]:
    """Write the list of a window, as long as the list can hold.

    Args:
        scene: as in `lists`.
        listed: as in `lists`.
        rays: the packet's own origins, directions, and the distances from there [RAYS] to the next slab and to the end.
        reach: the distance to which the window must extend.
        length: of the window to try.
        TILED: whether the rays are an image's.

    Returns:
        Entries; not 0 if the list is full, even up to `reach`; the distance up to which it was written; length to try
        next time.
    """
    origin, direction, place, end = rays
    active = place < end
    place = tl.maximum(place, 0.0)
    near, last = nearest(tl.where(active, place, float("inf"))), farthest(end)
    stop, count, full = reach, tl.zeros_like(listed[2]), tl.zeros_like(listed[2])
    more = reach >= 0
    while more:
        stop = tl.minimum(tl.maximum(near + length, reach), last)
        far = tl.where(active, tl.minimum(end, stop), -1.0)
        count, full = collect(scene, listed, (origin, direction, place, far), full * 0, TILED)
        more = (full > 0) & (stop > reach)
        length = tl.where(more, 0.5 * (stop - near), length)
        # Up to a thousandth of the whole it was halved in vain.
        length = tl.where(length < 1e-3 * (last - near), 0.0, length)
    return count, full, stop, tl.where(2 * count < listed[2], 2.0 * (stop - near), length)


@triton.jit
def open_part(
    origin: ty.Vector,
    direction: ty.Vector,
    first: ty.Lanes,
    row: ty.Scalar,
    count: ty.Lanes,
    dt: ty.Lanes,
    K: tl.constexpr,
) -> ty.Fields:
    """A part of a slab as `slabs` takes it; `first` is the distance of the slab's first sample from `origin`."""
    some, near, far = open_slab(row, tl.zeros([32], tl.int32), count, dt, K)
    rays = (origin, direction, tl.maximum(first + near, 0.0), tl.where(some, first + far, -1.0))
    least, most = ends_of(rays)
    return some, least, most, rays


@triton.jit
def take_turns(
    base: ty.Lanes, place: ty.Lanes, end: ty.Lanes, dt: ty.Lanes, offset: ty.Scalar, samples: ty.Scalar
) -> tuple[ty.Lanes, ty.Lanes]:
    """Which lanes march now, and how many samples of its slab each of them has: bool and int32 [RAYS]."""
    active = place < end
    begin = base + place
    horizon = tl.min(tl.where(active, begin + samples * dt, float("inf")), 0)
    marches = active & (begin <= horizon)
    # The quotient may be infinite.
    count = tl.minimum(tl.ceil((end - place) / dt - offset), samples)
    return marches, tl.where(marches, tl.maximum(count, 0.0), 0.0).to(tl.int32)


@triton.jit
def points_at(origin: ty.Vector, direction: ty.Vector, t: ty.Lanes) -> ty.Vector:
    """Points along the rays."""
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]
