"""How much memory a training step keeps for its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


class ActivationMeter:
    """Peak number of bytes that autograd saves for the backward pass; counts shared storage once, parameters never."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.peak = self._held = 0
        self._users = {p.untyped_storage().data_ptr(): 1 for p in parameters}

    def __enter__(self) -> ActivationMeter:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(self, t), lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count one more use of a storage."""
        users = self._users.get(storage.data_ptr(), 0)
        self._users[storage.data_ptr()] = users + 1
        if users == 0:
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Count one use less."""
        self._users[storage.data_ptr()] -= 1
        if self._users[storage.data_ptr()] == 0:
            del self._users[storage.data_ptr()]
            self._held -= storage.nbytes()


class _Kept:
    def __init__(self, meter: ActivationMeter, tensor: Tensor) -> None:
        # Detached: a saved output with a reference to its own graph would keep that graph alive for ever.
        self.meter, self.tensor = meter, tensor.detach() if not tensor.is_leaf else tensor
        meter.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self.meter.remove(self.tensor.untyped_storage())
