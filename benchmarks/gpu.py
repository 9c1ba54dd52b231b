"""The caster and the hash encoding on a GPU: milliseconds, images per second, peak memory. Needs no nerfstudio.

    python benchmarks/gpu.py --json outputs/gpu.json
    python benchmarks/gpu.py --train data/blender/lego     # also trains: PSNR and seconds
    python benchmarks/gpu.py --device cpu --small          # the same code at small sizes, which takes seconds

Times are medians of CUDA event timings, after a warm-up. The hierarchy and the lists are built in each forward pass, as
in training. Each scene is a bumpy shell of N flat Gaussians, of which a few make a ray opaque, seen by the Blender
scenes' camera.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.gpu_scene import SETTINGS, image_rays, random_rays, shell_scene
from common.report import write_json
from torch import Tensor

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid, march_rays
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.rendering.field import HashField, UnitCube
from hardmine_ns.rendering.visibility import Rays as FieldRays
from hardmine_ns.rendering.visibility import Visible, search
from ns_support.kernels.backend import triton_module
from raygauss_ns.casting import Gaussians, Rays, cast


def milliseconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of `work`, after runs that are not counted: three on a GPU, one on the CPU."""
    for _ in range(3 if device == "cuda" else 1):
        work()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            clock = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - clock))
    return statistics.median(times)


def measure_cast(count: int, rays: Rays, options: argparse.Namespace) -> dict[str, float]:
    """Time the forward and the backward pass of one shell and set of rays."""
    return measure_scene(*shell_scene(count, options.device), rays, options)


def measure_scene(gaussians: Gaussians, colors: Tensor, rays: Rays, options: argparse.Namespace) -> dict[str, float]:
    """Time the forward and the backward pass of one scene and set of rays."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def forward() -> Tensor:
        outputs = cast(gaussians, colors, rays, options.settings, backend=options.backend)
        return torch.cat([outputs.rgb, outputs.transmittance[:, None], outputs.depth[:, None]], dim=1)

    with torch.no_grad():
        image = forward()
        forward_ms = milliseconds(forward, options.device, options.repeats)
    leaves = [tensor.detach().requires_grad_() for tensor in (*gaussians, colors)]
    gaussians, colors = Gaussians(*leaves[:4]), leaves[4]
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).to(image)
    both_ms = milliseconds(lambda: torch.autograd.grad(forward(), leaves, cotangent), options.device, options.repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else math.nan
    return {
        "gaussians": len(colors),
        "rays": len(rays.origins),
        "forward_ms": forward_ms,
        "backward_ms": both_ms - forward_ms,
        "forward_per_second": 1e3 / forward_ms,
        "peak_mib": peak,
        "opacity": 1 - float(image[:, 3].mean()),
    }


def measure_hash_encoding(points: int, half: bool, options: argparse.Namespace) -> dict[str, float]:
    """Time the forward pass and the table's gradient at instant-ngp's sizes: 16 levels of 2 features, 2^19 rows."""
    encoding = HashEncoding(backend="auto").to(options.device)
    if half:
        encoding = encoding.half()
    positions = torch.rand(points, 3, device=options.device)
    with torch.no_grad():
        forward_ms = milliseconds(lambda: encoding(positions), options.device, options.repeats)
    cotangent = torch.randn(points, encoding.out_dim, device=options.device).to(encoding.table.dtype)
    both_ms = milliseconds(
        lambda: torch.autograd.grad(encoding(positions), encoding.table, cotangent), options.device, options.repeats
    )
    return {"points": points, "half": half, "forward_ms": forward_ms, "backward_ms": both_ms - forward_ms}


@torch.no_grad()
def measure_search(number: int, options: argparse.Namespace) -> dict[str, float]:
    """Time marching and the search for visible samples on rays through a shell, in rounds and, on a GPU, in one kernel.

    The field has instant-ngp's sizes and a density of 200, so that rays end within the shell; 1,000 steps a diagonal.
    """
    torch.manual_seed(0)
    device = torch.device(options.device)
    field = HashField(HashEncoding()).to(device)
    # With features of 1 and non-negative weights, the density is the same everywhere.
    field.encoding.table.fill_(1.0)
    for layer in field.density_net.layers:
        layer.weight.abs_()
    ones = torch.ones(1, field.encoding.out_dim, device=device)
    field.density_net.layers[-1].weight[0] *= math.log(200.0) / field.density_net(ones)[0, 0]
    grid = OccupancyGrid(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]), resolution=128)
    radii = grid.random_positions(torch.arange(grid.num_cells)).norm(dim=-1)
    grid.binaries.copy_(((radii - 0.8).abs() < 0.05).view_as(grid.binaries))
    grid = grid.to(device)
    origins = 3 * torch.nn.functional.normalize(torch.randn(number, 3, device=device), dim=-1)
    directions = torch.nn.functional.normalize(torch.rand(number, 3, device=device) - 0.5 - origins, dim=-1)
    starts, fars = torch.full_like(origins[:, 0], 0.05), torch.full_like(origins[:, 0], 9.0)
    step, limits = 12**0.5 / 1000, (1e-4, 0.0)
    to_unit = UnitCube(grid.center, grid.half_extent, False)

    def in_rounds() -> Visible:
        samples = march_rays(origins, directions, starts, fars, grid, step_size=step)
        return search(field, samples, FieldRays(origins, directions), to_unit, *limits, keep_features=True)

    found = in_rounds()
    row = {"rays": number, "visible": len(found.samples), "rounds_ms": milliseconds(in_rounds, *options.timing)}
    if device.type == "cuda":
        gpu = triton_module("hardmine_ns.rendering.gpu.launch", "The search on a GPU")
        lattices = RayLattices(origins, directions, starts, fars, step, 0.0)
        report = torch.zeros(2, dtype=torch.float64, device=device)
        room = math.ceil(1.25 * len(found.samples) / 64) * 64

        def in_one() -> object:
            return gpu.visible_of_rays(field, lattices, grid, gpu.Limits(*limits), room, report, contracts=False)

        row["kernel_ms"] = milliseconds(in_one, *options.timing)
    return row


def describe_machine(device: str) -> dict[str, str]:
    """Device and versions that the results were measured with."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "triton": version}


def run_kernels(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all scenes, and print each row of the table when it is measured."""
    results: dict[str, Any] = {"cast": [], "hash_encoding": []}
    image = image_rays(options.side, options.device)
    shuffle = torch.randperm(len(image.origins), generator=torch.Generator().manual_seed(0)).to(options.device)
    kinds = {
        "image": image,
        "image, shuffled": image.select(shuffle),
        "random": random_rays(options.batch, options.device),
    }
    print(f"{'rays':16} {'Gaussians':>9} {'forward':>9} {'backward':>9} {'per s':>8} {'peak MiB':>8} {'opacity':>7}")
    for count in options.gaussians:
        for kind, rays in kinds.items():
            row = measure_cast(count, rays, options)
            results["cast"].append({"kind": kind, **row})
            print(
                f"{kind:16} {count:9} {row['forward_ms']:6.2f} ms {row['backward_ms']:6.2f} ms "
                f"{row['forward_per_second']:8.1f} {row['peak_mib']:8.0f} {row['opacity']:7.2f}",
                flush=True,
            )
    for half in (False, True) if options.device == "cuda" else (False,):
        row = measure_hash_encoding(options.points, half, options)
        results["hash_encoding"].append(row)
        print(
            f"hash encoding of {row['points']} points, float{16 if half else 32} table: "
            f"forward {row['forward_ms']:.2f} ms, table gradient {row['backward_ms']:.2f} ms"
        )
    row = measure_search(options.points // 16, options)
    results["search"] = row
    took = ", ".join(
        f"{name.removesuffix('_ms')} {row[name]:.2f} ms" for name in ("rounds_ms", "kernel_ms") if name in row
    )
    print(f"search on {row['rays']} rays, {row['visible']} visible samples: {took}")
    return results


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and derive the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backend", choices=["auto", "cpu", "gpu", "reference"], default="auto")
    parser.add_argument("--small", action="store_true", help="small sizes, which take seconds on a CPU")
    parser.add_argument("--gaussians", type=int, nargs="+", help="numbers of Gaussians of the scenes")
    parser.add_argument("--train", type=Path, help="folder of a Blender-format scene to train on")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: test the script with --device cpu --small")
    small = options.small
    options.side, options.batch = (48, 512) if small else (800, 2**14)
    options.points, options.repeats = (2**10, 1) if small else (2**18, 20)
    options.timing = options.device, options.repeats
    options.gaussians = options.gaussians or ([500] if small else [2_000, 20_000, 100_000, 1_000_000])
    options.steps = options.steps or (4 if small else 30_000)
    options.settings = SETTINGS._replace(step=0.02) if small else SETTINGS
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the results."""
    options = parse_options(arguments)
    results: dict[str, Any] = describe_machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in results.items()))
    results |= run_kernels(options)
    if options.train is not None:
        from gpu_train import train_scene

        results["training"] = train_scene(options)
    write_json(options.json, results)
    return results


if __name__ == "__main__":
    main()
