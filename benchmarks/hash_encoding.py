"""The hash encoding against nerfstudio's PyTorch implementation: forward, backward and optimiser step, on the CPU.

    python benchmarks/hash_encoding.py --json outputs/hash_encoding.json

The two take turns (A B A B ...), so that other load on the machine affects both alike. CPU time, of all threads
together, shows how much load there was.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from common.limits import copy_bandwidth
from common.report import write_json
from torch import Tensor

from hardmine_ns.hash_encoding import HashEncoding, RowAdam

LEVELS, FEATURES, LOG2_SIZE, BASE, MAX = 16, 2, 19, 16, 2048
PARTS = {"forward": (0, 1), "backward": (1, 2), "optimiser": (2, 3), "forward + backward": (0, 2)}
"""For each part of a step, the indices of the clocks at its start and at its end."""


@dataclass
class Options:
    """What to measure."""

    points: int = 2**16
    """Number of points in one step."""
    rounds: int = 5
    """Number of times each implementation is run, in turn."""
    layout: Literal["uniform", "rays"] = "uniform"
    """Points uniform in the cube, which is the worst case for caches, or 64 along each of some random rays."""
    baseline: bool = True
    """Also run nerfstudio's implementation, which takes seconds per round."""
    positions_gradient: bool = False
    """Also differentiate with respect to the positions."""
    json: Path | None = None
    """JSON file for the results."""


def sample_points(options: Options) -> Tensor:
    if options.layout == "uniform":
        return torch.rand(options.points, 3)
    start, end = torch.rand(2, (options.points + 63) // 64, 1, 3)
    return torch.lerp(start, end, torch.linspace(0, 1, 64)[:, None]).reshape(-1, 3)[: options.points].contiguous()


class Contestant:
    """One implementation, with the optimiser of its method."""

    def __init__(self, name: str, encode: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.name, self.encode, self.optimizer = name, encode, optimizer
        self.clocks: list[list[tuple[float, float]]] = []

    def step(self, positions: Tensor, cotangent: Tensor) -> None:
        """Train on one batch, and read the clocks (wall time, CPU time of this process) between the parts."""
        self.optimizer.zero_grad()
        positions.grad = None
        clocks = [(time.perf_counter(), time.process_time())]
        output = self.encode(positions)
        clocks.append((time.perf_counter(), time.process_time()))
        output.backward(cotangent)
        clocks.append((time.perf_counter(), time.process_time()))
        self.optimizer.step()
        clocks.append((time.perf_counter(), time.process_time()))
        self.clocks.append(clocks)

    def figures(self, points: int) -> dict[str, dict[str, float]]:
        """Milliseconds of each part and of forward + backward together, and nanoseconds per point."""
        figures = {}
        for part, (start, stop) in PARTS.items():
            seconds = [clocks[stop][0] - clocks[start][0] for clocks in self.clocks]
            busy = [clocks[stop][1] - clocks[start][1] for clocks in self.clocks]
            figures[part] = {
                "min_ms": min(seconds) * 1e3,
                "median_ms": statistics.median(seconds) * 1e3,
                "min_cpu_ms": min(busy) * 1e3,
                "min_ns_per_point": min(seconds) / points * 1e9,
            }
        return figures


def ours() -> Contestant:
    encoding = HashEncoding(LEVELS, FEATURES, LOG2_SIZE, BASE, MAX, backend="cpu")
    return Contestant("hardmine_ns (Numba)", encoding, RowAdam([encoding.table], lr=1e-2))


def nerfstudio() -> Contestant:
    from nerfstudio.field_components.encodings import HashEncoding as NerfstudioHashEncoding

    encoding = NerfstudioHashEncoding(
        num_levels=LEVELS,
        min_res=BASE,
        max_res=MAX,
        log2_hashmap_size=LOG2_SIZE,
        features_per_level=FEATURES,
        implementation="torch",
    )
    return Contestant("nerfstudio (PyTorch)", encoding, torch.optim.Adam(encoding.parameters(), lr=1e-2, eps=1e-15))


def gathered_bytes(points: int) -> int:
    """Bytes of the 8 corners' features of all levels: the forward pass reads them, the backward reads and writes."""
    return points * LEVELS * 8 * FEATURES * 4


def report(options: Options, contestants: list[Contestant]) -> dict[str, object]:
    figures = {contestant.name: contestant.figures(options.points) for contestant in contestants}
    print(f"{options.points} points ({options.layout}), {LEVELS} levels, T = 2^{LOG2_SIZE}, {options.rounds} rounds,")
    print(f"{torch.get_num_threads()} threads on {platform.machine()}\n")
    print(f"{'':22s}{'part':20s}{'min ms':>10s}{'median ms':>11s}{'CPU ms':>10s}{'ns/point':>10s}")
    for name, parts in figures.items():
        for part, row in parts.items():
            print(f"{name:22s}{part:20s}{row['min_ms']:10.1f}{row['median_ms']:11.1f}", end="")
            print(f"{row['min_cpu_ms']:10.1f}{row['min_ns_per_point']:10.0f}")
    result: dict[str, object] = {"figures": figures, "threads": torch.get_num_threads()}
    fast = figures[contestants[0].name]
    limit = copy_bandwidth()
    for part, passes in (("forward", 1), ("backward", 2)):
        rate = passes * gathered_bytes(options.points) / fast[part]["min_ms"] * 1e3
        result[f"{part}_bytes_per_second"] = rate
        print(f"\n{part}: {rate / 1e9:.1f} GB/s of table entries; a copy reaches {limit / 1e9:.1f} GB/s", end="")
    result["copy_bytes_per_second"] = limit
    print()
    if len(contestants) > 1:
        slow = figures[contestants[1].name]
        for statistic in ("min", "median"):
            part = "forward + backward"
            ratio = slow[part][f"{statistic}_ms"] / fast[part][f"{statistic}_ms"]
            result[f"ratio_{statistic}"] = ratio
            print(f"{part}, ratio of the {statistic}s: {ratio:.1f}x")
    return result


def main(options: Options) -> None:
    torch.manual_seed(0)
    positions = sample_points(options).requires_grad_(options.positions_gradient)
    cotangent = torch.randn(options.points, LEVELS * FEATURES)
    contestants = [ours(), nerfstudio()] if options.baseline else [ours()]
    contestants[0].step(positions, cotangent)  # compiles the kernels, or loads them from the cache
    contestants[0].clocks.clear()
    for _ in range(options.rounds):
        for contestant in contestants:
            contestant.step(positions, cotangent)
    result = report(options, contestants)
    settings = {key: str(value) if key == "json" else value for key, value in vars(options).items()}
    write_json(options.json, {"options": settings, **result})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
