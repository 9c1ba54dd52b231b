"""Names for what a Triton kernel's arguments are; Triton itself finds out at compile time.

A module, because Triton looks annotations up and lets a kernel see the modules beside it, but none of their names.
"""

from typing import Any, TypeAlias

Pointer: TypeAlias = Any
"""Address of the first element of a tensor."""
Scalar: TypeAlias = Any
"""A number, the same in all lanes."""
Lanes: TypeAlias = Any
"""One value for each ray, point or node of a program: [RAYS] or [BLOCK]."""
Slab: TypeAlias = Any
"""[K, RAYS], one value a sample."""
Rows: TypeAlias = Any
"""[BLOCK, features]."""
Vector: TypeAlias = Any
"""Three of `Lanes`."""
Fields: TypeAlias = Any
"""A tuple of different things; the docstring says of which."""
