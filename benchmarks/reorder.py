"""What Morton order in memory saves the ray caster on a CPU: the same Gaussians in random order and in Morton order.

    python benchmarks/reorder.py --json outputs/reorder.json

The bumpy shells of `casting.py`, forward and forward + backward, a forward pass with its gradients being one round; the
orders take turns (A B A B ...), so that what else the machine does falls on both alike. Saved is the median over rounds
of the time saved in that round. CPU time of all threads together, divided by their number. Apart from that: what
building the hierarchy takes in either order, and computing the 30-bit codes with Numba (as the hierarchy does) and with
PyTorch (as `raygauss_ns.gaussians.maintenance` does).
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from casting import Case, Shell, build_time, cast_settings, kernel_case, print_table, shell

from ns_support.concurrency.threads import num_threads
from raygauss_ns.casting import Gaussians
from raygauss_ns.casting.cpu.bvh import _morton_codes
from raygauss_ns.casting.morton import morton_codes


@dataclass
class Options:
    """What to measure."""

    counts: tuple[int, ...] = (60_000, 300_000)
    """Gaussians in the shell."""
    pixels: int = 400
    """On a side of the image."""
    rounds: int = 9
    """Times that each order is cast."""
    slab: int = 128
    """Samples that are processed together, K."""
    json: Path | None = None
    """Where to write the figures."""


def in_order(scene: Shell, order: torch.Tensor, name: str) -> Shell:
    parameters = [tensor.detach()[order].clone() for tensor in (*scene.gaussians, scene.colors)]
    return Shell(name, Gaussians(*parameters[:4]), parameters[4])


def fastest(run: Callable[[], Any]) -> float:
    """Milliseconds, the least of 5 after a first time."""
    times = []
    for _ in range(6):
        begin = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - begin))
    return min(times[1:])


def saved(before: list[float], after: list[float]) -> str:
    return f"{statistics.median(1 - b / a for a, b in zip(before, after, strict=True)):.1%}"


def measure(count: int, options: Options) -> dict[str, Any]:
    """A line of the table, and the rounds it comes from."""
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
        case.backward(case.forward())  # compiles
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
        "hierarchy ms, random": round(build_time(scenes["random"]), 1),
        "Morton  ": round(build_time(scenes["Morton"]), 1),
        "codes ms, Numba": round(fastest(lambda: _morton_codes(points.numpy())), 2),
        "PyTorch": round(fastest(lambda: morton_codes(points, 10)), 2),
    }
    rounds = {name: {"forward": case.clock.cpu_forward, "both": case.clock.cpu_both} for name, case in cases.items()}
    return {"row": row, "rounds_ms": rounds}


def main(options: Options) -> None:
    """Run and print."""
    results = [measure(count, options) for count in options.counts]
    print_table([result["row"] for result in results])
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"machine": platform.machine(), "threads": num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "pixels": options.pixels, "cases": results}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
