"""The ranks of data-parallel training: sums, broadcasts, and a check that all ranks hold the same parameters.

Each rank is a process that holds the whole model and renders its own part of a step's batch. Gradients and statistics
of the batch are summed over all ranks, so that everything computed from them is equal on all ranks. This replaces
PyTorch's `DistributedDataParallel`, which supports neither parameters that change their size (Gaussians are added and
removed) nor sparse gradients of dense parameters (those of the hash table on a CPU).

    L = sum over ranks r of L_r,    dL/dtheta = sum over r of dL_r/dtheta

If the loss of the whole batch is a mean, each rank divides its losses by the number of ranks.

Depends on torch only. The backend is the one that `torch.distributed` was started with: gloo on a CPU, NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """All ranks of a training. With size 1 nothing is communicated and every method returns at once.

    Every rank must call the same methods in the same order.

    Attributes:
        rank: of this process, 0 <= rank < size; rank 0 writes files and serves the viewer.
        size: number of ranks, >= 1.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> Processes:
        """The ranks of `torch.distributed`'s default group; a single rank if there is none."""
        if dist.is_available() and dist.is_initialized():
            return Processes(dist.get_rank(), dist.get_world_size())
        return Processes()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place.

        Args:
            tensor: dense, of the same shape and type on every rank.

        Returns:
            The tensor itself.
        """
        if self.size > 1:
            whole = tensor.contiguous()
            dist.all_reduce(whole)
            if whole is not tensor:
                tensor.copy_(whole)
        return tensor

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, concatenated in the order of ranks.

        Args:
            rows: [n, ...]; n may differ between ranks, the other dimensions may not.

        Returns:
            [sum of n, ...]; with a single rank, the rows themselves.
        """
        if self.size == 1:
            return rows
        counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
        lengths = [int(count) for count in counts]
        # Collectives require equal shapes: shorter tensors are padded.
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def broadcast_number(self, number: int, device: torch.device | str = "cpu") -> int:
        """Rank 0's number, on every rank.

        Args:
            number: in the range of int64.
            device: one that the backend supports.
        """
        if self.size == 1:
            return number
        return int(self.broadcast(torch.tensor(number, dtype=torch.int64, device=device)))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank, in place.

        Args:
            tensor: dense and contiguous, of the same shape and type on every rank.

        Returns:
            The tensor itself.
        """
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    @torch.no_grad()
    def broadcast_module(self, module: nn.Module) -> None:
        """Load rank 0's state into a module, on every other rank.

        Tensors may have another size there, if the module can load that: the number of random or triangulated points
        may differ.
        """
        if self.size == 1:
            return
        state = module.state_dict()
        described = [[(name, tensor.shape, tensor.dtype) for name, tensor in state.items()]]
        dist.broadcast_object_list(described, 0)
        device = next(iter(state.values())).device
        for name, shape, dtype in described[0]:
            whole = state[name].contiguous() if self.rank == 0 else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(whole, 0)
            state[name] = whole
        if self.rank > 0:
            module.load_state_dict(state)

    def check_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Make sure that all ranks hold the same tensors, bit for bit.

        Args:
            tensors: by name; the same names on every rank.
            when: completes "The processes differ ... ".

        Raises:
            RuntimeError: on every rank; names the tensors that differ.
        """
        if self.size == 1 or not tensors:
            return
        marks = torch.stack([_fingerprint(tensor) for tensor in tensors.values()])
        everyones = self.gather(marks)
        if len(everyones) != self.size * len(marks):
            raise RuntimeError(f"The processes differ {when}: not all of them have {len(marks)} tensors.")
        differs = (everyones.view(self.size, len(marks), -1) != everyones[: len(marks)]).any(-1).any(0)
        names = [name for name, wrong in zip(tensors, differs.tolist(), strict=True) if wrong]
        if names:
            raise RuntimeError(
                f"The processes differ {when}, in {', '.join(names)}. They must be alike to go on together: "
                "same software and same kind of device everywhere?"
            )

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks.

        A parameter without a gradient on any rank stays without. If only some ranks have none, it counts as zero there.

        Args:
            parameters: the same, in the same order, on every rank. Gradients may be sparse in their rows (`sparse_dim`
                1); the sum is then sparse too, unless the gradient is dense on some rank.
        """
        if self.size == 1 or not parameters:
            return
        # The form of each gradient on this rank, in two bits: dense, sparse. Exchanged first, so that all ranks take
        # the same branch.
        kinds = torch.tensor(
            [[p.grad is not None and not p.grad.is_sparse, p.grad is not None and p.grad.is_sparse] for p in parameters]
        )
        found = self.sum(kinds.to(parameters[0].device, torch.int64)) > 0
        for parameter, (dense, sparse) in zip(parameters, found.tolist(), strict=True):
            if dense:  # on some rank: if no row of a batch is mined, a sparse gradient is replaced by zeros
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                elif parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
                self.sum(parameter.grad)
            elif sparse:
                parameter.grad = self._sum_of_sparse(parameter)

    def _sum_of_sparse(self, parameter: nn.Parameter) -> Tensor:
        grad, shape = parameter.grad, parameter.shape
        if grad is None:
            rows, values = parameter.new_zeros(0, dtype=torch.int64), parameter.detach().new_zeros(0, *shape[1:])
        else:
            rows, values = grad._indices()[0], grad._values()
        rows, values = self.gather(rows), self.gather(values)
        return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False).coalesce()


def _fingerprint(tensor: Tensor) -> Tensor:
    """[2] int64: number of entries, and a checksum of their bits that depends on their order."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.is_floating_point():
        flat = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    # Modulo 2^64: integers wrap around.
    weights = torch.arange(flat.numel(), device=flat.device) % 65_521 + 1
    return torch.stack([torch.tensor(flat.numel(), device=flat.device), (flat.to(torch.int64) * weights).sum()])
