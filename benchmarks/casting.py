"""The ray caster on a CPU: bumpy shells of Gaussians seen from outside, forward and forward + backward.

    python benchmarks/casting.py --json outputs/casting.json --plot outputs/casting.png
    python benchmarks/casting.py --mitsuba          # beside Mitsuba 3, when `pip install mitsuba` has been run
    python benchmarks/casting.py --reference        # beside the dense PyTorch definition, at 200 Gaussians
    python benchmarks/casting.py --memory 1000000   # peak memory of one step with that many Gaussians

Cases are run in turn, round after round, so that what else the machine does falls on all alike; the smallest and the
median time of the rounds are printed. CPU time is that of all threads together, divided by their number: unlike wall
time it hardly knows who else is running. The rays of an image are cast as one ("image"), and in random order
("shuffled"). A useful evaluation is a sample inside a Gaussian's support that the ray still reaches; their rate is
given relative to that of a loop which does nothing but evaluate and accumulate, measured in the same run.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numba import njit
from torch import Tensor

from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.simd import LANES, aligned_zeros, exp, load, pointer, splat, store
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast, whitening_matrices
from raygauss_ns.casting.cpu.bvh import build_bvh

DISTANCE, FIELD_OF_VIEW = 3.0, 50.0
"""Of the camera from the shell's centre (its radius is 1), and in degrees."""
THRESHOLD = 0.1
STEPS_PER_DIAGONAL = 512
COUNTED_RAYS = 1500
"""Rays on which useful evaluations are counted."""


@dataclass
class Options:
    """What to measure."""

    counts: tuple[int, ...] = (2_000, 20_000, 100_000)
    """Gaussians in the shell, whose scale shrinks with their number so that coverage stays."""
    dense_count: int = 100_000
    """Gaussians of the dense case, four times as wide as in the shell; 0 leaves it out."""
    resolutions: tuple[int, ...] = (200, 400)
    """Pixels on a side of the image."""
    rounds: int = 5
    """Times that every case is run."""
    slab: int = 128
    """Samples that are processed together, K."""
    shuffled: bool = True
    """Also cast the rays in random order, at the smallest resolution."""
    mitsuba: bool = False
    """Also run Mitsuba 3's volumetric primitives, at the smallest and at the largest resolution."""
    reference: bool = False
    """Also run the dense reference against the kernels, with 200 Gaussians at 32 pixels."""
    memory: int = 0
    """Instead of all this: peak memory of one step with so many Gaussians."""
    json: Path | None = None
    """Where to write the figures."""
    plot: Path | None = None
    """Where to draw time against the number of Gaussians."""


@dataclass
class Shell:
    """Gaussians on a bumpy sphere, flat along its normals, and a camera."""

    name: str
    gaussians: Gaussians
    colors: Tensor
    leaves: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaves = [tensor.requires_grad_() for tensor in (*self.gaussians, self.colors)]


def shell(name: str, count: int, width: float = 1.0, seed: int = 0) -> Shell:
    """A shell with scales of 0.55 spacings along the surface, times `width`, and a quarter of that across it."""
    random = np.random.default_rng(seed)
    index = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / count), np.pi * (1 + 5**0.5) * index
    normals = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], 1)
    bumps = 0.08 * np.prod(np.sin(normals * [5, 7, 6]), axis=1)
    means = normals * (1 + bumps + 0.01 * random.standard_normal(count))[:, None]
    scales = 0.55 * width * math.sqrt(4 * math.pi / count) * np.exp(0.3 * random.standard_normal((count, 3)))
    scales[:, 2] *= 0.25
    # The shortest rotation that takes the z axis to the normal.
    quats = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], 1)
    densities = 0.03 / scales[:, 2] * np.exp(0.5 * random.standard_normal(count))
    arrays = (means, scales, quats, densities, random.random((count, 3)))
    tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    return Shell(name, Gaussians(*tensors[:4]), tensors[4])


def camera_rays(pixels: int) -> tuple[Tensor, Tensor]:
    """Origins and directions [pixels^2, 3] of a pinhole camera in a direction that favours no axis."""
    focal = pixels / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    rows, columns = torch.meshgrid(torch.arange(pixels) + 0.5, torch.arange(pixels) + 0.5, indexing="ij")
    local = torch.stack([(columns - pixels / 2) / focal, (pixels / 2 - rows) / focal, -torch.ones_like(rows)], -1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    directions = torch.nn.functional.normalize(local.reshape(-1, 3) @ rotation.T, dim=-1)
    return (rotation[:, 2] * DISTANCE).expand_as(directions).contiguous(), directions


def cast_settings(slab: int) -> CastSettings:
    return CastSettings(
        step=2.4 * 3**0.5 / STEPS_PER_DIAGONAL,
        density_threshold=THRESHOLD,
        sample_offset=0.5,
        transmittance_threshold=1e-3,
        samples_per_slab=slab,
    )


def useful_evaluations(scene: Shell, origins: Tensor, directions: Tensor, settings: CastSettings) -> float:
    """Samples inside a support that a ray reaches, estimated for all rays from some of them."""
    chosen = torch.linspace(0, len(origins) - 1, min(COUNTED_RAYS, len(origins))).long()
    means, scales, quats, densities = (tensor.detach() for tensor in scene.gaussians)
    whitenings = whitening_matrices(scales, quats)
    reach = 2 * torch.log(densities / THRESHOLD)
    total = 0
    for origin, direction in zip(origins[chosen], directions[chosen], strict=True):
        u, b = torch.einsum("nij,nj->ni", whitenings, origin - means), whitenings @ direction
        bb = (b * b).sum(-1)
        closest = -(u * b).sum(-1) / bb
        height = ((u + closest[:, None] * b) ** 2).sum(-1)
        hit = height < reach
        half = torch.sqrt((reach[hit] - height[hit]) / bb[hit])
        first = ((closest[hit] - half) / settings.step - settings.sample_offset).ceil().long()
        last = ((closest[hit] + half) / settings.step - settings.sample_offset).floor().long()
        spans = (last - first + 1).clamp_min(0)
        samples = torch.repeat_interleave(first - (spans.cumsum(0) - spans), spans) + torch.arange(int(spans.sum()))
        which = torch.repeat_interleave(torch.arange(len(spans)), spans)
        t = (samples + settings.sample_offset) * settings.step
        f = densities[hit][which] * torch.exp(
            -(height[hit][which] + bb[hit][which] * (t - closest[hit][which]) ** 2) / 2
        )
        if len(samples):
            depth = torch.zeros(int(samples.max()) + 2).index_add_(0, samples + 1, f * settings.step)
            reached = torch.exp(-depth.cumsum(0))[samples] > settings.transmittance_threshold
            total += int(reached.sum())
    return total * len(origins) / len(chosen)


# ---- limits of the machine -------------------------------------------------------------------------------------------


@njit(nogil=True)
def _multiply_add(repeats: int, out: Any) -> None:
    a, b, c, d, e, f, g, h = (
        splat(0.1),
        splat(0.2),
        splat(0.3),
        splat(0.4),
        splat(0.5),
        splat(0.6),
        splat(0.7),
        splat(0.8),
    )
    for _ in range(repeats):
        a, b, c, d = a * 0.99 + 0.1, b * 0.99 + 0.1, c * 0.99 + 0.1, d * 0.99 + 0.1
        e, f, g, h = e * 0.99 + 0.1, f * 0.99 + 0.1, g * 0.99 + 0.1, h * 0.99 + 0.1
    store(pointer(out), 0, a + b + c + d + e + f + g + h)


@njit(nogil=True)
def _exponentials(repeats: int, out: Any) -> None:
    a, b, c, d = splat(-0.1), splat(-0.2), splat(-0.3), splat(-0.4)
    for _ in range(repeats):
        a, b, c, d = exp(a) * -0.5, exp(b) * -0.5, exp(c) * -0.5, exp(d) * -0.5
    store(pointer(out), 0, a + b + c + d)


@njit(nogil=True)
def _accumulations(repeats: int, out: Any) -> None:
    """What a sample of a Gaussian cannot do without: an exponential, and four sums in memory."""
    p = pointer(out)
    for i in range(repeats):
        for j in range(16):
            f = exp(splat(np.float32(-0.01) * np.float32(i & 15) - np.float32(j)))
            for channel in range(4):
                at = (j * 4 + channel) * LANES
                store(p, at, load(p, at) + f * np.float32(0.3 + 0.1 * channel))


def rate(kernel: Any, operations: int) -> float:
    """Lane operations per second on all threads together."""
    threads = num_threads()
    outs = [aligned_zeros((64, LANES)) for _ in range(threads)]
    kernel(10, outs[0])
    repeats, best = 1 << 16, 0.0
    for _ in range(5):
        begin = time.perf_counter()
        run_on_threads(lambda thread, _: kernel(repeats, outs[thread]), threads)
        best = max(best, threads * repeats * operations * LANES / (time.perf_counter() - begin))
    return best


def limits() -> dict[str, float]:
    """Multiply-adds, exponentials and sample accumulations per second."""
    return {
        "multiply_adds": rate(_multiply_add, 8),
        "exponentials": rate(_exponentials, 4),
        "accumulations": rate(_accumulations, 16),
    }


# ---- cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Times of a case's rounds, in milliseconds."""

    cpu_forward: list[float] = field(default_factory=list)
    cpu_both: list[float] = field(default_factory=list)
    wall_both: list[float] = field(default_factory=list)

    def measure(self, forward: Callable[[], Any], backward: Callable[[Any], None]) -> None:
        """Add a round."""
        threads = num_threads()
        cpu, wall = time.process_time(), time.perf_counter()
        out = forward()
        self.cpu_forward.append(1e3 * (time.process_time() - cpu) / threads)
        backward(out)
        self.cpu_both.append(1e3 * (time.process_time() - cpu) / threads)
        self.wall_both.append(1e3 * (time.perf_counter() - wall))


@dataclass
class Case:
    """Rays into a shell."""

    name: str
    gaussians: int
    rays: int
    forward: Callable[[], Any]
    backward: Callable[[Any], None]
    evaluations: float = math.nan
    clock: Clock = field(default_factory=Clock)

    def row(self, limit: dict[str, float]) -> dict[str, Any]:
        """The case as a line of the table."""
        forward, both = min(self.clock.cpu_forward), min(self.clock.cpu_both)
        rate_both = self.evaluations / (1e-3 * both)
        return {
            "case": self.name,
            "forward ms": round(forward, 1),
            "both ms": round(both, 1),
            "median": round(statistics.median(self.clock.cpu_both), 1),
            "wall ms": round(min(self.clock.wall_both), 1),
            "Mrays/s": round(self.rays / both / 1e3, 2),
            "Meval": f"{self.evaluations / 1e6:.1f}",
            "Meval/s": f"{rate_both / 1e6:.0f}",
            "of limit": f"{rate_both / limit['accumulations']:.1%}",
        }


def kernel_case(
    name: str, scene: Shell, pixels: int, settings: CastSettings, shuffle: bool, backend: Any = "cpu"
) -> Case:
    """Our caster on a shell, every pixel's colour with the same gradient."""
    origins, directions = camera_rays(pixels)
    if shuffle:
        order = torch.randperm(len(origins), generator=torch.Generator().manual_seed(0))
        origins, directions = origins[order], directions[order]
    nears, fars = torch.zeros(len(origins)), torch.full((len(origins),), torch.inf)
    width = 0 if shuffle else pixels

    def forward() -> Tensor:
        gaussians, colors = Gaussians(*scene.leaves[:4]), scene.leaves[4]
        rays = (origins, directions, nears, fars)
        return cast(gaussians, colors, Rays(*rays, width), settings, backend=backend).rgb

    def backward(rgb: Tensor) -> None:
        torch.autograd.grad(rgb.sum(), scene.leaves)

    evaluations = useful_evaluations(scene, origins, directions, settings)
    return Case(name, len(scene.colors), len(origins), forward, backward, evaluations)


def mitsuba_case(scene: Shell, pixels: int) -> Case:
    """Mitsuba 3's ellipsoids with its integrator for volumetric primitives, one sample a pixel.

    Not the same integral: it sorts whole ellipsoids along the ray and takes each for a surface of some opacity, a
    sample for each Gaussian instead of one for each step. What is compared is the time for an image and its gradients.
    """
    import drjit as dr
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    means, scales, quats, densities = (tensor.detach().numpy() for tensor in scene.gaussians)
    quats = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    opacity = 1 - np.exp(-densities * scales[:, 2] * math.sqrt(2 * math.pi))
    origin, directions = camera_rays(pixels)
    middle = directions.mean(0).numpy()
    shape = {
        "type": "ellipsoids",
        "centers": mi.TensorXf(means.astype(np.float32)),
        "scales": mi.TensorXf(scales.astype(np.float32)),
        "quaternions": mi.TensorXf(quats[:, [1, 2, 3, 0]].astype(np.float32)),
        "opacities": mi.TensorXf(opacity[:, None].astype(np.float32)),
        "sh_coeffs": mi.TensorXf(((scene.colors.detach().numpy() - 0.5) / 0.28209479).astype(np.float32)),
    }
    mitsuba_scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "volprim_rf_basic", "max_depth": 64},
            "sensor": {
                "type": "perspective",
                "fov": FIELD_OF_VIEW,
                "to_world": mi.ScalarTransform4f().look_at(origin[0].numpy(), (origin[0].numpy() + middle), [0, 1, 0]),
                "film": {"type": "hdrfilm", "width": pixels, "height": pixels, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": 1},
            },
            "shape": shape,
        }
    )
    params = mi.traverse(mitsuba_scene)
    names = [name for name in params.keys() if name.split(".")[-1] in ("data", "opacities", "sh_coeffs")]  # noqa: SIM118

    def forward() -> Any:
        for name in names:
            dr.enable_grad(params[name])
        params.update()
        image = mi.render(mitsuba_scene, params, spp=1)
        dr.eval(image)
        dr.sync_thread()
        return image

    def backward(image: Any) -> None:
        dr.backward(dr.sum(image))
        dr.eval([dr.grad(params[name]) for name in names])
        dr.sync_thread()

    return Case(f"mitsuba {scene.name} {pixels} px", len(means), pixels**2, forward, backward)


def build_time(scene: Shell) -> float:
    """Milliseconds of CPU time to build the hierarchy, the least of 5."""
    means, scales, quats, densities = (tensor.detach() for tensor in scene.gaussians)
    whitenings = whitening_matrices(scales, quats)
    arrays = [tensor.numpy() for tensor in (means, whitenings, densities, scene.colors.detach())]
    times = []
    for _ in range(6):
        begin = time.process_time()
        build_bvh(*arrays, THRESHOLD)
        times.append(1e3 * (time.process_time() - begin))
    return min(times[1:])


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in rows[0]}, *rows]:
        print("  ".join(str(row[name]).ljust(widths[name]) for name in rows[0]))


def draw(cases: list[Case], path: Path) -> None:
    """Time against the number of Gaussians at constant coverage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    shells = [case for case in cases if case.name.startswith("shell")]
    for kind in sorted({case.name.split(" ", 2)[2] for case in shells}):
        own = sorted((c.gaussians, min(c.clock.cpu_both)) for c in shells if c.name.endswith(kind))
        axis.loglog(*zip(*own, strict=True), "o-", label=kind)
    axis.set(xlabel="Gaussians, at constant coverage", ylabel=f"forward + backward, ms of {num_threads()} threads")
    axis.grid(which="both", alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def measure_memory(count: int, options: Options) -> None:
    """Run one step and print by how much the process grew."""
    scene, pixels = shell("shell", count), max(options.resolutions)
    kernel_case("small", shell("shell", 100), 16, cast_settings(options.slab), False).forward()  # compiles
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = kernel_case("large", scene, pixels, cast_settings(options.slab), False)
    case.clock.measure(case.forward, case.backward)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    inputs = sum(tensor.numel() * tensor.element_size() for tensor in scene.leaves) / 2**20
    print(
        f"{count} Gaussians ({inputs:.0f} MiB), {pixels} px: {case.clock.wall_both[0]:.0f} ms, "
        f"{grown:.0f} MiB more at the peak"
    )


def main(options: Options) -> None:
    """Run and print."""
    if options.memory:
        measure_memory(options.memory, options)
        return
    settings = cast_settings(options.slab)
    scenes = [shell(f"shell {count}", count) for count in options.counts]
    if options.dense_count:
        scenes.append(shell(f"dense {options.dense_count}", options.dense_count, width=4.0))
    cases = []
    for scene in scenes:
        for pixels in options.resolutions:
            cases.append(kernel_case(f"{scene.name} {pixels} px image", scene, pixels, settings, False))
        if options.shuffled:
            pixels = min(options.resolutions)
            cases.append(kernel_case(f"{scene.name} {pixels} px shuffled", scene, pixels, settings, True))
        if options.mitsuba and scene.name.startswith("shell"):
            cases.append(mitsuba_case(scene, max(options.resolutions)))
    if options.reference:
        small = shell("shell 200", 200)
        cases += [kernel_case(f"{kind} 200 32 px", small, 32, settings, False, kind) for kind in ("cpu", "reference")]
    for case in cases:
        case.backward(case.forward())  # compiles
    for _ in range(options.rounds):
        for case in cases:
            case.clock.measure(case.forward, case.backward)
    limit = limits()
    rows = [case.row(limit) for case in cases]
    print_table(rows)
    builds = {scene.name: build_time(scene) for scene in scenes}
    print("\nhierarchy, ms: " + ", ".join(f"{name} {ms:.1f}" for name, ms in builds.items()))
    print("limits, G/s: " + ", ".join(f"{name} {value / 1e9:.1f}" for name, value in limit.items()))
    machine = {"machine": platform.machine(), "threads": num_threads(), "torch": torch.__version__}
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        clocks = {case.name: asdict(case.clock) for case in cases}
        record = {"machine": machine, "limits": limit, "builds_ms": builds, "table": rows, "rounds_ms": clocks}
        options.json.write_text(json.dumps(record, indent=1))
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(cases, options.plot)


if __name__ == "__main__":
    main(tyro.cli(Options))
