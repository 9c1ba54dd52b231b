"""What the caster's GPU kernels cost, counted without a GPU: instructions in the machine code, visits in a scene.

    python benchmarks/gpu_static.py --json outputs/gpu_static.json

Two counts. One: the kernels are built for sm_90, and every instruction of the machine code is attributed, by its line
information, to the function of `gpu_packets`, `gpu_candidates` or `gpu_kernels` that it came from. Two: the march of an
800 x 800 image is repeated on the CPU, packet by packet, and what each packet visits is counted. Their product, over
the rates of an H200, is a floor: no latency, no stall, every cache hit.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import math
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import triton
from numba import njit
from numpy.typing import NDArray
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.bvh import _morton_codes, build_bvh
from raygauss_ns.casting.gpu import candidates as gpu_candidates
from raygauss_ns.casting.gpu import kernels as gpu_kernels
from raygauss_ns.casting.gpu import packets as gpu_packets

Array = NDArray[Any]

H200 = {"multiprocessors": 132, "clock": 1.98e9, "bandwidth": 4.3e12}
"""Its data sheet: boost clock in 1/s, bytes/s as measured by this project's design."""
RATES = {"issue": 128, "exp": 16, "load": 32, "exchange": 32}
"""Lanes a clock and multiprocessor (CUDA programming guide, throughput of native instructions, 9.0)."""
KINDS = {
    "exp": re.compile(r"MUFU"),
    "load": re.compile(r"LDG|STG|RED[G.]|ATOM"),
    "exchange": re.compile(r"SHFL|REDUX|VOTE"),
}
_POINTERS = [
    "origins",
    "directions",
    "nears",
    "records",
    "squared_cutoffs",
    "boxes",
    "out",
    "grad_out",
    "moments",
    "shells",
]


# ---- instructions ----


def compile_kernel(name: str) -> tuple[str, int]:
    """Machine code with line information, and registers, of a kernel at K = 8 for images."""
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
    """Which function a line of the kernels' sources belongs to; what is done for a leaf or a Gaussian apart."""
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
            # From the outermost `if` inwards: there is a candidate, it is inside the support.
            branches = [node for node in ast.walk(function) if isinstance(node, ast.If)]
            for branch, part in zip(branches, ("leaf", "sums"), strict=True):
                span = range(branch.body[0].lineno, branch.end_lineno + 1)
                lines |= {(file, n): f"{function.name}, {part}" for n in span}
    return lines


def count_instructions(code: str) -> dict[str, Counter[str]]:
    """Instructions of each function by kind; what no line of ours stands for goes to "other"."""
    # Behind the last exit there is only what lanes that have drifted apart would do.
    lines, counts = function_lines(), {}
    code = code[: code.rindex("EXIT")]
    function, fresh = "other", True
    for line in code.splitlines():
        place = re.search(r'File "([^"]+)", line (\d+)', line)
        if place:
            found = lines.get((Path(place.group(1)).name, int(place.group(2))))
            # A chain of places runs from the innermost outwards: the first that is ours counts.
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


# ---- visits ----


@njit(cache=False)
def _march_packet(
    o: Array, d: Array, records: Array, reach: Array, boxes: Array, links: Array, step: float, counts: Array
) -> None:
    """What the forward kernel does with a packet of rays [n, 3], in float64, counting.

    `counts`: slabs, nodes visited in slabs, leaves met, Gaussians met, slabs composited, nodes visited while skipping.
    """
    n, slab = len(o), 8
    log_t = np.zeros(n)
    end_t = 8.0
    t = 0.0
    seek = True
    nodes = len(links)
    while t < end_t:
        if seek:
            nearest, node = end_t, 0
            while node < nodes:
                counts[5] += 1
                best = np.inf
                for r in range(n):
                    if log_t[r] > 6.9:
                        continue
                    enter, leave = t, nearest
                    for i in range(3):
                        a, b = (boxes[node, i] - o[r, i]) / d[r, i], (boxes[node, 3 + i] - o[r, i]) / d[r, i]
                        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
                    if enter <= leave:
                        best = min(best, enter)
                if best < np.inf:
                    if links[node, 1]:
                        nearest = best
                    node += 1
                else:
                    node = links[node, 0]
            if nearest >= end_t:
                return
            t = max(t, (math.floor(nearest / step) - 1) * step)
        counts[0] += 1
        depth = np.zeros((n, slab))
        last = t + (slab - 1) * step
        node, leaves, met = 0, 0, 0
        while node < nodes:
            counts[1] += 1
            hit = False
            for r in range(n):
                inside = log_t[r] <= 6.9
                for i in range(3):
                    a, b = o[r, i] + t * d[r, i], o[r, i] + last * d[r, i]
                    inside &= boxes[node, i] <= max(a, b) and boxes[node, 3 + i] >= min(a, b)
                hit |= inside
            if not hit:
                node = links[node, 0]
                continue
            node += 1
            if links[node - 1, 1] == 0:
                continue
            leaves += 1
            record = links[node - 1, 1] >> 4
            touched = False
            for r in range(n):
                if log_t[r] > 6.9:
                    continue
                bb, ub, uu = 0.0, 0.0, 0.0
                for i in range(3):
                    u, b = 0.0, 0.0
                    for j in range(3):
                        u += records[record, 3 + 3 * i + j] * (o[r, j] - records[record, j])
                        b += records[record, 3 + 3 * i + j] * d[r, j]
                    bb, ub, uu = bb + b * b, ub + u * b, uu + u * u
                closest, h2 = -ub / bb, uu - ub * ub / bb
                tau = min(max(closest, t), last) - closest
                if h2 + bb * tau * tau < reach[record]:
                    touched = True
                    for k in range(slab):
                        tau = t + k * step - closest
                        q = h2 + bb * tau * tau
                        if q < reach[record]:
                            depth[r, k] += records[record, 12] * math.exp(-0.5 * q) * step
            met += touched
        counts[2] += leaves
        counts[3] += met
        counts[4] += met > 0
        for r in range(n):
            log_t[r] += depth[r].sum()
        if log_t.min() > 6.9:
            return
        t += slab * step
        seek = leaves == 0


@njit
def _split(codes: Array, first: int, last: int) -> int:
    """Where records first..last-1 divide: at the change of the highest bit that differs, in the middle if none does."""
    difference = codes[first] ^ codes[last - 1]
    if difference == 0:
        return (first + last) // 2
    bit = np.uint32(1) << np.uint32(31)
    while not difference & bit:
        bit >>= np.uint32(1)
    low, high = first, last - 1  # codes[low] lacks the bit, codes[high] has it
    while high - low > 1:
        middle = (low + high) // 2
        if codes[middle] & bit:
            high = middle
        else:
            low = middle
    return high


@njit
def _build_nodes(codes: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Nodes in depth-first order from sorted codes and the boxes of the supports (same order)."""
    count = len(codes)
    boxes = np.empty((2 * count, 6), np.float32)
    links = np.empty((2 * count, 2), np.int32)
    second = np.empty(2 * count, np.int32)  # an inner node's second child; the first follows it directly
    # A pending range: its first and last record, and the inner node whose second child it is (-1: none).
    # The depth is at most 30 bits plus the halvings of equal codes.
    pending = np.empty((128, 3), np.int64)
    pending[0] = (0, count, -1)
    depth, nodes = 1, 0
    while depth > 0:
        depth -= 1
        first, last, parent = pending[depth]
        node = nodes
        nodes += 1
        if parent >= 0:
            second[parent] = node
        if last - first <= 1:
            links[node, 1] = (first << 4) | (last - first)
        else:
            middle = _split(codes, first, last)
            links[node, 1] = 0
            pending[depth] = (middle, last, node)
            pending[depth + 1] = (first, middle, -1)
            depth += 2
    # Children come after their parent: one pass from the end sees every child before its parent.
    for node in range(nodes - 1, -1, -1):
        packed = links[node, 1]
        if packed:
            first = packed >> 4
            last = first + (packed & ((1 << 4) - 1))
            for i in range(3):
                boxes[node, i] = lower[first:last, i].min()
                boxes[node, 3 + i] = upper[first:last, i].max()
        else:
            a, b = node + 1, second[node]
            for i in range(3):
                boxes[node, i] = min(boxes[a, i], boxes[b, i])
                boxes[node, 3 + i] = max(boxes[a, 3 + i], boxes[b, 3 + i])
    # A first child is missed into its sibling, a second child into wherever its parent is missed.
    links[0, 0] = nodes
    for node in range(nodes):
        if not links[node, 1]:
            links[node + 1, 0] = second[node]
            links[second[node], 0] = links[node, 0]
    return boxes[:nodes].copy(), links[:nodes].copy()


def count_visits(count: int, side: int, every: int) -> dict[str, float]:
    """Mean visits of a packet, over every `every`-th packet of an image of the benchmark's scene."""
    gaussians, colors = gpu.shell_scene(count, "cpu")
    whitenings = whitening_matrices(gaussians.scales, gaussians.quats)
    inputs = (gaussians.means, whitenings, gaussians.densities, colors)
    bvh = build_bvh(*(tensor.numpy() for tensor in inputs), gpu.SETTINGS.density_threshold)
    # The GPU's hierarchy has two children to a node: the same leaves, by the same codes.
    leaves = bvh.boxes[: bvh.levels[1]].transpose(0, 2, 1).reshape(-1, 6)[: len(bvh.order)]
    codes = _morton_codes(bvh.records[:, :3].copy())
    boxes, links = _build_nodes(codes, leaves[:, :3].copy(), leaves[:, 3:].copy())
    rays = gpu.image_rays(side, "cpu")
    origins, directions = (tensor.double().view(side, side, 3).numpy() for tensor in rays[:2])
    # Moved to where the packets' rows begin, at the scene's box.
    origins = origins + (gpu.CAMERA_DISTANCE - 1.3) * directions
    counts, packets = np.zeros(6, np.int64), 0
    for packet in range(0, (side // 4) * (side // 8), every):
        y, x = packet // (side // 8) * 4, packet % (side // 8) * 8
        o, d = (array[y : y + 4, x : x + 8].reshape(-1, 3).copy() for array in (origins, directions))
        _march_packet(o, d, bvh.records, bvh.squared_cutoff, boxes, links, gpu.SETTINGS.step, counts)
        packets += 1
    names = ("slabs", "nodes", "leaves", "gaussians", "composited", "skipping")
    return dict(zip(names, (counts / packets).tolist(), strict=True))


# ---- the floor ----

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
"""Functions that are worked through once for each visit. `next_row` and what it calls are in the code twice (and the
box once more, at the start): half of it is charged."""


def floor_of(instructions: dict[str, Counter[str]], visits: dict[str, float], packets: int) -> dict[str, float]:
    """Milliseconds an image that each unit of an H200 needs at least."""
    totals: Counter[str] = Counter()
    for visit, functions in PARTS.items():
        for function in functions:
            share = 0.5 if visit == "skipping" else 1.0
            for kind, number in instructions.get(function, Counter()).items():
                totals[kind] += share * number * visits[visit]
    lanes = H200["multiprocessors"] * H200["clock"]
    return {kind: 1e3 * 32 * totals[kind] * packets / (lanes * rate) for kind, rate in RATES.items()}


def compulsory_ms(count: int, rays: int) -> dict[str, float]:
    """Milliseconds that the memory of an H200 needs to move everything once, for each kernel.

    A ray: 32 bytes in, 20 out; in the backward pass 40 more in. A Gaussian: a record of 64 and k^2 of 4 bytes, two
    nodes of 32; in the backward pass its line of 64 read and written.
    """
    forward = rays * 52 + count * 132
    backward = rays * 72 + count * 260
    return {"forward": 1e3 * forward / H200["bandwidth"], "backward": 1e3 * backward / H200["bandwidth"]}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gaussians", type=int, nargs="+", default=[2_000, 20_000, 100_000])
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--every", type=int, default=101, help="count every so many packets")
    parser.add_argument("--json", type=Path)
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
        print(f"\n{count} Gaussians, a packet:", ", ".join(f"{name} {value:.1f}" for name, value in visits.items()))
        for name in ("forward", "backward"):
            floor = floor_of(results["instructions"][name], visits, packets)
            floor["memory"] = compulsory_ms(count, options.side**2)[name]
            results["floor_ms"][f"{name} {count}"] = floor
            print(f"  {name}: ms an image at least:", ", ".join(f"{kind} {ms:.2f}" for kind, ms in floor.items()))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
