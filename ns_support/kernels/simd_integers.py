"""Vectors of 16 integers beside those of `simd`: 32 bits, wrapping around, as hashes and indices need them.

cells = to_integers(floor(x))  # towards zero; undefined beyond 32 bits
rows = (cells * prime) ^ other  # +, *, ^ and & of vectors, or of a vector and an integer
store_integers(p, offset, rows)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from ns_support.kernels.simd import LANES, f32x16, mask16

_INTS = ir.VectorType(ir.IntType(32), LANES)


class _IntegersType(types.Type):
    """A Numba type that is one LLVM vector of integers."""


i32x16 = _IntegersType(name="i32x16")


@register_model(_IntegersType)
class _IntegersModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _IntegersType) -> None:
        super().__init__(dmm, fe_type, _INTS)


def _operand(kind: types.Type) -> types.Type:
    return i32x16 if kind == i32x16 else types.uint32


def _as_vectors(builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> list[ir.Value]:
    def splat(scalar: ir.Value) -> ir.Value:
        undefined, zero = ir.Constant(_INTS, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        return builder.shuffle_vector(
            builder.insert_element(undefined, scalar, zero), undefined, ir.Constant(_INTS, [0] * LANES)
        )

    return [arg if kind == i32x16 else splat(arg) for kind, arg in zip(sig.args, args, strict=True)]


def _binary(method: str, symbol: Any) -> None:
    """Implement a Python operator for two vectors, or for a vector and an integer that every lane gets."""

    @intrinsic
    def binary(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
            return getattr(builder, method)(*_as_vectors(builder, sig, args))

        return i32x16(_operand(a), _operand(b)), codegen

    @overload(symbol, strict=False)
    def overload_binary(a: Any, b: Any) -> Any:
        return (lambda a, b: binary(a, b)) if i32x16 in (a, b) else None


_binary("add", operator.add)
_binary("mul", operator.mul)
_binary("xor", operator.xor)
_binary("and_", operator.and_)


@intrinsic
def to_integers(typing_context: Any, vector: Any) -> Any:
    """Every lane of 16 float32 without what follows the point; undefined where that is beyond 32 bits."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.fptosi(args[0], _INTS)

    return i32x16(f32x16), codegen


@intrinsic
def exceeds(typing_context: Any, a: Any, b: Any) -> Any:
    """Which lanes of `a` are greater than those of `b`, both without a sign."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.icmp_unsigned(">", *_as_vectors(builder, sig, args))

    return mask16(_operand(a), _operand(b)), codegen


@intrinsic
def store_integers(typing_context: Any, address: Any, offset: Any, vector: Any) -> Any:
    """Write 16 integers from `offset` on at a pointer to uint32."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        lanes = builder.bitcast(builder.gep(args[0], [args[1]]), _INTS.as_pointer())
        builder.store(args[2], lanes, align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.uint32), types.intp, i32x16), codegen
