"""The caster and the hash encoding on a GPU: milliseconds, images per second, peak memory. Needs no nerfstudio.

    python benchmarks/gpu.py --json outputs/gpu.json
    python benchmarks/gpu.py --train data/blender/lego     # trains, too: PSNR and seconds
    python benchmarks/gpu.py --device cpu --small          # the same code in a few seconds, to see that it runs

"image" finds Gaussians by the hierarchy, "image, lists" by a list for each tile (`casting.gpu.LISTS`).

Milliseconds are medians between CUDA events, after a warm-up; the hierarchy is built anew in each forward pass, as in
training. Scenes are a bumpy shell of N flat Gaussians, opaque after a few, seen by the Blender scenes' camera.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hardmine_ns.hash_encoding import HashEncoding
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

SETTINGS = CastSettings(step=0.0025, density_threshold=0.1, sample_offset=0.5, transmittance_threshold=1e-3)
CAMERA_ANGLE_X = 0.6911
"""Horizontal field of view of the Blender scenes, in radians."""
CAMERA_DISTANCE = 4.0


def shell_scene(count: int, device: str, seed: int = 0) -> tuple[Gaussians, Tensor]:
    """Flat Gaussians on a bumpy sphere of radius about 1, each with an optical depth of about 1, and their colours."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    bumps = 1 + 0.08 * torch.sin(9 * normals).prod(-1, keepdim=True) + 0.02 * torch.rand(count, 1, generator=generator)
    width = 0.7 * math.sqrt(4 * math.pi / count)
    thickness = max(0.25 * width, 0.003)
    sizes = torch.tensor([width, width, thickness]) * (0.6 + 0.8 * torch.rand(count, 3, generator=generator))
    # The rotation that turns z into the normal: halfway between the two, by pi.
    axis = normals + torch.tensor([0.0, 0.0, 1.0 + 1e-4])
    quats = torch.cat([torch.zeros(count, 1), torch.nn.functional.normalize(axis, dim=-1)], dim=1)
    densities = (0.2 + 0.6 * torch.rand(count, generator=generator)) / thickness
    scene = (normals * bumps, sizes, quats, densities, torch.rand(count, 3, generator=generator))
    means, scales, quats, densities, colors = (tensor.to(device) for tensor in scene)
    return Gaussians(means, scales, quats, densities), colors


def image_rays(side: int, device: str) -> Rays:
    """A square image of side x side rays, row by row."""
    half = math.tan(CAMERA_ANGLE_X / 2)
    steps = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * half
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    directions = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3), dim=-1)
    origins = torch.tensor([[0.0, 0.0, -CAMERA_DISTANCE]], device=device).repeat(side * side, 1)
    nears = torch.full((side * side,), 0.05, device=device)
    return Rays(origins, directions, nears, torch.full_like(nears, torch.inf), side)


def random_rays(count: int, device: str) -> Rays:
    """Rays from anywhere around the scene to anywhere in it: the least coherent batch there is."""
    generator = torch.Generator().manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * CAMERA_DISTANCE
    directions = torch.nn.functional.normalize(torch.rand(count, 3, generator=generator) - 0.5 - origins, dim=-1)
    nears = torch.full((count,), 0.05)
    rays = (origins, directions, nears, torch.full_like(nears, torch.inf))
    return Rays(*(tensor.to(device) for tensor in rays))


def milliseconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of `work`, after three runs that don't count."""
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


@contextmanager
def candidates_from(lists: bool) -> Iterator[None]:
    """Cast images by lists, or by the hierarchy; without Triton there is neither."""
    try:
        from raygauss_ns.casting.gpu import launch as gpu
    except ImportError:
        yield
        return
    before, gpu.LISTS = gpu.LISTS, lists
    try:
        yield
    finally:
        gpu.LISTS = before


def measure_cast(count: int, rays: Rays, options: argparse.Namespace) -> dict[str, float]:
    """Forward, and forward with backward, of one scene and set of rays."""
    gaussians, colors = shell_scene(count, options.device)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def forward() -> Tensor:
        outputs = cast(gaussians, colors, rays, options.settings, backend=options.backend)
        return torch.cat([outputs.rgb, outputs.transmittance[:, None], outputs.depth[:, None]], dim=1)

    with torch.no_grad():
        image = forward()
        forward_ms = milliseconds(forward, options.device, options.repeats)
    leaves = [tensor.requires_grad_() for tensor in (*gaussians, colors)]
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).to(image)
    both_ms = milliseconds(lambda: torch.autograd.grad(forward(), leaves, cotangent), options.device, options.repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else math.nan
    return {
        "gaussians": count,
        "rays": len(rays.origins),
        "forward_ms": forward_ms,
        "backward_ms": both_ms - forward_ms,
        "forward_per_second": 1e3 / forward_ms,
        "peak_mib": peak,
        "opacity": 1 - float(image[:, 3].mean()),
    }


def measure_hash_encoding(points: int, half: bool, options: argparse.Namespace) -> dict[str, float]:
    """Forward and table gradient at instant-ngp's sizes: 16 levels of 2 features, 2^19 rows."""
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


def describe_machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "triton": version}


def run_kernels(options: argparse.Namespace) -> dict[str, Any]:
    """The table of all scenes, printed as it grows."""
    results: dict[str, Any] = {"cast": [], "hash_encoding": []}
    image = image_rays(options.side, options.device)
    shuffle = torch.randperm(len(image.origins), generator=torch.Generator().manual_seed(0)).to(options.device)
    kinds = {
        "image": image,
        "image, shuffled": image.select(shuffle),
        "random": random_rays(options.batch, options.device),
    }
    if options.backend == "gpu" or (options.backend == "auto" and options.device == "cuda"):
        kinds["image, lists"] = kinds["image"]
    print(f"{'rays':16} {'Gaussians':>9} {'forward':>9} {'backward':>9} {'per s':>8} {'peak MiB':>8} {'opacity':>7}")
    for count in options.gaussians:
        for kind, rays in kinds.items():
            with candidates_from(lists=kind == "image, lists"):
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
    return results


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line, and the sizes that follow from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backend", choices=["auto", "cpu", "gpu", "reference"], default="auto")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU works off in seconds")
    parser.add_argument("--gaussians", type=int, nargs="+", help="sizes of the scenes")
    parser.add_argument("--train", type=Path, help="folder of a Blender-format scene to train on")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: see that it works with --device cpu --small")
    small = options.small
    options.side, options.batch = (48, 512) if small else (800, 2**14)
    options.points, options.repeats = (2**10, 1) if small else (2**18, 20)
    options.gaussians = options.gaussians or ([500] if small else [2_000, 20_000, 100_000, 1_000_000])
    options.steps = options.steps or (4 if small else 30_000)
    options.settings = SETTINGS._replace(step=0.02) if small else SETTINGS
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write what was asked for."""
    options = parse_options(arguments)
    results: dict[str, Any] = describe_machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in results.items()))
    results |= run_kernels(options)
    if options.train is not None:
        from gpu_train import train_scene

        results["training"] = train_scene(options)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2))
    return results


if __name__ == "__main__":
    main()
