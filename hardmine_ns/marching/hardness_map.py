"""Where in space training still has much to learn, and how long a ray's steps may be elsewhere.

A cell c of the occupancy grid remembers the hardness H_c of what was sampled in it, per length of ray. After a step of
N rays, with g_i the hardness of the visible sample i (`mining.hardness`) and d_i the length of its interval,

    v_i = N g_i / d_i,  0 for samples whose density was looked up and that turned out hidden or empty
    H_c <- v_i  where nothing was known,  else  H_c + 0.2 (v_i - H_c),  for one sample after the other
    H   <- 0.9 H + 0.1 (sum of N g_i) / (sum of d_i) over the visible samples, from its first value

N keeps the number of rays, by which losses are divided, out of it. A ray's stride in cell c, in intervals, is

    s_c = clamp(floor(H / H_c + 1/2), 1, most),  UNKNOWN_STRIDE where nothing is known

so that a stretch of ray in one sample is as hard as another: fine steps where much is to be learnt, be the space dense
or not, and long ones through what is empty or learnt already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hardmine_ns.marching.cpu import merging as cpu
from hardmine_ns.marching.occupancy import OccupancyGrid
from hardmine_ns.marching.samples import PackedSamples
from ns_support.concurrency.processes import Processes

UNKNOWN_STRIDE = 4
"""Intervals that become one where nothing is known."""
RATE, DECAY = 0.2, 0.9
_UNKNOWN = -1.0


def strides(hardness: Tensor, mean: float, most: int) -> Tensor:
    """Intervals that become one.

    Args:
        hardness: H_c of cells, of any shape; negative where it is not known.
        mean: H.
        most: greatest stride, >= 1.

    Returns:
        Whole numbers from 1 to `most`, of the same shape and dtype.
    """
    found = torch.floor(mean / hardness + 0.5)
    found = torch.where(hardness == 0, float(most), found)  # also if the mean is 0
    return torch.where(hardness < 0, float(UNKNOWN_STRIDE), found).clamp(1, most)


class HardnessMap(nn.Module):
    """The hardness that cells of an occupancy grid remember; on a CPU.

    Buffers, both saved in checkpoints: `values` [cells] H_c and `mean` [] H, -1 where nothing is known. A map of no
    cells does nothing and is in no checkpoint. A checkpoint without a map changes nothing, so that a new map stays
    empty; one with a map of another size empties it.

    Args:
        cells: of the grid; 0 for a map that does nothing.
    """

    values: Tensor
    mean: Tensor

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((cells,), _UNKNOWN))
        self.register_buffer("mean", torch.tensor(_UNKNOWN))
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def known(self) -> tuple[Tensor, float] | None:
        """H_c [cells] and H; None for a map that does nothing."""
        return (self.values, float(self.mean)) if len(self.values) else None

    def watch(
        self, positions: Tensor, visible: Tensor, samples: PackedSamples, num_rays: int
    ) -> Callable[[Tensor], None] | None:
        """What is to be told the hardness of the visible samples, once the backward pass knows it.

        Args:
            positions: [n, 3] of all samples that were looked up, in the scene.
            visible: [B] int64, which of them the visible ones are.
            samples: these B samples.
            num_rays: N.

        Returns:
            A function of g [B]; None for a map that does nothing.
        """
        if not len(self.values):
            return None
        lengths = samples.t_ends - samples.t_starts

        def tell(hardness: Tensor) -> None:
            of_rays = hardness.detach().to(lengths.dtype) * num_rays
            values = lengths.new_zeros(len(positions)).index_copy_(0, visible, of_rays / lengths)
            sums = torch.stack([of_rays.double().sum(), lengths.double().sum()])
            self._found = positions.detach(), values, sums

        return tell

    @torch.no_grad()
    def learn(self, grid: OccupancyGrid, processes: Processes) -> None:
        """Take over what the latest step has found; nothing if its gradient was not finite.

        Args:
            grid: whose cells they are.
            processes: that train together; each learns what all have found.
        """
        found, self._found = self._found, None
        if not len(self.values) or (found is None and processes.size == 1):
            return
        nothing = self.values.new_zeros(0)
        positions, values, sums = found or (nothing.view(0, 3), nothing, torch.zeros(2, dtype=torch.float64))
        positions, values = processes.gather(positions), processes.gather(values)
        hardness, length = processes.sum(sums).tolist()
        if not length > 0 or not bool(values.isfinite().all()):
            return
        cpu.learn_hardness(self.values, positions, values, grid, RATE)
        now = hardness / length
        self.mean.fill_(now if self.mean < 0 else DECAY * float(self.mean) + (1 - DECAY) * now)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if len(self.values):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        values, mean = (state_dict.pop(prefix + name, None) for name in ("values", "mean"))
        self._found = None
        if values is None or mean is None:  # nerfstudio loads twice, the second time without the model's part
            return
        fits = values.shape == self.values.shape
        self.values.copy_(values) if fits else self.values.fill_(_UNKNOWN)
        self.mean.copy_(mean) if fits else self.mean.fill_(_UNKNOWN)
