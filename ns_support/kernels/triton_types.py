"""Type names for the arguments of Triton kernels; Triton itself determines the types at compile time.

They are used as attributes of this module (`ty.Lanes`): Triton evaluates annotations, and a kernel can access modules
of its own module, but no other global names.
"""

from typing import Any, TypeAlias

Pointer: TypeAlias = Any
"""Address of the first element of a tensor."""
Scalar: TypeAlias = Any
"""A number, the same in all lanes."""
Lanes: TypeAlias = Any
"""One value for each ray, point or node of a program: [RAYS] or [BLOCK]."""
Slab: TypeAlias = Any
"""[K, RAYS], one value per sample."""
Rows: TypeAlias = Any
"""[BLOCK, features]."""
Vector: TypeAlias = Any
"""Three of `Lanes`."""
Fields: TypeAlias = Any
"""A tuple of values of different types, which the docstring lists."""
