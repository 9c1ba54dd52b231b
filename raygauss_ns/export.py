"""`raygauss-export`: a trained scene as a PLY file.

    raygauss-export raygauss --load-config outputs/.../config.yml    # exact; `--pipeline.model.initial-ply` reads it
    raygauss-export splat --load-config outputs/.../config.yml       # for viewers of 3D Gaussian splatting
    raygauss-export points --load-config outputs/.../config.yml      # positions and colours

All are in the coordinates of nerfstudio's scene, like those of `ns-export`; `dataparser_transforms.json` beside the
config leads back to those of the data. `raygauss_ns.gaussians.ply_formats` has the formats and what the conversion to
splats loses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from ns_support.commands.finished import open_finished
from ns_support.data.ply import Columns, read_ply, write_ply
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.runs.saved_runs import find_config
from ns_support.terminal import say
from raygauss_ns.casting import CastSettings
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.ply_formats import cloud_columns, header_values, point_columns, read_cloud, splat_columns
from raygauss_ns.model import RayGaussModel

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
    """The PLY file to write, or a folder for it; None: raygauss.ply, splat.ply or points.ply beside the config."""

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

    def main(self) -> Path:
        """Write the file."""
        path = self._write("splat", _splats)
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
    count = len(columns["x"])
    thin = len(model.cloud) - count
    left_out = f" {thin:,} that are too thin to show were left out." if thin else ""
    return f"{count:,} Gaussians written to {path}.{left_out}"


def output_file(wanted: Path | None, default: Path) -> Path:
    """The file to write.

    Args:
        wanted: what the user asked for: a file, a folder, or a name without an ending, which is a folder's.
        default: the file if nothing was asked for; its name is the file's in a folder.

    Raises:
        UserError: a file of another format was asked for.
    """
    if wanted is None:
        return default
    if wanted.is_dir() or not wanted.suffix:
        return wanted / default.name
    if wanted.suffix.lower() != ".ply":
        raise UserError(f"--output-path {wanted} must end in .ply or be a folder: PLY is the only format written.")
    return wanted


def load_model(config: Path) -> RayGaussModel:
    """The model of a trained run, from its latest checkpoint.

    Args:
        config: the run's config.yml. Its data folder must be there, though not the images: the cameras in it give the
            scene its size.

    Raises:
        UserError: another method wrote it, its configuration is damaged or refers to what is not on a list
            (`ns_support.runs.saved_config`), or it has no checkpoint that is whole.
    """
    trainer, pipeline = open_finished(config, "inference")
    if not isinstance(pipeline.model, RayGaussModel):
        raise UserError(f"{config} is of a run of {trainer.method_name}; only those of raygauss can be exported.")
    return pipeline.model


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
    tyro.cli(Command, description=__doc__).main()


if __name__ == "__main__":
    entrypoint()
