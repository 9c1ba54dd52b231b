"""What Morton order in memory saves the ray caster on a CPU: the same Gaussians in random order and in Morton order.

    python benchmarks/reorder.py --json outputs/reorder.json

The scenes are the bumpy shells of `casting.py`. A round is a forward and a backward pass. The two orders take turns
(A B A B ...), so that other load on the machine affects both alike. "saved" is the median over the rounds of the
fraction of time saved in each. Times are CPU time of all threads together, divided by their number. Also measured: the
time to build the BVH in either order, and to compute the 30-bit codes with Numba (as the BVH does) and with PyTorch (as
`raygauss_ns.gaussians.maintenance` does).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common.report import machine_facts, print_table, write_json
from common.shells import Case, Shell, build_time, cast_settings, kernel_case, shell
from common.timing import least_cpu_milliseconds

from raygauss_ns.casting import Gaussians
from raygauss_ns.casting.cpu.bvh import _morton_codes
from raygauss_ns.casting.morton import morton_codes


@dataclass
class Options:
    """What to measure."""

    counts: tuple[int, ...] = (60_000, 300_000)
    """Numbers of Gaussians in the shell."""
    pixels: int = 400
    """Height and width of the image in pixels."""
    rounds: int = 9
    """Number of times each order is cast."""
    slab: int = 128
    """Samples per slab, K."""
    json: Path | None = None
    """JSON file for the results."""


def in_order(scene: Shell, order: torch.Tensor, name: str) -> Shell:
    parameters = [tensor.detach()[order].clone() for tensor in (*scene.gaussians, scene.colors)]
    return Shell(name, Gaussians(*parameters[:4]), parameters[4])


def saved(before: list[float], after: list[float]) -> str:
    return f"{statistics.median(1 - b / a for a, b in zip(before, after, strict=True)):.1%}"


def measure(count: int, options: Options) -> dict[str, Any]:
    """A row of the table, and the times of all rounds."""
    scene = shell("shell", count)
    means = scene.gaussians.means.detach()
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    orders = {"random": shuffled, "Morton": torch.argsort(morton_codes(means), stable=True)}
    scenes = {name: in_order(scene, order, name) for name, order in orders.items()}
    settings = cast_settings(options.slab)
    cases: dict[str, Case] = {
        name: kernel_case(name, ordered, options.pixels, settings, False) for name, ordered in scenes.items()
    }
    for case in cases.values():
        case.backward(case.forward())  # compiles the kernels
    for _ in range(options.rounds):
        for case in cases.values():
            case.clock.measure(case.forward, case.backward)
    random, morton = cases["random"].clock, cases["Morton"].clock
    points = scenes["random"].gaussians.means.detach()
    row = {
        "Gaussians": count,
        "forward ms, random": round(statistics.median(random.cpu_forward), 1),
        "Morton": round(statistics.median(morton.cpu_forward), 1),
        "saved": saved(random.cpu_forward, morton.cpu_forward),
        "both ms, random": round(statistics.median(random.cpu_both), 1),
        "Morton ": round(statistics.median(morton.cpu_both), 1),
        "saved ": saved(random.cpu_both, morton.cpu_both),
        "BVH ms, random": round(build_time(scenes["random"]), 1),
        "Morton  ": round(build_time(scenes["Morton"]), 1),
        "codes ms, Numba": round(least_cpu_milliseconds(lambda: _morton_codes(points.numpy())), 2),
        "PyTorch": round(least_cpu_milliseconds(lambda: morton_codes(points, 10)), 2),
    }
    rounds = {name: {"forward": case.clock.cpu_forward, "both": case.clock.cpu_both} for name, case in cases.items()}
    return {"row": row, "rounds_ms": rounds}


def main(options: Options) -> None:
    """Run and print."""
    results = [measure(count, options) for count in options.counts]
    print_table([result["row"] for result in results])
    write_json(options.json, {"machine": machine_facts(), "pixels": options.pixels, "cases": results})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
