"""The colour kernel against its PyTorch reference: milliseconds for N Gaussians, forward and with gradients.

    python benchmarks/color.py --count 100000 --lobes 7

Kernel and reference take turns. The medians of the rounds and their ratio are printed, and the kernel's throughput in
bytes per second, counting one access to each parameter in the forward pass and two (with its gradient) in the backward.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from common.report import machine_line, write_json
from common.timing import milliseconds
from torch import Tensor
from torch.nn.functional import normalize

from raygauss_ns.color.api import view_colors
from raygauss_ns.color.reference import ColorBasis, colors_reference


def measure(count: int, degree: int, lobes: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds, their ratio, and the kernel's throughput."""
    torch.manual_seed(0)
    shapes = ((3,), ((degree + 1) ** 2 - 1, 3), (lobes, 3), (lobes,), (lobes, 3))
    basis = ColorBasis(*(torch.randn(count, *shape, requires_grad=True) for shape in shapes))
    means, center = torch.randn(count, 3, requires_grad=True), torch.tensor([0.0, 0.0, 4.0])
    cotangent = torch.randn(count, 3)

    def kernel() -> Tensor:
        return view_colors(basis, means, center)

    def reference() -> Tensor:
        return colors_reference(basis, normalize(means - center, dim=-1))

    work: dict[str, Callable[[], object]] = {
        "kernel_forward": kernel,
        "kernel_both": lambda: kernel().backward(cotangent),
        "reference_forward": reference,
        "reference_both": lambda: reference().backward(cotangent),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, call in work.items():
            for parameter in (means, *basis):
                parameter.grad = None
            took = milliseconds(call)
            if turn > 0:  # the first round compiles the kernel
                times[name].append(took)
    result = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    size = 4 * (means.numel() + sum(t.numel() for t in basis))
    result["reference_over_kernel"] = result["reference_both_ms"] / result["kernel_both_ms"]
    result["kernel_gigabytes_per_second"] = 3 * size / result["kernel_both_ms"] / 1e6
    return result


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100_000, help="number of Gaussians")
    arguments.add_argument("--degree", type=int, default=2, help="degree of the spherical harmonics (SH)")
    arguments.add_argument("--lobes", type=int, default=7, help="spherical Gaussians (SG) of each Gaussian's colour")
    arguments.add_argument("--rounds", type=int, default=15, help="timed rounds")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()
    result = measure(given.count, given.degree, given.lobes, given.rounds)
    machine = machine_line()
    print(f"{given.count} Gaussians, SH degree {given.degree}, {given.lobes} SG lobes; {machine}")
    for name, value in result.items():
        print(f"{name:28} {value:9.2f}")
    write_json(given.output, vars(given) | {"output": None, "machine": machine} | result)


if __name__ == "__main__":
    main()
