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
from ns_support.data.warnings import warn_once
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.photos.listing import holds_photographs, is_video
from ns_support.photos.result import is_whole, result_folder
from ns_support.photos.scene import find_poses
from ns_support.photos.settings import PhotosConfig

_LOOKED_FOR = (
    "a Blender scene (transforms_train.json with camera_angle_x), a nerfstudio or instant-ngp scene (transforms.json "
    f"with fl_x or camera_angle_x), a COLMAP model ({' or '.join(COLMAP_CAMERAS)} in {', '.join(COLMAP_FOLDERS)}) and "
    "photographs"
)


@documented
@dataclass
class AutoDataParserConfig(DataParserConfig):
    """Recognises Blender, nerfstudio, instant-ngp and COLMAP folders; each is read by nerfstudio's own parser.

    Photographs without poses, or a video, become a COLMAP folder first.
    """

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
    photos: PhotosConfig = field(default_factory=PhotosConfig)
    """How to find the poses of photographs, or of a video. What comes of it is read as `colmap` says."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Runs that were saved before there were settings for photographs have none.
        self.__dict__.update({"photos": PhotosConfig(), **state})

    def setup(self, **kwargs: Any) -> Any:
        """Make nerfstudio's own parser for the folder `data`; if it holds photographs, poses are found first.

        Raises:
            UserError: the folder is of no known format, its parser can't downscale images as told, or no poses can be
                found.
        """
        if self.needs_poses(self.data):
            other = "" if is_video(self.data) else what_it_is_instead(self.data)
            if other:
                warn_once(f"Poses that may be in {self.data} already are not used.{other}")
            find_poses(self.data, self.photos)
        return self.chosen(self.data).setup(**kwargs)

    def chosen(self, folder: Path) -> DataParserConfig:
        """The configuration of the parser that fits a folder, as a copy.

        Args:
            folder: the data folder, a `.json` file in the format of transforms.json, or a video. Poses of photographs
                and videos need not have been found.

        Raises:
            UserError: as for `setup`.
        """
        config = checked(self._recognise(folder))
        if not self.needs_poses(folder):
            config.data = folder
        if self.downscale_factor is not None and hasattr(config, "downscale_factor"):
            config.downscale_factor = self.downscale_factor
        elif self.downscale_factor not in (None, 1):
            raise UserError(
                f"The images in {folder} can't be downscaled on reading: downscale_factor is "
                f"{self.downscale_factor}, and nerfstudio has no option for that in scenes of this format."
            )
        return config

    def has_poses(self, source: Path) -> bool:
        """Whether the poses of photographs or of a video are on the disk, which may be all that is left of them."""
        return is_whole(self._result(source))

    def _result(self, source: Path) -> Path:
        return result_folder(source, self.photos.result, self.photos.fallback)

    def needs_poses(self, data: Path) -> bool:
        """Whether the data are photographs without poses, or a video."""
        if is_video(data) or (self.photos.must_exist and not data.exists() and self.has_poses(data)):
            return True
        return (
            data.is_dir()
            and self._known(data) is None
            and not what_it_is_instead(data, certain=True)
            and holds_photographs(data)
        )

    def _known(self, folder: Path) -> DataParserConfig | None:
        kind = transforms_format(folder)
        if kind is not None:
            known: dict[str, DataParserConfig] = {
                "blender": self.blender,
                "nerfstudio": self.nerfstudio,
                "instant_ngp": self.instant_ngp,
            }
            return deepcopy(known[kind])
        model = colmap_model(folder, self.colmap.colmap_path)
        if model is None:
            return None
        colmap = deepcopy(self.colmap)
        colmap.colmap_path = model
        return colmap

    def _recognise(self, folder: Path) -> DataParserConfig:
        if self.needs_poses(folder):
            colmap = deepcopy(self.colmap)
            colmap.data = self._result(folder)
            colmap.colmap_path, colmap.images_path = Path("sparse/0"), Path("images")
            if (colmap.data / "masks").is_dir():
                colmap.masks_path = Path("masks")
            return colmap
        if folder.suffix.lower() != ".json" and not folder.is_dir():
            raise UserError(f"The data folder {folder} does not exist.")
        known = self._known(folder)
        if known is not None:
            return known
        other = " For another format, name nerfstudio's parser for it at the end of the command."
        raise UserError(
            f"The format of the data in {folder} is not known: looked for {_LOOKED_FOR}."
            f"{what_it_is_instead(folder) or other}"
        )


auto_data = DataParserSpecification(
    config=AutoDataParserConfig(),
    description="Recognises Blender, nerfstudio, instant-ngp and COLMAP folders; finds the poses of photographs.",
)
"""For the entry point."""
