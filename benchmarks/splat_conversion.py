"""What the conversion to 3D Gaussian splatting loses: PSNR of test views, ray cast and splatted.

    python benchmarks/splat_conversion.py SCENE --steps 500 --views 10 --fine-tune 3

Trains `raygauss` on a Blender scene (or opens the run that `--load-config` names), writes the file that
`raygauss-export splat` writes, and renders the same views in several ways:

- cast: the trained model, as `ns-eval` does;
- cast, file read back: the splat file's Gaussians with the same caster. Reading inverts the conversion of density to
  opacity, so that this shows the loss of the colours alone;
- splatted: the file as viewers show it. Projection and harmonics are gsplat's PyTorch reference; compositing is here.
- splatted, fine-tuned: the same for the file that `raygauss-export splat --fine-tune MINUTES` writes.

White background, the data parser's test split, no LPIPS. Prints a table and, with --output, writes JSON; --picture
writes an image of one view: cast, splatted, and the differences.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common.montage import montage
from common.report import machine_line, write_json
from common.training import configure, train
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from nerfstudio.cameras.cameras import Cameras
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ns_support.commands.finished import open_finished
from ns_support.data.ply import Columns, read_ply, write_ply
from ns_support.metrics import image_metrics
from raygauss_ns.export import fine_tuned, header_comments
from raygauss_ns.gaussians.ply_formats import read_cloud, splat_columns
from raygauss_ns.model import RayGaussModel
from raygauss_ns.targets import ground_truth

LOW_PASS = 0.3
"""Variance that 3DGS adds to each splat (pixels squared)."""
LEAST_ALPHA, MOST_ALPHA = 1 / 255, 0.999
"""Opacity in a pixel below which 3DGS omits a splat, and the largest opacity (gsplat's value)."""
LEAST_TRANSMITTANCE = 1e-4
"""Transmittance at which 3DGS stops compositing a pixel."""
TILE = 20
"""Side in pixels of the squares that are composited together."""
DIFFERENCE = 4
"""How many times the picture enlarges differences."""
LEAST_WIDTH = 240
"""Width of the picture's images in pixels, at least: smaller ones are enlarged, by a whole number."""


class Compared(NamedTuple):
    """What `compare` finds, by the way to render.

    Attributes:
        scores: means over the views: "psnr" (dB) and "ssim" against the photographs, "to cast" (dB) against the image
            that is cast.
        images: [H, W, 3] of the view in the middle, the photograph under "photograph".
    """

    scores: dict[str, dict[str, float]]
    images: dict[str, Tensor]


def stacked(columns: Columns, *names: str) -> Tensor:
    """Properties of a PLY file as [N, len(names)] float32."""
    return torch.from_numpy(np.stack([columns[name] for name in names], -1).astype(np.float32))


def splat_image(columns: Columns, camera: Cameras, background: Tensor) -> Tensor:
    """Render a splat file as its viewers do (Kerbl et al. 2023): EWA projection, sorting by depth, alpha blending.

    Args:
        columns: the properties of the file.
        camera: one perspective camera without distortion.
        background: [3].

    Returns:
        [H, W, 3].
    """
    width, height = int(camera.width), int(camera.height)
    means, scales = stacked(columns, *"xyz"), stacked(columns, *(f"scale_{i}" for i in range(3))).exp()
    covariances, _ = _quat_scale_to_covar_preci(stacked(columns, *(f"rot_{i}" for i in range(4))), scales, True, False)
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds.reshape(3, 4)
    view = torch.linalg.inv(pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])))
    intrinsics = camera.get_intrinsics_matrices().reshape(1, 3, 3)
    radii, centers, depths, conics, _ = _fully_fused_projection(
        means, covariances, view[None], intrinsics, width, height, LOW_PASS
    )
    count = sum(name.startswith("f_rest_") for name in columns)
    rest = stacked(columns, *(f"f_rest_{i}" for i in range(count))).view(-1, 3, count // 3).transpose(1, 2)
    harmonics = torch.cat([stacked(columns, *(f"f_dc_{i}" for i in range(3)))[:, None], rest], 1)
    degree = round((count // 3 + 1) ** 0.5) - 1
    colors = (_spherical_harmonics(degree, means - pose[:3, 3], harmonics) + 0.5).clamp_min(0.0)
    opacities = torch.sigmoid(stacked(columns, "opacity"))[:, 0]

    order = torch.argsort(depths[0])
    order = order[radii[0, order] > 0]
    splats = (centers[0, order], conics[0, order], radii[0, order], opacities[order], colors[order])
    image = torch.empty(height, width, 3)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            image[top:bottom, left:right] = _tile(splats, (top, left, bottom, right), background)
    return image


def _tile(splats: tuple[Tensor, ...], corners: tuple[int, int, int, int], background: Tensor) -> Tensor:
    """Composite the splats that reach a rectangle of pixels, sorted front to back."""
    top, left, bottom, right = corners
    centers, _, radii, _, _ = splats
    x, y = centers.unbind(-1)
    reaches = (x + radii > left) & (x - radii < right) & (y + radii > top) & (y - radii < bottom)
    centers, conics, _, opacities, colors = (values[reaches] for values in splats)
    rows, columns = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
    dx, dy = columns.reshape(-1, 1) - centers[:, 0], rows.reshape(-1, 1) - centers[:, 1]
    exponent = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alphas = (opacities * torch.exp(-exponent)).clamp(max=MOST_ALPHA)
    alphas = torch.where(alphas < LEAST_ALPHA, 0.0, alphas)
    after = torch.cumprod(1 - alphas, -1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
    # A splat that would reduce the transmittance to the limit is not drawn, nor is any behind it.
    drawn = after > LEAST_TRANSMITTANCE
    weights = torch.where(drawn, before * alphas, 0.0)
    left_over = 1 - weights.sum(-1, keepdim=True)
    return (weights @ colors + left_over * background).view(bottom - top, right - left, 3)


@torch.no_grad()
def compare(
    model: RayGaussModel, views: list[tuple[Cameras, dict[str, Any]]], folder: Path, files: dict[str, Columns]
) -> Compared:
    """Render views in each way and compare them with the photographs.

    Args:
        model: trained.
        views: camera and ground truth of each.
        folder: for files.
        files: other columns to splat, by the name of the way to render.
    """
    path = folder / "splat.ply"
    write_ply(path, splat_columns(model.cloud, model.cast_settings.density_threshold), header_comments(model))
    columns = read_ply(path).columns
    trained, cloud = model.cloud, read_cloud(path, model.unit, model.config.sh_degree, model.config.num_lobes)
    splatted = {"splatted": columns, **files}
    found: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, Tensor] = {}
    model.update_to_step(model.total_steps)  # the file has the colours of the full SH and SG degree
    for number, (camera, batch) in enumerate(views):
        outputs = model.get_outputs_for_camera(camera)
        truth, _ = ground_truth(outputs, batch, model.device)
        background = outputs["background"].reshape(-1, 3)[0]
        model.cloud = cloud
        images = {"cast": outputs["rgb"], "cast, file read back": model.get_outputs_for_camera(camera)["rgb"]}
        model.cloud = trained
        images |= {way: splat_image(file, camera, background).clamp(0, 1) for way, file in splatted.items()}
        for way, image in images.items():
            to_cast = {"to cast": image_metrics(image, images["cast"])["psnr"]} if way != "cast" else {}
            found.setdefault(way, []).append(image_metrics(image, truth) | to_cast)
        if number == len(views) // 2:
            shown = {"photograph": truth, **images}
    means = {
        way: {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
        for way, scores in found.items()
    }
    return Compared(means, shown)


def picture(images: dict[str, Tensor]) -> Image.Image:
    """A view cast and splatted, and below that the photograph and how much each splatted image differs from the cast.

    Args:
        images: of `compare`.
    """
    cast = images["cast"]
    enlarged = -(-LEAST_WIDTH // cast.shape[1])

    def pixels(image: Tensor) -> NDArray[np.uint8]:
        rounded = np.round(255 * image.clamp(0, 1).numpy()).astype(np.uint8)
        return rounded.repeat(enlarged, 0).repeat(enlarged, 1)

    splatted = {way: image for way, image in images.items() if way.startswith("splatted")}
    differences = [pixels(1 - DIFFERENCE * (image - cast).abs()) for image in splatted.values()]
    below = f"difference from cast, {DIFFERENCE} times"
    return montage(
        [
            ([pixels(image) for image in (cast, *splatted.values())], ["ray cast", *splatted]),
            ([pixels(images["photograph"]), *differences], ["photograph", *[below] * len(differences)]),
        ]
    )


def fitted(pipeline: Any, minutes: list[float]) -> dict[str, Columns]:
    """The columns of fine-tuned files, by the time that they were fitted for."""
    model, files = pipeline.model, {}
    plain = splat_columns(model.cloud, model.cast_settings.density_threshold)
    for time_limit in minutes:
        begin = time.process_time()
        columns, said = fine_tuned(model, pipeline.datamanager.train_dataset.cameras, plain, 60 * time_limit)
        print(f"{time_limit:g} min, {time.process_time() - begin:.0f} s of CPU time: {said}", flush=True)
        files[f"splatted, fine-tuned for {time_limit:g} min"] = columns
    return files


def opened(given: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a trained run, and the timings of its training if that was here."""
    if given.load_config is not None:
        return open_finished(given.load_config, "test")[1], {}
    config = configure("raygauss", given.data, "blender-data", given.steps, folder, given.option)
    trainer, timings = train(config, float("inf"), given.seed)
    return trainer.pipeline, timings


def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path, help="a Blender scene")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--load-config", type=Path, help="config.yml of a run of that scene, instead of training")
    arguments.add_argument("--views", type=int, default=10, help="test views, spread evenly over all of them")
    arguments.add_argument("--fine-tune", type=float, nargs="*", default=[], help="minutes of fits of the splat file")
    arguments.add_argument("--seed", type=int, default=42)
    arguments.add_argument("--option", action="append", default=[], help="field=value of the model's configuration")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    arguments.add_argument("--picture", type=Path, help="image file for a view in all ways")
    given = arguments.parse_args()

    with tempfile.TemporaryDirectory() as name:
        pipeline, timings = opened(given, Path(name))
        model = pipeline.model.eval()
        every = list(pipeline.datamanager.fixed_indices_eval_dataloader)
        count = min(given.views, len(every))
        begin = time.perf_counter()
        files = fitted(pipeline, given.fine_tune)
        scores, images = compare(model, [every[i * len(every) // count] for i in range(count)], Path(name), files)
    results = {"data": given.data.name, "machine": machine_line(), "gaussians": len(model.cloud), "views": count}
    results |= timings
    print(f"\n{results}\nrendering took {time.perf_counter() - begin:.0f} s\n")
    print("| | PSNR, dB | loss, dB | SSIM | against cast, dB |\n|---|---|---|---|---|")
    for way, score in scores.items():
        loss = scores["cast"]["psnr"] - score["psnr"]
        to_cast = f"{score['to cast']:.2f}" if "to cast" in score else ""
        print(f"| {way} | {score['psnr']:.2f} | {loss:.2f} | {score['ssim']:.4f} | {to_cast} |")
    if given.picture is not None:
        picture(images).save(given.picture, quality=90)
    write_json(given.output, results | {"scores": scores})


if __name__ == "__main__":
    main()
