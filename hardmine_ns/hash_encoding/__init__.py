"""The multi-resolution hash encoding of instant-ngp (Müller et al. 2022), without tiny-cuda-nn.

`HashEncoding` is the module; `RowAdam` is the optimiser that leaves the rows of its table alone which a step did not
reach. A table trained with one back end works with every other: they share tiny-cuda-nn's layout.
"""

from hardmine_ns.hash_encoding.encoding import Backend, HashEncoding, check_backend
from hardmine_ns.hash_encoding.levels import GridLevels, grid_levels
from hardmine_ns.hash_encoding.optimizer import RowAdam

__all__ = ["Backend", "GridLevels", "HashEncoding", "RowAdam", "check_backend", "grid_levels"]
