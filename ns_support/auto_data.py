"""A data parser that recognises the format of the `--data` folder and delegates to nerfstudio's parser for it.

Registered as `auto-data`. nerfstudio imports this module while it collects its data parsers: nothing here may import a
datamanager, or anything else that needs the complete collection.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from ns_support.data.formats.parsers import checked
from ns_support.data.formats.recognition import (
    COLMAP_CAMERAS,
    COLMAP_FOLDERS,
    colmap_model,
    transforms_format,
    what_it_is_instead,
)
from ns_support.errors import UserError
from ns_support.help import documented

_LOOKED_FOR = (
    "a Blender scene (transforms_train.json with camera_angle_x), a nerfstudio or instant-ngp scene (transforms.json "
    f"with fl_x or camera_angle_x) and a COLMAP model ({' or '.join(COLMAP_CAMERAS)} in {', '.join(COLMAP_FOLDERS)})"
)


@documented
@dataclass
class AutoDataParserConfig(DataParserConfig):
    """Recognises Blender, nerfstudio, instant-ngp and COLMAP folders; each is read by nerfstudio's own parser."""

    _target: type = field(default_factory=lambda: DataParser)
    """Not used: `setup` makes the parser that fits the folder."""
    downscale_factor: int | None = None
    """Factor, >= 1, by which to downscale images, for parsers that can; None: as that parser is set."""
    blender: BlenderDataParserConfig = field(default_factory=BlenderDataParserConfig)
    """How to read a folder with transforms_train.json and camera_angle_x in it. Its `data` is not used."""
    nerfstudio: NerfstudioDataParserConfig = field(default_factory=NerfstudioDataParserConfig)
    """How to read a transforms.json with focal lengths (fl_x) in it. Its `data` is not used."""
    instant_ngp: InstantNGPDataParserConfig = field(default_factory=InstantNGPDataParserConfig)
    """How to read a transforms.json with camera_angle_x only. Its `data` is not used."""
    colmap: ColmapDataParserConfig = field(default_factory=ColmapDataParserConfig)
    """How to read a COLMAP folder. Its `data` is not used, nor its `colmap_path` unless the model lies there."""

    def setup(self, **kwargs: Any) -> Any:
        """Make nerfstudio's own parser for the folder `data`.

        Raises:
            UserError: the folder is of no known format, or its parser can't downscale images as told.
        """
        return self.chosen(self.data).setup(**kwargs)

    def chosen(self, folder: Path) -> DataParserConfig:
        """The configuration of the parser that fits a folder, as a copy.

        Args:
            folder: the data folder, or a `.json` file in the format of transforms.json.

        Raises:
            UserError: as for `setup`.
        """
        config = checked(self._recognise(folder))
        config.data = folder
        if self.downscale_factor is not None and hasattr(config, "downscale_factor"):
            config.downscale_factor = self.downscale_factor
        elif self.downscale_factor not in (None, 1):
            raise UserError(
                f"The images in {folder} can't be downscaled on reading: downscale_factor is "
                f"{self.downscale_factor}, and nerfstudio has no option for that in scenes of this format."
            )
        return config

    def _recognise(self, folder: Path) -> DataParserConfig:
        if folder.suffix.lower() != ".json" and not folder.is_dir():
            raise UserError(f"The data folder {folder} does not exist.")
        kind = transforms_format(folder)
        if kind is not None:
            known: dict[str, DataParserConfig] = {
                "blender": self.blender,
                "nerfstudio": self.nerfstudio,
                "instant_ngp": self.instant_ngp,
            }
            return deepcopy(known[kind])
        model = colmap_model(folder, self.colmap.colmap_path)
        if model is not None:
            colmap = deepcopy(self.colmap)
            colmap.colmap_path = model
            return colmap
        other = " For another format, name nerfstudio's parser for it at the end of the command."
        raise UserError(
            f"The format of the data in {folder} is not known: looked for {_LOOKED_FOR}."
            f"{what_it_is_instead(folder) or other}"
        )


auto_data = DataParserSpecification(
    config=AutoDataParserConfig(),
    description="Recognises Blender, nerfstudio, instant-ngp and COLMAP folders.",
)
"""For the entry point."""
