"""`raygauss-export`: a trained scene as a file of Gaussians, splats or points.

    raygauss-export raygauss --load-config outputs/.../config.yml    # exact; `--pipeline.model.initial-ply` reads it
    raygauss-export splat --load-config outputs/.../config.yml       # for viewers of 3D Gaussian splatting
    raygauss-export splat --load-config outputs/.../config.yml --fine-tune 5    # fitted to ray-cast images, 5 minutes
    raygauss-export points --load-config outputs/.../config.yml      # positions and colours

All are in the coordinates of nerfstudio's scene, like those of `ns-export`; `dataparser_transforms.json` beside the
config leads back to those of the data. `raygauss_ns.gaussians.ply_formats` has the formats and what the conversion to
splats loses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro
from nerfstudio.cameras.cameras import Cameras
from rich.progress import Progress

from ns_support.commands.finished import open_finished
from ns_support.data.ply import Columns, read_ply, write_ply
from ns_support.errors import UserError, require
from ns_support.help import documented
from ns_support.rays import camera_lenses
from ns_support.runs.saved_runs import find_config
from ns_support.runs.stopping import stop_signals
from ns_support.terminal import TERMINAL, say
from raygauss_ns.casting import CastSettings
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.ply_formats import cloud_columns, header_values, point_columns, read_cloud, splat_columns
from raygauss_ns.model import RayGaussModel
from raygauss_ns.splatting import Splats
from raygauss_ns.splatting.files import ENDINGS, fitted_columns, require_format, splats_of, write_splats
from raygauss_ns.splatting.fit import fit_splats
from raygauss_ns.splatting.targets import Scene, pinholes

_OPENED_BY = "Drop it on any viewer of 3D Gaussian splatting to look at it."


def shown_cloud(model: RayGaussModel) -> GaussianCloud:
    """The Gaussians in the colours that the model shows: those of the mean photograph, where photographs differ."""
    mean = model.exposure.mean_map()
    return model.cloud if mean is None else model.cloud.recolored(*mean)


@documented
@dataclass
class Export:
    """What all kinds of export are told."""

    load_config: Path
    """The config.yml of a trained run, or the run's folder; its newest whole checkpoint is exported."""
    output_path: Path | None = None
    """The PLY file to write, or a folder for it; None: raygauss.ply, splat.ply or points.ply beside the config. `splat`
    also writes .spz and .splat."""

    def _write(self, name: str, columns_of: Callable[[RayGaussModel], Columns]) -> Path:
        config = find_config(self.load_config)
        path = output_file(self.output_path, config.parent / f"{name}.ply")
        model = load_model(config)
        say(_written(model, columns_of(model), path))
        return path


@documented
@dataclass
class ExportRayGauss(Export):
    """Every parameter, without loss: reading the file again renders identically."""

    def main(self) -> Path:
        """Write the file."""
        return self._write("raygauss", lambda model: cloud_columns(shown_cloud(model)))


@documented
@dataclass
class ExportSplat(Export):
    """3D Gaussian splatting's format, which common viewers open; an approximation."""

    fine_tune: float = 0.0
    """Minutes, >= 0, for which the splats are fitted to ray-cast images, so that a viewer of splats shows what ray
    casting shows. 0: converted only, which loses some decibels. Ctrl+C ends the fit early."""

    def main(self) -> Path:
        """Write the file."""
        require("--fine-tune", 0 <= self.fine_tune < math.inf, ">= 0 minutes", self.fine_tune)
        config = find_config(self.load_config)
        path = output_file(self.output_path, config.parent / "splat.ply", ENDINGS)
        require_format(path)
        model, cameras = load_run(config)
        columns = _splats(model)
        if self.fine_tune > 0:
            columns, said = fine_tuned(model, cameras(), columns, 60 * self.fine_tune)
            say(said)
        lost = write_splats(path, columns, header_comments(model))
        say(_sentence(model, columns, path) + lost)
        if self.fine_tune == 0:
            say("Splatted, it looks worse than ray cast; --fine-tune 5 fits it for five minutes.")
        say(_OPENED_BY)
        return path


@documented
@dataclass
class ExportPoints(Export):
    """The centres of the Gaussians and their colours."""

    def main(self) -> Path:
        """Write the file."""
        return self._write("points", lambda m: point_columns(shown_cloud(m), m.cast_settings.density_threshold))


def save_splat(model: RayGaussModel, path: Path) -> str:
    """Write a model as it is now in 3D Gaussian splatting's format.

    Args:
        model: trained or in training.
        path: the file; one that is there is replaced once the new one is whole.

    Returns:
        What was written, in a sentence.

    Raises:
        UserError: the file can't be written.
    """
    return _written(model, _splats(model), path)


def _splats(model: RayGaussModel) -> Columns:
    return splat_columns(shown_cloud(model), model.cast_settings.density_threshold)


def _written(model: RayGaussModel, columns: Columns, path: Path) -> str:
    write_ply(path, columns, header_comments(model))
    return _sentence(model, columns, path)


def _sentence(model: RayGaussModel, columns: Columns, path: Path) -> str:
    count = len(columns["x"])
    thin = len(model.cloud) - count
    left_out = f" {thin:,} that are too thin to show were left out." if thin else ""
    return f"{count:,} Gaussians written to {path}.{left_out}"


def fine_tuned(model: RayGaussModel, cameras: Cameras, columns: Columns, seconds: float) -> tuple[Columns, str]:
    """The columns fitted to ray-cast images, and a sentence on what that brought; Ctrl+C ends the fit."""
    device = model.device
    scene = Scene(shown_cloud(model), model.cast_settings, model.config.near_plane * model.unit)
    lenses, poses = camera_lenses(cameras), cameras.camera_to_worlds.reshape(-1, 3, 4)
    views = [view for lens, pose in zip(lenses, poses.cpu(), strict=True) for view in pinholes(lens, pose)]
    splats = Splats(*(value.to(device) for value in splats_of(columns)))
    ended = False

    def end() -> bool:
        nonlocal ended
        ended = True
        return False

    begin = time.monotonic()
    with Progress(console=TERMINAL, transient=True) as progress, stop_signals(end):
        task = progress.add_task("Fitting the splats", total=seconds)

        def stopped() -> bool:
            progress.update(task, completed=time.monotonic() - begin)
            return ended

        fit = fit_splats(splats, scene, views, seconds, stopped=stopped)
    said = (
        f"Fitted in {fit.steps:,} steps to {fit.images:,} ray-cast images. Splatted against ray cast: "
        f"{fit.before:.1f} dB PSNR before and {fit.after:.1f} dB after, in views between the training cameras that the "
        "fit has not seen."
    )
    return fitted_columns(columns, fit.splats), said


def output_file(wanted: Path | None, default: Path, endings: Sequence[str] = (".ply",)) -> Path:
    """The file to write.

    Args:
        wanted: what the user asked for: a file, a folder, or a name without an ending, which is a folder's.
        default: the file if nothing was asked for; its name is the file's in a folder.
        endings: of the formats that can be written.

    Raises:
        UserError: a file of another format was asked for.
    """
    if wanted is None:
        return default
    if wanted.is_dir() or not wanted.suffix:
        return wanted / default.name
    if wanted.suffix.lower() not in endings:
        only = "PLY is the only format written" if len(endings) == 1 else "no other format is written"
        choice = " or ".join(part for part in (", ".join(endings[:-1]), endings[-1]) if part)
        raise UserError(f"--output-path {wanted} must be a folder or end in {choice}: {only}.")
    return wanted


def load_model(config: Path) -> RayGaussModel:
    """The model of a trained run, as `load_run` has it."""
    return load_run(config)[0]


def load_run(config: Path) -> tuple[RayGaussModel, Callable[[], Cameras]]:
    """The model of a trained run, from its latest checkpoint, and a function that gives its training cameras.

    Args:
        config: the run's config.yml. Its data folder must be there, though not the images: the cameras in it give the
            scene its size.

    Raises:
        UserError: another method wrote it, its configuration is damaged or refers to what is not on a list
            (`ns_support.runs.saved_config`), or it has no checkpoint that is whole.
    """
    trainer, pipeline = open_finished(config, "inference")
    if not isinstance(pipeline.model, RayGaussModel):
        raise UserError(
            f"{config} is of a run of {trainer.method_name}; only those of raygauss can be exported. Take `ns-export "
            "pointcloud`, `tsdf` or `poisson` for it."
        )
    return pipeline.model, lambda: pipeline.datamanager.train_dataset.cameras


def header_comments(model: RayGaussModel) -> list[str]:
    """What a renderer needs to know beside the Gaussians: the scene unit and how rays are sampled, in scene units."""
    settings = model.cast_settings._asdict()
    values = {"scene_unit": model.unit, **settings, "near_plane": model.config.near_plane * model.unit}
    return ["written by raygauss-export", *(f"{name} {value!r}" for name, value in values.items())]


def load_ply(path: Path) -> tuple[GaussianCloud, CastSettings]:
    """An exported scene, ready for `raygauss_ns.casting.api.cast`: no config, checkpoint or data folder needed.

    Args:
        path: what `raygauss-export raygauss` (or `splat`) wrote.

    Raises:
        UserError: the file is missing, is of neither kind, or its header lacks the settings.
    """
    values = header_values(read_ply(path).comments)
    missing = [name for name in CastSettings._fields if name not in values]
    if missing:
        raise UserError(f"The header of the PLY file {path} lacks the comments {', '.join(missing)}.")
    numbers = {name: values[name] for name in CastSettings._fields if name != "samples_per_slab"}
    settings = CastSettings(**numbers, samples_per_slab=int(values["samples_per_slab"]))
    return read_cloud(path), settings


Command: TypeAlias = (
    Annotated[ExportRayGauss, tyro.conf.subcommand("raygauss")]
    | Annotated[ExportSplat, tyro.conf.subcommand("splat")]
    | Annotated[ExportPoints, tyro.conf.subcommand("points")]
)


def entrypoint() -> None:
    """The command's entry point."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(Command, prog="raygauss-export", description=__doc__).main()


if __name__ == "__main__":
    entrypoint()
