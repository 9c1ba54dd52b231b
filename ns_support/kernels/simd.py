"""Sixteen float32 lanes as one Numba value, so that a kernel determines what is vectorised.

Numba leaves vectorisation to LLVM, which fails for the caster's inner loops (it cannot prove that the arrays do not
overlap) and does not keep accumulators in registers. `f32x16` is LLVM's `<16 x float>`: one AVX-512 register, two AVX2
or four NEON registers; the code is the same on all of them. Inside an `@njit` function:

    p = pointer(array)                  # the address of a contiguous float32 array
    x = load(p, offset)                 # 16 consecutive elements
    y = where(x > 0.0, sqrt(x), x * x)  # scalars broadcast; comparisons give a mask of 16 bits
    store(p, offset, y)
    total = reduce_add(y)

Nothing here is bounds-checked: offsets are the caller's responsibility.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled

LANES = 16
"""Lanes of a vector: the rays of a 4x4 packet, or 16 neighbouring samples of one ray."""

# Arguments and results of this module's functions in compiled code; such values do not exist outside of it.
Vector: TypeAlias = Any
Mask: TypeAlias = Any
Pointer: TypeAlias = Any

_CACHE_LINE = 64  # bytes

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
# Products and sums may be fused. No other "fast math" flag is set: NaN and infinity keep their meaning.
_FLAGS = ("contract",)


class _VectorType(types.Type):
    """A Numba type that is one LLVM vector."""


f32x16 = _VectorType(name="f32x16")
mask16 = _VectorType(name="mask16")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _VectorType) -> None:
        super().__init__(dmm, fe_type, _FLOATS if fe_type == f32x16 else _BITS)


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


def _splat_constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _as_vectors(builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> list[ir.Value]:
    return [arg if kind == f32x16 else _splat(builder, arg) for kind, arg in zip(sig.args, args, strict=True)]


def _operand(kind: types.Type) -> types.Type:
    return f32x16 if kind == f32x16 else types.float32


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    function_type = ir.FunctionType(result, [arg.type for arg in args])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, function_type, name)
    return builder.call(function, args)


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Zeros aligned to cache lines: every access to a vector that spans two of them costs twice.

    Args:
        shape: of the array; if its last dimension is a multiple of 16 floats, every row is aligned.
        dtype: of the elements.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """Address of a contiguous array's first element; the caller of the compiled function must keep the array alive.

    Numba counts references to each array that is passed to a function. In loops that call functions, these atomic
    operations took more time than the arithmetic. A pointer is not counted.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def get(typing_context: Any, address: Any, index: Any) -> Any:
    """The element at a pointer."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.load(builder.gep(args[0], [args[1]]))

    return address.dtype(address, types.intp), codegen


@intrinsic
def put(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Set the element at a pointer."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(address, types.intp, address.dtype), codegen


@intrinsic
def load(typing_context: Any, address: Any, offset: Any) -> Any:
    """The 16 float32 from `offset` on at a pointer."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        lanes = builder.bitcast(builder.gep(args[0], [args[1]]), _FLOATS.as_pointer())
        return builder.load(lanes, align=4)

    return f32x16(types.CPointer(types.float32), types.intp), codegen


@intrinsic
def store(typing_context: Any, address: Any, offset: Any, vector: Any) -> Any:
    """Write 16 float32 from `offset` on at a pointer."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        lanes = builder.bitcast(builder.gep(args[0], [args[1]]), _FLOATS.as_pointer())
        builder.store(args[2], lanes, align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.float32), types.intp, f32x16), codegen


@intrinsic
def splat(typing_context: Any, scalar: Any) -> Any:
    """The scalar in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _splat(builder, args[0])

    return f32x16(types.float32), codegen


Emit: TypeAlias = "Callable[[ir.IRBuilder, list[ir.Value]], ir.Value]"


def _elementwise(arity: int, result: types.Type, emit: Emit, symbol: Any = None) -> Any:
    """An intrinsic on vectors and broadcast scalars; with `symbol`, it also implements that Python operator."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return emit(builder, _as_vectors(builder, sig, args))

    if arity == 1:

        @intrinsic
        def unary(typing_context: Any, a: Any) -> Any:
            return result(_operand(a)), codegen

        if symbol is not None:

            @overload(symbol, strict=False)
            def overload_unary(a: Any) -> Any:
                return (lambda a: unary(a)) if a == f32x16 else None

        return unary

    @intrinsic
    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        return result(_operand(a), _operand(b)), codegen

    if symbol is not None:

        @overload(symbol, strict=False)
        def overload_binary(a: Any, b: Any) -> Any:
            return (lambda a, b: binary(a, b)) if f32x16 in (a, b) else None

    return binary


def _compare(comparison: str) -> Emit:
    return lambda builder, v: builder.fcmp_ordered(comparison, v[0], v[1])


_elementwise(2, f32x16, lambda builder, v: builder.fadd(*v, flags=_FLAGS), operator.add)
_elementwise(2, f32x16, lambda builder, v: builder.fsub(*v, flags=_FLAGS), operator.sub)
_elementwise(2, f32x16, lambda builder, v: builder.fmul(*v, flags=_FLAGS), operator.mul)
_elementwise(2, f32x16, lambda builder, v: builder.fdiv(*v, flags=_FLAGS), operator.truediv)
_elementwise(1, f32x16, lambda builder, v: builder.fneg(v[0]), operator.neg)
_elementwise(2, mask16, _compare("<"), operator.lt)
_elementwise(2, mask16, _compare("<="), operator.le)
_elementwise(2, mask16, _compare(">"), operator.gt)
_elementwise(2, mask16, _compare(">="), operator.ge)

minimum = _elementwise(2, f32x16, lambda builder, v: builder.select(builder.fcmp_ordered("<", *v), *v))
"""Elementwise minimum of two vectors; the second one's lane if either is NaN."""
maximum = _elementwise(2, f32x16, lambda builder, v: builder.select(builder.fcmp_ordered(">", *v), *v))
"""Elementwise maximum of two vectors; the second one's lane if either is NaN."""
sqrt = _elementwise(1, f32x16, lambda builder, v: _call(builder, f"llvm.sqrt.v{LANES}f32", _FLOATS, v))
"""Square root of every lane."""
floor = _elementwise(1, f32x16, lambda builder, v: _call(builder, f"llvm.floor.v{LANES}f32", _FLOATS, v))
"""Largest integer that is not greater, in every lane."""


def _emit_power_of_two(builder: ir.IRBuilder, v: list[ir.Value]) -> ir.Value:
    """2^n for integral n in [-126, 127]: n is written to the exponent field of the float."""
    exponent = builder.add(builder.fptosi(v[0], _INTS), ir.Constant(_INTS, [127] * LANES))
    return builder.bitcast(builder.shl(exponent, ir.Constant(_INTS, [23] * LANES)), _FLOATS)


_power_of_two = _elementwise(1, f32x16, _emit_power_of_two)


def _mask_binary(symbol: Any, method: str) -> None:
    @intrinsic
    def combine(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
            return getattr(builder, method)(*args)

        return mask16(mask16, mask16), codegen

    @overload(symbol, strict=False)
    def overload_combine(a: Any, b: Any) -> Any:
        return (lambda a, b: combine(a, b)) if a == mask16 and b == mask16 else None


_mask_binary(operator.and_, "and_")
_mask_binary(operator.or_, "or_")


@intrinsic
def where(typing_context: Any, mask: Any, a: Any, b: Any) -> Any:
    """`a` in the lanes whose bit is set, `b` in the others."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        lanes = [
            arg if kind == f32x16 else _splat(builder, arg) for kind, arg in zip(sig.args[1:], args[1:], strict=True)
        ]
        return builder.select(args[0], *lanes)

    return f32x16(mask16, _operand(a), _operand(b)), codegen


@intrinsic
def any_lane(typing_context: Any, mask: Any) -> Any:
    """True when at least one lane's bit is set."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask16), codegen


@intrinsic
def bits(typing_context: Any, mask: Any) -> Any:
    """A mask as an integer: bit i is lane i's."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(mask16), codegen


@intrinsic
def lowest_bit(typing_context: Any, integer: Any) -> Any:
    """Index of the lowest bit that is set in an int64; 64 when none is."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


def _reduction(emit: Emit) -> Any:
    @intrinsic
    def reduce(typing_context: Any, vector: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
            return emit(builder, list(args))

        return types.float32(f32x16), codegen

    return reduce


def _halving(combine: Emit) -> Emit:
    """Fold the upper half onto the lower until one lane is left: in a fixed order, so sums are reproducible."""

    def emit(builder: ir.IRBuilder, v: list[ir.Value]) -> ir.Value:
        vector = v[0]
        width = LANES
        while width > 1:
            width //= 2
            index = ir.VectorType(ir.IntType(32), width)
            low = builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(width))))
            high = builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(width, 2 * width))))
            vector = combine(builder, [low, high])
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return emit


reduce_add = _reduction(_halving(lambda builder, v: builder.fadd(*v)))
"""Sum of the lanes."""
reduce_min = _reduction(_halving(lambda builder, v: builder.select(builder.fcmp_ordered("<", *v), *v)))
"""Smallest lane."""
reduce_max = _reduction(_halving(lambda builder, v: builder.select(builder.fcmp_ordered(">", *v), *v)))
"""Largest lane."""


def _emit_sums(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Fold pairs of vectors so that each keeps half of each group of lanes; after four folds each has one lane."""
    width = LANES
    while width > 1:
        half = width // 2
        low: list[int] = []
        high: list[int] = []
        for group in range(0, LANES, width):
            low += [group + i for i in range(half)] + [LANES + group + i for i in range(half)]
            high += [group + half + i for i in range(half)] + [LANES + group + half + i for i in range(half)]
        vectors = [
            builder.fadd(
                builder.shuffle_vector(a, b, ir.Constant(_INTS, low)),
                builder.shuffle_vector(a, b, ir.Constant(_INTS, high)),
            )
            for a, b in zip(vectors[:half], vectors[half:], strict=True)
        ]
        width = half
    return vectors[0]


@intrinsic
def sums(typing_context: Any, vectors: Any) -> Any:
    """Lane i: the sum of the lanes of the i-th of a tuple of 16 vectors. Three times as fast as 16 `reduce_add`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _emit_sums(builder, [builder.extract_value(args[0], i) for i in range(LANES)])

    return f32x16(types.UniTuple(f32x16, LANES)), codegen


_LOG2_E = 1.4426950408889634
# ln 2 in two parts: n times the first is exact, so that the remainder is accurate (Cody-Waite reduction).
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4


@njit(inline="always")
def exp(x: Vector) -> Vector:
    """e^x in every lane for x in [-87, 88], relative error below 3e-7; smaller x give 1e-38, larger ones e^88.

    x = n ln 2 + r with |r| <= ln(2)/2: e^r by its Taylor polynomial of degree 6, and 2^n by the exponent field.
    """
    x = minimum(maximum(x, -87.0), 88.0)
    n = floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * (1.0 / 720.0) + (1.0 / 120.0)
    p = p * r + (1.0 / 24.0)
    p = p * r + (1.0 / 6.0)
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _power_of_two(n)
