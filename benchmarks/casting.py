"""The ray caster on a CPU: bumpy shells of Gaussians seen from outside, forward and forward + backward.

    python benchmarks/casting.py --json outputs/casting.json --plot outputs/casting.png
    python benchmarks/casting.py --mitsuba          # also Mitsuba 3 (`pip install mitsuba`)
    python benchmarks/casting.py --reference        # also the PyTorch reference, with 200 Gaussians
    python benchmarks/casting.py --memory 1000000   # peak memory of one step with that many Gaussians

The cases take turns in each round, so that other load on the machine affects all of them alike; the smallest and the
median time of the rounds are printed. CPU time is that of all threads together, divided by their number: unlike wall
time, it hardly depends on other processes. The rays of an image are cast row by row ("image") and in random order
("shuffled"). A useful evaluation is a sample inside a Gaussian's support that is not yet occluded; the rate of useful
evaluations is given relative to that of a loop that only evaluates and accumulates, measured in the same run.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common.limits import limits
from common.report import machine_facts, print_table, write_json
from common.shells import FIELD_OF_VIEW, Case, Shell, build_time, camera_rays, cast_settings, kernel_case, shell
from common.system import peak_mebibytes

from ns_support.concurrency.threads import num_threads


@dataclass
class Options:
    """What to measure."""

    counts: tuple[int, ...] = (2_000, 20_000, 100_000)
    """Numbers of Gaussians in the shell; their scale shrinks with their number, so that the coverage is the same."""
    dense_count: int = 100_000
    """Number of Gaussians in the dense case, four times as wide as in the shell; 0 omits the case."""
    resolutions: tuple[int, ...] = (200, 400)
    """Height and width of the images in pixels."""
    rounds: int = 5
    """Number of times each case is run."""
    slab: int = 128
    """Samples per slab, K."""
    shuffled: bool = True
    """Also cast the rays in random order, at the smallest resolution."""
    mitsuba: bool = False
    """Also run Mitsuba 3's volumetric primitives, at the largest resolution."""
    reference: bool = False
    """Also run the PyTorch reference beside the kernels, with 200 Gaussians at 32 pixels."""
    memory: int = 0
    """Measure only the peak memory of one step with this many Gaussians; 0: run the benchmark."""
    json: Path | None = None
    """JSON file for the results."""
    plot: Path | None = None
    """Image file for a plot of time against the number of Gaussians."""


def mitsuba_case(scene: Shell, pixels: int) -> Case:
    """Mitsuba 3's ellipsoids with its integrator for volumetric primitives, one sample per pixel.

    It does not compute the same integral: it sorts the ellipsoids along the ray and treats each as a surface with an
    opacity, which is one sample per Gaussian instead of one per step. Only
    the time for an image and its gradients is compared.
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


def draw(cases: list[Case], path: Path) -> None:
    """Plot time against the number of Gaussians at constant coverage."""
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
    """Run one step and print how much memory it added to the process."""
    scene, pixels = shell("shell", count), max(options.resolutions)
    kernel_case("small", shell("shell", 100), 16, cast_settings(options.slab), False).forward()  # compiles
    before = peak_mebibytes()
    case = kernel_case("large", scene, pixels, cast_settings(options.slab), False)
    case.clock.measure(case.forward, case.backward)
    grown = peak_mebibytes() - before
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
        case.backward(case.forward())  # compiles the kernels
    for _ in range(options.rounds):
        for case in cases:
            case.clock.measure(case.forward, case.backward)
    limit = limits()
    rows = [case.row(limit) for case in cases]
    print_table(rows)
    builds = {scene.name: build_time(scene) for scene in scenes}
    print("\nBVH build, ms: " + ", ".join(f"{name} {ms:.1f}" for name, ms in builds.items()))
    print("limits, G/s: " + ", ".join(f"{name} {value / 1e9:.1f}" for name, value in limit.items()))
    clocks = {case.name: asdict(case.clock) for case in cases}
    record = {"machine": machine_facts(), "limits": limit, "builds_ms": builds, "table": rows, "rounds_ms": clocks}
    write_json(options.json, record)
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(cases, options.plot)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
