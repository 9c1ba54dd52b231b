"""The cost of the caster's GPU kernels, computed without a GPU: instructions in the machine code, visits in a scene.

    python benchmarks/gpu_static.py --json outputs/gpu_static.json
    python benchmarks/gpu_static.py --gaussians --checkpoint demo_output/training/demo/raygauss/run/nerfstudio_models/*

Two things are counted. First, the kernels are built for sm_90, and each instruction of the machine code is attributed,
by its line information, to a function of `packets`, `lists`, `slabs` or `kernels` in `raygauss_ns.casting.gpu`. Second,
the march of an 800 x 800 image is repeated on the CPU, packet by packet, and what each packet visits is counted
(`common/packet_visits.py`). Their product, divided by the rates of an H200, is a lower bound of the time: no latency,
no stalls, every cache access a hit. Packets whose list is too short are counted as if it were not.
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
from common.gpu_scene import shell_scene, trained_gaussians
from common.packet_visits import count_visits
from common.report import write_json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raygauss_ns.casting.gpu import kernels, lists, packets, slabs

H200 = {"multiprocessors": 132, "clock": 1.98e9, "bandwidth": 4.3e12}
"""Data sheet: boost clock in 1/s. The bandwidth, in bytes/s, is a measured value."""
RATES = {"issue": 128, "exp": 16, "load": 32, "exchange": 32}
"""Lanes per clock and multiprocessor (CUDA programming guide, throughput of native instructions, 9.0)."""
KINDS = {
    "exp": re.compile(r"MUFU"),
    "load": re.compile(r"LDG|STG|RED[G.]|ATOM"),
    "exchange": re.compile(r"SHFL|REDUX|VOTE"),
}
KERNELS = ("collect", "forward", "backward")
"""The kernels of a step, those for packets whose list is too short left out."""
_PASSES = ("collect_colors", "collect_gradients", "differentiate")
_POINTERS = "origins directions nears records squared_cutoffs bounds blocks intervals out grad_out moments"
_INTEGERS = "number width first1 first2 first3 roots capacity"


def compile_kernel(name: str) -> tuple[str, int]:
    """Machine code with line information, and number of registers, of a kernel with K = 8 for images."""
    kernel = getattr(kernels, f"{name}_kernel")
    types = dict.fromkeys(_POINTERS.split(), "*fp32") | dict.fromkeys(["counts", "entries", "lengths"], "*i32")
    types |= {"order": "*i64"} | dict.fromkeys(_INTEGERS.split(), "i32")
    constants = {"K": 8, "TILED": True, "WINDOWED": False}
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "fp32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if signature[n][0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
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
    """The function of each line of the kernels' sources; loops and branches that run more often are kept apart."""
    lines: dict[tuple[str, int], str] = {}
    for module in (packets, lists, slabs, kernels):
        path = inspect.getfile(module)
        file = Path(path).name
        for function in ast.parse(Path(path).read_text()).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            lines |= {(file, n): function.name for n in range(function.lineno, function.end_lineno + 1)}
            for node in ast.walk(function):  # from the outside in
                if part := inner_part(function.name, node):
                    body = range(node.body[0].lineno, node.body[-1].end_lineno + 1)
                    lines |= {(file, n): f"{function.name}, {part}" for n in body}
    return lines


def inner_part(function: str, node: ast.AST) -> str:
    """What the body of a loop or branch runs for, if not as often as the function around it."""
    if not isinstance(node, ast.While | ast.If):
        return ""
    condition = ast.unparse(node.test)
    if function == "collect":
        return "candidates" if condition.startswith("(c0 < 32)") else "tests"
    if function in _PASSES:
        parts = {"chunk < count": "chunks", "lane < 32": "pairs"}
        return parts.get(condition, "gaussians" if "inside_slab" in condition else "")
    if function in ("forward_kernel", "backward_kernel"):
        return {"row < rows": "slabs", "met > 0": "composited"}.get(condition, "")
    return ""


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
    "tests": ("_children", "_cone_meets", "collect, tests"),
    "candidates": ("_interval", "_write_entry", "collect, candidates"),
    "chunks": ("overlapping", *(f"{name}, chunks" for name in _PASSES)),
    "pairs": ("record_in", "inside_slab", *(f"{name}, pairs" for name in _PASSES)),
    "gaussians": ("densities_along", "_fold", "_add_moments", *(f"{name}, gaussians" for name in _PASSES)),
    "composited": (
        *("transmittances", "phi", "phi_slope"),
        *(f"{kernel}_kernel, composited" for kernel in ("forward", "backward")),
    ),
    "slabs": (
        *("open_slab", "_open_slab", *_PASSES),
        *(f"{kernel}_kernel, slabs" for kernel in ("forward", "backward")),
    ),
    "skipped": ("next_entry",),
}
"""Functions and parts of functions that run once per visit; all others run once per packet. In the backward pass, what
is done twice for a slab is in the code twice."""
LEVELS = 4
"""How often the test of a block is in the code."""


def runs_of(function: str, kernel: str, visits: dict[str, float]) -> float:
    """How often a packet runs each of a function's instructions."""
    collects = kernel == "collect"
    if function == "next_lane":  # in the code twice: for the first, and for all following
        if collects:
            return (2 * visits["tests"] + visits["candidates"]) / (2 * LEVELS)
        return (visits["chunks"] + visits["pairs"]) / 2
    if function in ("project", "_whiten"):
        return visits["candidates" if collects else "pairs"]
    if function in ("nearest", "farthest", "ends_of"):
        return visits["candidates" if collects else "slabs"]
    if collects and function == "open_slab":
        return 1
    found = [visits[visit] for visit, functions in PARTS.items() if function in functions]
    return (found[0] if found else 1) / (LEVELS if function in PARTS["tests"] else 1)


def floor_of(
    kernel: str, instructions: dict[str, Counter[str]], visits: dict[str, float], packets: int
) -> dict[str, float]:
    """Lower bound of the time per image of each unit of an H200, in milliseconds."""
    totals: Counter[str] = Counter()
    for function, counter in instructions.items():
        for kind, number in counter.items():
            totals[kind] += number * runs_of(function, kernel, visits)
    lanes = H200["multiprocessors"] * H200["clock"]
    return {kind: 1e3 * 32 * totals[kind] * packets / (lanes * rate) for kind, rate in RATES.items()}


def per_visit(kernel: str, instructions: dict[str, Counter[str]]) -> dict[str, float]:
    """Instructions of a kernel for one visit of each kind; "packets" is for what runs once."""
    kinds = (*PARTS, "packets")
    result = {}
    for kind in kinds:
        visits = dict.fromkeys(PARTS, 0.0) | ({kind: 1.0} if kind in PARTS else {})
        once = {function: runs_of(function, kernel, dict.fromkeys(PARTS, 0.0)) for function in instructions}
        runs = {function: runs_of(function, kernel, visits) for function in instructions}
        result[kind] = sum(
            counter["issue"] * (once[function] if kind == "packets" else runs[function] - once[function])
            for function, counter in instructions.items()
        )
    return result


def compulsory_ms(kernel: str, count: int, rays: int, hits: float) -> float:
    """Time in milliseconds in which an H200 transfers everything once.

    A ray: 32 bytes in; 20 out, and in the backward pass 40 in. A Gaussian: a record of 64 and a squared cutoff radius
    of 4 bytes; to collect, a box of 24 as well; in the backward pass its moments of 64, read and written. An entry of a
    list (`hits` for each packet of 32 rays): 12 bytes.
    """
    ray = {"collect": 32, "forward": 52, "backward": 72}[kernel]
    gaussian = {"collect": 92, "forward": 68, "backward": 196}[kernel]
    return 1e3 * (rays * ray + count * gaussian + rays / 32 * hits * 12) / H200["bandwidth"]


def main() -> None:
    """Count, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gaussians", type=int, nargs="*", default=[2_000, 20_000, 100_000], help="sizes of the shells"
    )
    parser.add_argument(
        "--checkpoint", type=Path, nargs="*", default=[], help="of `raygauss`, whose scenes are counted"
    )
    parser.add_argument("--side", type=int, default=800, help="height and width of the image in pixels")
    parser.add_argument("--every", type=int, default=101, help="count the visits of every N-th packet")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results: dict[str, Any] = {"instructions": {}, "visits": {}, "floor_ms": {}}
    for name in KERNELS:
        code, registers = compile_kernel(name)
        counts = count_instructions(code)
        visit = per_visit(name, counts)
        results["instructions"][name] = {"registers": registers, "functions": counts, "per_visit": visit}
        print(f"\n{name}: {registers} registers; instructions of each function: all, exp, load, exchange")
        for function, counter in sorted(counts.items(), key=lambda item: -item[1]["issue"]):
            print(f"  {function:30}", *(f"{counter[kind]:5}" for kind in RATES))
        print("  for one visit:", ", ".join(f"{kind} {number:.0f}" for kind, number in visit.items() if number))
    packets = (options.side // 4) * (options.side // 8)
    scenes = [(f"shell {count}", lambda count=count: shell_scene(count, "cpu")) for count in options.gaussians]
    scenes += [(str(path), lambda path=path: trained_gaussians(path)) for path in options.checkpoint]
    for scene, load in scenes:
        gaussians, colors = load()
        visits = count_visits(gaussians, colors, options.side, options.every)
        results["visits"][scene] = visits
        count = len(colors)
        print(f"\n{scene}, {count} Gaussians, per packet:", ", ".join(f"{n} {v:.4g}" for n, v in visits.items()))
        for name in KERNELS:
            floor = floor_of(name, results["instructions"][name]["functions"], visits, packets)
            floor["memory"] = compulsory_ms(name, count, options.side**2, visits["hits"])
            results["floor_ms"][f"{name} {scene}"] = floor
            print(f"  {name}: lower bound, ms per image:", ", ".join(f"{kind} {ms:.2f}" for kind, ms in floor.items()))
    write_json(options.json, results)


if __name__ == "__main__":
    main()
