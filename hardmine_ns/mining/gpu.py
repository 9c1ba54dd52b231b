"""The draw by the rule "poisson" on a GPU, in five kernels; the law is `hardmine_ns.mining.api`'s.

    measure    g_i of each row, and per block their sum and the sum of their squares
    bracket    tau and b follow from these sums. Per block, S(c) = sum of min(1, c g_i) for 32 values of c, each twice
               the one before, from the least that c can be, b / sum of g_i
    refine     the same for 32 values between the two where S passes b; c is then found by interpolation
    count      per block, how many rows u_i < pi_i = min(1, c g_i) draws
    write      the rows drawn, in their order, and 1 / pi_i

S is concave and increasing, so that the expected number of rows differs from b by some 10^-4 of it. The weights are the
inverse of the probability with which a row was in fact drawn: the gradient has no bias whatever c is.

u_i is a function of a seed and i alone, not of how many rows there is room for.

Importing this module needs Triton 3.2 or newer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hardmine_ns.mining.on_gpu import Padded
from ns_support.kernels import triton_types as ty

_BLOCK = 1024
"""Rows of a program."""
_MOST_BLOCKS = 4096


@triton.jit
def _total(
    partial: ty.Pointer, blocks: ty.Scalar, COLUMN: tl.constexpr, COLUMNS: tl.constexpr, MANY: tl.constexpr
) -> ty.Scalar:
    """The sum of a column of [blocks, COLUMNS] float64."""
    i = tl.arange(0, MANY)
    return tl.sum(tl.load(partial + i * COLUMNS + COLUMN, mask=i < blocks, other=0.0), 0)


@triton.jit
def _sums(partial: ty.Pointer, blocks: ty.Scalar, MANY: tl.constexpr) -> ty.Lanes:
    """The sums of the columns of [blocks, 32] float64."""
    total = tl.zeros([32], tl.float64)
    for begin in range(0, blocks, 64):
        i = begin + tl.arange(0, 64)
        at = partial + i[:, None] * 32 + tl.arange(0, 32)[None, :]
        total += tl.sum(tl.load(at, mask=(i < blocks)[:, None], other=0.0), 0)
    return total


@triton.jit
def _settled(
    partial: ty.Pointer, count: ty.Pointer, tau: ty.Pointer, numbers: ty.Fields, blocks: ty.Scalar, MANY: tl.constexpr
) -> ty.Fields:
    """Tau after this step, b, the least c, one over the mean g, and whether gradients are finite and some are not 0."""
    decay, least, greatest = numbers
    total = _total(partial, blocks, 0, 2, MANY)
    squares = _total(partial, blocks, 1, 2, MANY)
    rows = tl.load(count).to(tl.float64)
    finite = squares < float("inf")
    good = finite & (squares > 0.0)
    # Without a gradient, numbers that do no harm.
    total = tl.where(good, total, 1.0)
    squares = tl.where(good, squares, 1.0)
    concentration = tl.sqrt(rows * squares) / total
    before = tl.load(tau).to(tl.float64)
    nothing = before * 0.0  # makes the numbers float64, which the interpreter has as Python's
    # 1 is where it starts: as in `HardSampleMining`.
    kept = tl.where(before > 1.0, decay + nothing, 0.0)
    after = tl.where(good, kept * before + (1.0 - kept) * concentration, before)
    fraction = tl.minimum(tl.maximum(1.0 / after, least + nothing), greatest + nothing)
    expected = tl.maximum(rows * fraction, 1.0)
    return after, expected, expected / rows, rows / total, finite, good


@triton.jit
def _bracket(sums: ty.Lanes, expected: ty.Scalar) -> ty.Scalar:
    """The last of the 32 candidates whose sum is less than b; 0 if none is."""
    return tl.maximum(tl.sum((sums < expected).to(tl.int32), 0) - 1, 0)


@triton.jit
def _pick(values: ty.Lanes, place: ty.Scalar) -> ty.Scalar:
    return tl.sum(tl.where(tl.arange(0, 32) == place, values, 0.0), 0)


@triton.jit
def _refined(least: ty.Scalar, sums: ty.Lanes, expected: ty.Scalar) -> tuple[ty.Scalar, ty.Scalar]:
    """The first candidate of the second pass, and the distance between them: from c_j to 2 c_j, or beyond all."""
    first = least * tl.exp2(_bracket(sums, expected).to(tl.float64))
    return first, first / 31.0


@triton.jit
def _scale(
    bracket: ty.Pointer,
    refine: ty.Pointer,
    least: ty.Scalar,
    expected: ty.Scalar,
    blocks: ty.Scalar,
    MANY: tl.constexpr,
) -> ty.Scalar:
    """The factor c of g over its mean, between the two candidates of the second pass where S passes b."""
    first, step = _refined(least, _sums(bracket, blocks, MANY), expected)
    sums = _sums(refine, blocks, MANY)
    place = tl.minimum(_bracket(sums, expected), 30)
    low = _pick(sums, place)
    high = _pick(sums, place + 1)
    rises = high > low
    part = tl.where(rises, (expected - low) / tl.where(rises, high - low, 1.0), 1.0)
    return first + (place.to(tl.float64) + tl.minimum(tl.maximum(part, 0.0), 1.0)) * step


@triton.jit
def _relative(values: ty.Pointer, row: ty.Lanes, rows: ty.Scalar, unit: ty.Scalar) -> ty.Lanes:
    """Hardness over its mean, so that single precision suffices for what follows, whatever the loss scale is."""
    return (tl.load(values + row, mask=row < rows, other=0.0).to(tl.float64) * unit).to(tl.float32)


@triton.jit
def _drawn(relative: ty.Lanes, row: ty.Lanes, scale: ty.Scalar, seed: ty.Scalar) -> ty.Fields:
    """Which rows are drawn, and with which probability."""
    probability = tl.minimum(scale.to(tl.float32) * relative, 1.0)
    return tl.rand(seed, row) < probability, probability


@triton.jit(do_not_specialize=["rows"])
def measure_kernel(
    first: ty.Pointer,
    second: ty.Pointer,
    values: ty.Pointer,
    partial: ty.Pointer,
    rows: ty.Scalar,
    A: tl.constexpr,
    B: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Hardness of a block of rows from gradients [rows, A] and [rows, B]: the norm, which float64 can square."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    squares = tl.zeros([BLOCK], tl.float64)
    for i in tl.static_range(A):
        g = tl.load(first + row * A + i, mask=exists, other=0.0).to(tl.float64)
        squares += g * g
    for i in tl.static_range(B):
        g = tl.load(second + row * B + i, mask=exists, other=0.0).to(tl.float64)
        squares += g * g
    value = tl.sqrt(squares).to(tl.float32)
    tl.store(values + row, value, mask=exists)
    value = value.to(tl.float64)
    tl.store(partial + tl.program_id(0) * 2, tl.sum(value, 0))
    tl.store(partial + tl.program_id(0) * 2 + 1, tl.sum(value * value, 0))


@triton.jit(do_not_specialize=["rows", "blocks", "decay", "least", "greatest"])
def sums_kernel(
    values: ty.Pointer,
    partial: ty.Pointer,
    bracket: ty.Pointer,
    out: ty.Pointer,
    count: ty.Pointer,
    tau: ty.Pointer,
    rows: ty.Scalar,
    blocks: ty.Scalar,
    decay: ty.Scalar,
    least: ty.Scalar,
    greatest: ty.Scalar,
    SECOND: tl.constexpr,
    MANY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """S(c) of a block of rows for the 32 candidates of the first or of the second pass: out [blocks, 32]."""
    _, expected, c, unit, _, _ = _settled(partial, count, tau, (decay, least, greatest), blocks, MANY)
    i = tl.arange(0, 32)
    candidates = c * tl.exp2(i.to(tl.float64))
    if SECOND:
        begin, step = _refined(c, _sums(bracket, blocks, MANY), expected)
        candidates = begin + i.to(tl.float64) * step
    factors = candidates.to(tl.float32)
    total = tl.zeros([32], tl.float32)
    for begin in range(0, BLOCK, 32):
        row = tl.program_id(0) * BLOCK + begin + tl.arange(0, 32)
        relative = _relative(values, row, rows, unit)
        total += tl.sum(tl.minimum(relative[:, None] * factors[None, :], 1.0), 0)
    tl.store(out + tl.program_id(0) * 32 + i, total.to(tl.float64))


@triton.jit(do_not_specialize=["rows", "blocks", "decay", "least", "greatest", "seed"])
def count_kernel(
    values: ty.Pointer,
    partial: ty.Pointer,
    bracket: ty.Pointer,
    refine: ty.Pointer,
    counts: ty.Pointer,
    count: ty.Pointer,
    tau: ty.Pointer,
    settled: ty.Pointer,
    rows: ty.Scalar,
    blocks: ty.Scalar,
    decay: ty.Scalar,
    least: ty.Scalar,
    greatest: ty.Scalar,
    seed: ty.Scalar,
    MANY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """How many rows of a block are drawn: counts [blocks]; settled [5]: c, what g counts in, tau, finite, good."""
    after, expected, c, unit, finite, good = _settled(partial, count, tau, (decay, least, greatest), blocks, MANY)
    scale = _scale(bracket, refine, c, expected, blocks, MANY)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    drawn, _ = _drawn(_relative(values, row, rows, unit), row, scale, seed)
    tl.store(counts + tl.program_id(0), tl.sum((drawn & (row < rows)).to(tl.int32), 0))
    if tl.program_id(0) == 0:
        tl.store(settled, scale)
        tl.store(settled + 1, unit)
        tl.store(settled + 2, after)
        tl.store(settled + 3, finite.to(tl.float64))
        tl.store(settled + 4, good.to(tl.float64))


@triton.jit(do_not_specialize=["rows", "blocks", "most", "seed"])
def write_kernel(
    values: ty.Pointer,
    counts: ty.Pointer,
    settled: ty.Pointer,
    count: ty.Pointer,
    tau: ty.Pointer,
    indices: ty.Pointer,
    weights: ty.Pointer,
    report: ty.Pointer,
    rows: ty.Scalar,
    blocks: ty.Scalar,
    most: ty.Scalar,
    seed: ty.Scalar,
    MANY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The rows of a block that are drawn, and their weights; of a block of the result, what stays empty."""
    block = tl.arange(0, MANY)
    number = tl.load(counts + block, mask=block < blocks, other=0)
    total = tl.sum(number, 0)
    before = tl.sum(tl.where(block < tl.program_id(0), number, 0), 0)
    finite = tl.load(settled + 3) > 0.0
    good = tl.load(settled + 4) > 0.0
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    relative = _relative(values, row, rows, tl.load(settled + 1))
    drawn, probability = _drawn(relative, row, tl.load(settled), seed)
    drawn = drawn & (row < rows)
    shown = drawn.to(tl.int32)
    place = before + tl.cumsum(shown, 0) - shown
    fits = drawn & (place < tl.where(good, most, 0))
    tl.store(indices + place, row.to(tl.int64), mask=fits)
    tl.store(weights + place, 1.0 / tl.where(drawn, probability, 1.0), mask=fits)
    # The rest of the result; all of it, if there is nothing to draw by.
    total = tl.where(good, total, 0)
    empty = (row >= total) & (row < most)
    tl.store(indices + row, row.to(tl.int64) * 0, mask=empty)
    tl.store(weights + row, tl.where(finite, 0.0, float("nan")) + row.to(tl.float32) * 0.0, mask=empty)
    if tl.program_id(0) == 0:
        everything = tl.load(count).to(tl.float64)
        tl.store(tau, tl.load(settled + 2).to(tl.float32))
        tl.store(report, everything)
        tl.store(report + 1, tl.where(finite, total.to(tl.float64), everything))
        tl.store(report + 2, tl.load(settled + 2))
        tl.store(report + 3, tl.load(settled + 3))


def fits(gradients: list[Tensor], padded: Padded) -> bool:
    """Whether the kernels serve: two outputs in single precision, and not too many rows."""
    plain = all(gradient.dtype == torch.float32 for gradient in gradients)
    return plain and len(gradients) == 2 and len(gradients[0]) <= _MOST_BLOCKS * _BLOCK


def draw(
    gradients: list[Tensor], tau: Tensor, decay: float, fractions: tuple[float, float], padded: Padded, seed: int
) -> tuple[Tensor, Tensor]:
    """`on_gpu.draw_padded` by the rule "poisson".

    Args:
        gradients: of two outputs, [C, A] and [C, B] float32, C > 0.
        tau: [] float32, advanced in place.
        decay: of tau's running mean.
        fractions: least and greatest b / B.
        padded: how many of the rows there are, and how many to return; not more than C.
        seed: of the draw, in [0, 2^31).
    """
    first, second = (gradient.contiguous() for gradient in gradients)
    rows, device = len(first), first.device
    blocks = triton.cdiv(rows, _BLOCK)
    values = torch.empty(rows, device=device)
    partial, bracket, refine, settled = torch.empty(blocks * 66 + 5, dtype=torch.float64, device=device).split(
        [2 * blocks, 32 * blocks, 32 * blocks, 5]
    )
    counts = torch.empty(blocks, dtype=torch.int32, device=device)
    indices = torch.empty(padded.most, dtype=torch.int64, device=device)
    weights = torch.empty(padded.most, device=device)
    many = {"MANY": max(triton.next_power_of_2(blocks), 64), "BLOCK": _BLOCK}
    size, numbers = (rows, blocks), (float(decay), *map(float, fractions))
    measure_kernel[(blocks,)](first, second, values, partial, rows, A=first.shape[1], B=second.shape[1], BLOCK=_BLOCK)
    sums = (values, partial, bracket)
    sums_kernel[(blocks,)](*sums, bracket, padded.count, tau, *size, *numbers, SECOND=False, **many)
    sums_kernel[(blocks,)](*sums, refine, padded.count, tau, *size, *numbers, SECOND=True, **many)
    count_kernel[(blocks,)](*sums, refine, counts, padded.count, tau, settled, *size, *numbers, seed, **many)
    write_kernel[(blocks,)](
        values, counts, settled, padded.count, tau, indices, weights, padded.report, *size, padded.most, seed, **many
    )
    return indices, weights
