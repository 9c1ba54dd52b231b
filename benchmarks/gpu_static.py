"""The cost of the caster's GPU kernels, computed without a GPU: instructions in the machine code, visits in a scene.

    python benchmarks/gpu_static.py --json outputs/gpu_static.json

Two things are counted. First, the kernels are built for sm_90, and each instruction of the machine code is attributed,
by its line information, to a function of `packets`, `candidates` or `kernels` in `raygauss_ns.casting.gpu`. Second, the
march of an 800 x 800 image is repeated on the CPU, packet by packet, and what each packet visits is counted
(`common/packet_visits.py`). Their product, divided by the rates of an H200, is a lower bound of the time: no latency,
no stalls, every cache access a hit.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from common.packet_visits import count_visits
from common.report import write_json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raygauss_ns.casting.gpu import candidates as gpu_candidates
from raygauss_ns.casting.gpu import kernels as gpu_kernels
from raygauss_ns.casting.gpu import packets as gpu_packets

H200 = {"multiprocessors": 132, "clock": 1.98e9, "bandwidth": 4.3e12}
"""Data sheet: boost clock in 1/s. The bandwidth, in bytes/s, is a measured value."""
RATES = {"issue": 128, "exp": 16, "load": 32, "exchange": 32}
"""Lanes per clock and multiprocessor (CUDA programming guide, throughput of native instructions, 9.0)."""
KINDS = {
    "exp": re.compile(r"MUFU"),
    "load": re.compile(r"LDG|STG|RED[G.]|ATOM"),
    "exchange": re.compile(r"SHFL|REDUX|VOTE"),
}
_POINTERS = ["origins", "directions", "nears", "records", "reaches", "boxes", "out", "grad_out", "moments", "shells"]


def compile_kernel(name: str) -> tuple[str, int]:
    """Machine code with line information, and number of registers, of a kernel with K = 8 for images."""
    kernel = getattr(gpu_kernels, f"{name}_kernel")
    types = dict.fromkeys(_POINTERS, "*fp32") | {"counts": "*i32", "links": "*i32", "starts": "*i32", "order": "*i64"}
    types |= dict.fromkeys(["number", "width", "nodes", "number_of_shells"], "i32")
    types |= dict.fromkeys(["K", "TILED", "LISTED"], "constexpr")
    signature = {argument: types.get(argument, "fp32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if signature[n][0] == "*"}
    source = ASTSource(kernel, signature, {"K": 8, "TILED": True, "LISTED": False}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    tools = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: E731
        code = run(tools / "nvdisasm", "-gi", "-c", file.name)
        usage = run(tools / "cuobjdump", "-res-usage", file.name)
    return code, int(re.search(r"REG:(\d+)", usage).group(1))


def function_lines() -> dict[tuple[str, int], str]:
    """The function of each line of the kernels' sources; parts that run per leaf or per Gaussian are kept apart."""
    lines = {}
    for module in (gpu_packets, gpu_candidates, gpu_kernels):
        path = inspect.getfile(module)
        file = Path(path).name
        for function in ast.parse(Path(path).read_text()).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            lines |= {(file, n): function.name for n in range(function.lineno, function.end_lineno + 1)}
            if not function.name.startswith(("_collect", "_differentiate")):
                continue
            # The `if`s from the outside in: there is a candidate, the sample is inside its support.
            branches = [node for node in ast.walk(function) if isinstance(node, ast.If)]
            for branch, part in zip(branches, ("leaf", "sums"), strict=True):
                span = range(branch.body[0].lineno, branch.end_lineno + 1)
                lines |= {(file, n): f"{function.name}, {part}" for n in span}
    return lines


def count_instructions(code: str) -> dict[str, Counter[str]]:
    """Instructions of each function by kind; those without a line of the kernels are counted as "other"."""
    # The code behind the last exit only reconverges diverged lanes.
    lines, counts = function_lines(), {}
    code = code[: code.rindex("EXIT")]
    function, fresh = "other", True
    for line in code.splitlines():
        place = re.search(r'File "([^"]+)", line (\d+)', line)
        if place:
            found = lines.get((Path(place.group(1)).name, int(place.group(2))))
            # Inlined code has a chain of places, from the innermost out: the first in the kernels counts.
            if fresh or function == "other":
                function = found or "other"
            fresh = False
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9.]+)", line):
            fresh = True
            counter = counts.setdefault(function, Counter())
            counter["issue"] += 1
            for kind, pattern in KINDS.items():
                counter[kind] += bool(pattern.match(match.group(1)))
    return counts


PARTS = {
    "nodes": ("_meets", "next_candidate", "open_candidates", "_collect_colors", "_collect_gradients", "_differentiate"),
    "leaves": (
        *("record_at", "_whiten", "project", "inside_slab", "_collect_colors, leaf", "_collect_gradients, leaf"),
        "_differentiate, leaf",
    ),
    "gaussians": (
        *("densities_along", "_collect_colors, sums", "_collect_gradients, sums", "_differentiate, sums"),
        *("_fold", "_add_moments"),
    ),
    "composited": ("transmittances", "phi", "phi_slope", "forward_kernel", "backward_kernel"),
    "slabs": ("open_slab",),
    "skipping": ("_clip", "box_interval", "next_row", "next_in_hierarchy"),
}
"""Functions that run once per visit. `next_row` and the functions that it calls are in the code twice (and the box
once more, at the start), so that half of their instructions are counted."""


def floor_of(instructions: dict[str, Counter[str]], visits: dict[str, float], packets: int) -> dict[str, float]:
    """Lower bound of the time per image of each unit of an H200, in milliseconds."""
    totals: Counter[str] = Counter()
    for visit, functions in PARTS.items():
        for function in functions:
            copies = 2 if visit == "skipping" else 1
            for kind, number in instructions.get(function, Counter()).items():
                totals[kind] += number / copies * visits[visit]
    lanes = H200["multiprocessors"] * H200["clock"]
    return {kind: 1e3 * 32 * totals[kind] * packets / (lanes * rate) for kind, rate in RATES.items()}


def compulsory_ms(count: int, rays: int) -> dict[str, float]:
    """Time for each kernel in milliseconds in which an H200 transfers everything once.

    A ray: 32 bytes in, 20 out; in the backward pass 40 more in. A Gaussian: a record of 64 and a squared cutoff radius
    of 4 bytes, two nodes of 32; in the backward pass also its moments of 64, read and written.
    """
    forward = rays * 52 + count * 132
    backward = rays * 72 + count * 260
    return {"forward": 1e3 * forward / H200["bandwidth"], "backward": 1e3 * backward / H200["bandwidth"]}


def main() -> None:
    """Count, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gaussians", type=int, nargs="+", default=[2_000, 20_000, 100_000], help="sizes of the scenes"
    )
    parser.add_argument("--side", type=int, default=800, help="height and width of the image in pixels")
    parser.add_argument("--every", type=int, default=101, help="count the visits of every N-th packet")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results: dict[str, Any] = {"instructions": {}, "visits": {}, "floor_ms": {}}
    for name in ("forward", "backward"):
        code, registers = compile_kernel(name)
        counts = count_instructions(code)
        results["instructions"][name] = {"registers": registers, **counts}
        print(f"\n{name}: {registers} registers; instructions of each function: all, exp, load, exchange")
        for function, counter in sorted(counts.items(), key=lambda item: -item[1]["issue"]):
            print(f"  {function:20}", *(f"{counter[kind]:5}" for kind in RATES))
    packets = (options.side // 4) * (options.side // 8)
    for count in options.gaussians:
        visits = count_visits(count, options.side, options.every)
        results["visits"][count] = visits
        print(f"\n{count} Gaussians, per packet:", ", ".join(f"{name} {value:.1f}" for name, value in visits.items()))
        for name in ("forward", "backward"):
            floor = floor_of(results["instructions"][name], visits, packets)
            floor["memory"] = compulsory_ms(count, options.side**2)[name]
            results["floor_ms"][f"{name} {count}"] = floor
            print(f"  {name}: lower bound, ms per image:", ", ".join(f"{kind} {ms:.2f}" for kind, ms in floor.items()))
    write_json(options.json, results)


if __name__ == "__main__":
    main()
