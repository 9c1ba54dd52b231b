"""The hash encoding as a module, with its back ends."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hardmine_ns.hash_encoding import reference
from hardmine_ns.hash_encoding.cpu import launch as cpu
from hardmine_ns.hash_encoding.levels import grid_levels, growth_factor
from ns_support.kernels.arrays import FloatArray, as_array
from ns_support.kernels.backend import runs_on, triton_module

Backend = Literal["auto", "cpu", "gpu", "reference", "tcnn"]

INITIAL_RANGE = 1e-4
"""Features start uniform in +-this, as in instant-ngp."""


class HashEncoding(nn.Module):
    """Encodes points of the unit cube by trilinear look-ups in tables of trainable features.

    Back ends: "cpu" (Numba, float32; its gradient of the table is sparse), "gpu" (Triton, float32 and float16),
    "reference" (PyTorch, any device and float type), "tcnn" (tiny-cuda-nn, if installed). "auto" takes "cpu" or "gpu",
    by where the table is, and "reference" for a float type that they don't know.

    Attributes:
        table: the parameter, [total rows, F], levels one after the other from coarse to fine.
        levels: where each level lies in it.
        out_dim: L F, the width of the output.

    Example:
        >>> encoding = HashEncoding(num_levels=4, max_resolution=128)
        >>> encoding(torch.rand(10, 3)).shape
        torch.Size([10, 8])

    Args:
        num_levels: L.
        features_per_level: F.
        log2_hashmap_size: a level has at most 2^this rows.
        base_resolution: vertices along an axis of the coarsest level.
        max_resolution: the same of the finest; those between grow geometrically.
        backend: which implementation runs.

    Raises:
        ValueError: an argument is out of range.
        ImportError: backend is "tcnn" and tiny-cuda-nn cannot be imported.
    """

    def __init__(
        self,
        num_levels: int = 16,
        features_per_level: int = 2,
        log2_hashmap_size: int = 19,
        base_resolution: int = 16,
        max_resolution: int = 2048,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if features_per_level < 1:
            raise ValueError(f"features_per_level must be at least 1, got {features_per_level}")
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
        self.levels = grid_levels(num_levels, log2_hashmap_size, base_resolution, max_resolution)
        self.out_dim = num_levels * features_per_level
        self.backend: Backend = backend
        table = torch.empty(self.levels.total_rows, features_per_level).uniform_(-INITIAL_RANGE, INITIAL_RANGE)
        self.table = nn.Parameter(table)
        self._table_gradient = cpu.TableGradient(self.levels, features_per_level)
        self._native: nn.Module | None = None
        if backend == "tcnn":
            self._native = _tiny_cuda_nn(
                {
                    "otype": "HashGrid",
                    "n_levels": num_levels,
                    "n_features_per_level": features_per_level,
                    "log2_hashmap_size": log2_hashmap_size,
                    "base_resolution": base_resolution,
                    "per_level_scale": growth_factor(num_levels, base_resolution, max_resolution),
                }
            )

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        rows, features = self.table.shape
        return f"levels={self.levels.num_levels}, rows={rows}, features={features}, backend={self.backend}"

    def forward(self, positions: Tensor) -> Tensor:
        """Encode points.

        Args:
            positions: [..., 3], floating point, in [0, 1]. Outside it the grid repeats and nothing fails.

        Returns:
            [..., L F] in the table's type, features of the coarsest level first.

        Raises:
            ValueError: positions are of another shape, or on another device than the table.
            TypeError: positions are not floating point, or the back end does not take the table's type or device.
            ImportError: the table is on a GPU and Triton is missing; the message says what to install.
        """
        if positions.ndim < 1 or positions.shape[-1] != 3:
            raise ValueError(f"positions must be [..., 3], got {list(positions.shape)}")
        if not positions.is_floating_point():
            raise TypeError(f"positions must be floating point, got {positions.dtype}; convert them with .float()")
        if positions.device != self.table.device:
            raise ValueError(f"positions are on {positions.device}, the table is on {self.table.device}; move one")
        return self._encode(positions.reshape(-1, 3)).view(*positions.shape[:-1], self.out_dim)

    def write(self, positions: FloatArray, output: FloatArray) -> None:
        """The encoding on a CPU into memory that is there, without a graph. Only where `has_cpu_kernels`.

        Args:
            positions: float32 [n, 3], contiguous.
            output: float32 [n, L F], contiguous; written.
        """
        cpu.forward(positions, as_array(self.table), self.levels, output)

    @property
    def can_resume(self) -> bool:
        """Whether `resume` can be called: the kernels for a CPU and for a GPU can, the other back ends can't."""
        return self.on_gpu or self.has_cpu_kernels

    @property
    def has_cpu_kernels(self) -> bool:
        """Whether the kernels for a CPU are what runs."""
        return self.backend in ("auto", "cpu") and self._cpu_kernels_fit

    def resume(self, features: Tensor, positions: Tensor) -> Tensor:
        """The encoding as `forward` computes it, from features that an earlier pass without a graph computed.

        Saves the look-ups of the forward pass. Only where `can_resume`.

        Args:
            features: [n, L F], the encoding at the positions.
            positions: [n, 3], as for `forward`.

        Returns:
            The features; their gradient reaches the table and the positions as that of `forward` does.
        """
        if not torch.is_grad_enabled():
            return features
        if self.on_gpu:
            known: Tensor = _triton_kernels(self.table).resume(features, positions, self.table, self.levels)
            return known
        return cpu.encode(positions, self.table, self.levels, self._table_gradient, features)

    @property
    def on_gpu(self) -> bool:
        """Whether the Triton kernels are what runs."""
        fits = self.table.is_cuda and self.table.dtype in (torch.float32, torch.float16)
        return self.backend == "gpu" or (self.backend == "auto" and fits)

    @property
    def _cpu_kernels_fit(self) -> bool:
        return self.table.device.type == "cpu" and self.table.dtype == torch.float32

    def _encode(self, points: Tensor) -> Tensor:
        if self.on_gpu:
            return _triton_kernels(self.table).encode(points, self.table, self.levels)
        points = points.to(self.table.dtype)
        if self._native is not None:
            # tiny-cuda-nn reads `params` at each call: a view of our table keeps one parameter for all back ends.
            self._native.params = self.table.flatten()
            return self._native(points).to(self.table.dtype)
        if self.backend == "cpu" and not self._cpu_kernels_fit:
            raise TypeError(
                f'backend "cpu" needs a float32 table on the CPU, got {self.table.dtype} on {self.table.device}; '
                'use backend "auto"'
            )
        if self._cpu_kernels_fit and self.backend != "reference":
            return cpu.encode(points, self.table, self.levels, self._table_gradient)
        return reference.encode(points, self.table, self.levels)


def check_backend(backend: Backend, device: torch.device | str) -> None:
    """Refuse a back end for the device that training is going to run on, before it starts.

    Raises:
        ValueError: the back end does not run on it.
        ImportError: it would use Triton's kernels, and Triton is missing; the message says what to install.
    """
    device = torch.device(device)
    if backend == "gpu" or (backend == "auto" and device.type == "cuda"):
        fits = runs_on(_triton().forward_kernel, device)
    else:
        fits = device.type == {"cpu": "cpu", "tcnn": "cuda"}.get(backend, device.type)
    if not fits:
        raise ValueError(f'hash-backend {backend} does not run on the device {device}; use hash-backend "auto"')


def _triton() -> Any:
    """The module `gpu`."""
    return triton_module("hardmine_ns.hash_encoding.gpu.encoding", "the hash encoding", ', or use backend "reference"')


def _triton_kernels(table: Tensor) -> Any:
    """The module `gpu`, if it can serve this table."""
    gpu = _triton()
    if table.dtype not in gpu.TABLE_TYPES or not runs_on(gpu.forward_kernel, table.device):
        raise TypeError(
            f'backend "gpu" needs a float32 or float16 table on a GPU, got {table.dtype} on {table.device}; '
            'use backend "auto"'
        )
    return gpu


def _tiny_cuda_nn(config: dict[str, Any]) -> nn.Module:
    """tiny-cuda-nn's own encoding, freed of its parameter."""
    try:
        tinycudann = importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:
        raise ImportError(
            f'backend "tcnn" needs tiny-cuda-nn\'s PyTorch extension, which cannot be imported ({error}); '
            'install it, or use backend "auto"'
        ) from error
    encoding: nn.Module = tinycudann.Encoding(n_input_dims=3, encoding_config=config)
    del encoding.params
    return encoding
