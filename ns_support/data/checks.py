"""Reports what is wrong with a data folder in one sentence, instead of a traceback from deep inside nerfstudio."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig, variable_res_collate
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE

from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.dataset import CheckedDataset, checked_outputs
from ns_support.data.formats.parsers import checked
from ns_support.errors import UserError
from ns_support.photos.listing import RAWS, VIDEOS, is_video

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".exr", ".heic", ".avif"}
)
"""File name extensions, in lower case, that count as an image."""
_LIST_SUFFIXES = frozenset({".json", ".npz"})
"""Extensions of the files in which a parser may find images that lie outside the folder."""
_READING_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, LookupError, AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError, EOFError),
    *(ImportError, MemoryError, OverflowError, RecursionError, AttributeError, struct.error),
)
"""What parsers and data sets, nerfstudio's or others, raise for a missing file, a missing entry or a broken image."""
_MARKS = {
    "transforms.json": "nerfstudio-data",
    "transforms_train.json": "blender-data",
    "colmap": "colmap",
    "sparse": "colmap --colmap-path sparse/0",
}
"""What identifies a folder's format, and the parser for it."""


Config = TypeVar("Config", bound=DataManagerConfig)
P = ParamSpec("P")
T = TypeVar("T")


def own_configuration(config: Config) -> Config:
    """A copy of a configuration for a datamanager to modify, as nerfstudio's datamanagers do during setup.

    nerfstudio's commands set up a run's datamanager more than once, for different purposes: `ns-render dataset` makes a
    first one that reads no image, and a second one with images of the size that the run was trained at.

    Args:
        config: its data folder and that of its parser are set to the same path, as nerfstudio would do; nothing else
            changes.
    """
    path = Path(config.data or config.dataparser.data)
    if config.data != path:
        config.data = Path(path)
    if config.dataparser.data != path:
        config.dataparser.data = Path(path)
    return deepcopy(config)


def check_data_folder(path: Path) -> None:
    """Refuse a data path in which no parser could find an image.

    A `.json` file is accepted, since some parsers take one, and a video, whose poses can be found.

    Args:
        path: the user's `--data`.

    Raises:
        UserError: the path does not exist, is neither a folder nor a `.json` file nor a video, or contains neither
            an image nor a list of images at any depth.
    """
    if not path.exists():
        raise UserError(f"The data folder {path} does not exist.")
    if path.is_file():
        if path.suffix.lower() != ".json" and not is_video(path):
            raise UserError(f"The data path {path} is a file; give the folder that holds the images, or a video.")
    elif not _holds(path, IMAGE_SUFFIXES | _LIST_SUFFIXES | VIDEOS | RAWS):
        raise UserError(f"The data folder {path} has no image in it, nor in any folder below.")


@contextmanager
def explained_data_errors(path: Path, parser: str) -> Iterator[None]:
    """Turn the errors of a call that reads the user's files into a one-sentence `UserError`.

    Only for calls that do nothing else: in here, every such error is taken to be the user's.

    Args:
        path: the data folder, to name it and to guess its format.
        parser: the parser's name on the command line.

    Raises:
        UserError: names the parser, the folder, what was looked for, and the parser that fits the folder better.
    """
    try:
        yield
    except UserError:
        raise
    except _READING_ERRORS as error:
        hint = _better_parser(path, parser)
        raise UserError(f"{parser} can't read the data in {path}: {_reason(error)}.{hint}") from error


def _explained(read: Callable[P, T], path: Path, parser: str) -> Callable[P, T]:
    """A function that reads the user's files, inside `explained_data_errors`."""

    @functools.wraps(read)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        with explained_data_errors(path, parser):
            return read(*args, **kwargs)

    return explained


class ChecksData:
    """Mixin, listed before nerfstudio's datamanager, that reports bad data in one sentence.

    The two functions that read the user's files, the data parser's `get_dataparser_outputs` and the data sets'
    `get_data`, are wrapped once, where the datamanager receives the objects. So every caller reports errors in the same
    way, also after setup (for example the viewer when training starts).

    Example:
        >>> class MyDataManager(ChecksData, VanillaDataManager[InputDataset]):  # doctest: +SKIP
        ...     pass
    """

    train_dataparser_outputs: DataparserOutputs
    test_mode: str

    def __init__(
        self,
        config: DataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        config = own_configuration(config)
        config.dataparser = checked(config.dataparser)
        path = config.data
        if test_mode == "inference" and hasattr(config.dataparser, "downscale_factor"):
            # nerfstudio sets this on the parser, which COLMAP's does not look at: it would open an image to find its
            # size.
            config.dataparser.downscale_factor = 1
        parser, found = config.dataparser, False
        if test_mode != "val" and isinstance(parser, AutoDataParserConfig):  # other poses would not fit the model
            parser.photos.must_exist, found = True, parser.has_poses(path)
        # "inference" opens no image, so that a trained scene can be viewed without them.
        if test_mode != "inference" and not found:
            check_data_folder(path)
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)  # type: ignore[call-arg]

    @property
    def dataparser(self) -> DataParser:
        """The data parser. nerfstudio sets it up and calls it, so its reading function is wrapped on assignment."""
        return self._dataparser

    @dataparser.setter
    def dataparser(self, parser: DataParser) -> None:
        read = _explained(parser.get_dataparser_outputs, *self._source)
        parser.get_dataparser_outputs = read
        self._dataparser = parser

    def create_train_dataset(self) -> InputDataset:
        """The training images."""
        self.train_dataparser_outputs = self._checked(self.train_dataparser_outputs, needed=self.test_mode == "val")
        return self._explaining(super().create_train_dataset())  # type: ignore[misc]

    def create_eval_dataset(self) -> InputDataset:
        """The evaluation images."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)  # type: ignore[attr-defined]
        outputs = self._checked(outputs, needed=self.test_mode != "inference")
        scale = self.config.camera_res_scale_factor  # type: ignore[attr-defined]
        return self._explaining(self.dataset_type(dataparser_outputs=outputs, scale_factor=scale))

    @cached_property
    def dataset_type(self) -> type[InputDataset]:
        """The data set's class: `CheckedDataset` in place of nerfstudio's plain one; other types are kept."""
        found: type[InputDataset] = super().dataset_type  # type: ignore[misc]
        return CheckedDataset if found is InputDataset else found

    def _checked(self, outputs: DataparserOutputs, needed: bool) -> DataparserOutputs:
        config: Any = self.config  # type: ignore[attr-defined]
        checked_ones = checked_outputs(outputs, Path(config.dataparser.data), needed)
        sizes = torch.cat([checked_ones.cameras.width, checked_ones.cameras.height], dim=-1)
        # Images that are not needed are not looked at either: their sizes may differ from their cameras'.
        differ = not needed or (len(sizes) > 1 and bool((sizes != sizes[0]).any()))
        if differ and hasattr(config, "collate_fn"):
            config.collate_fn = variable_res_collate
        return checked_ones

    def _explaining(self, dataset: InputDataset) -> InputDataset:
        dataset.get_data = _explained(dataset.get_data, *self._source)
        return dataset

    @property
    def _source(self) -> tuple[Path, str]:
        """The data folder, and the name of the parser that reads it."""
        parser: DataParserConfig = self.config.dataparser  # type: ignore[attr-defined]
        return parser.data, parser_name(parser)


def parser_name(config: object, folder: Path | None = None) -> str:
    """The name of a data parser on the command line.

    Args:
        config: its configuration. For `auto-data`, the parser that it chooses is named.
        folder: the data folder to choose for; None: the one in the configuration.

    Raises:
        UserError: `auto-data` does not recognise the folder's format.
    """
    if isinstance(config, AutoDataParserConfig):
        config = config.chosen(folder or config.data)
    names = [name for name, known in all_dataparsers.items() if type(known) is type(config)]
    return names[0] if names else type(config).__name__


def _holds(folder: Path, suffixes: frozenset[str]) -> bool:
    seen = {os.path.realpath(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        if any(os.path.splitext(name)[1].lower() in suffixes for name in names):
            return True
        # A link may lead back to a parent: every real folder is entered once.
        real = {name: os.path.realpath(os.path.join(here, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in seen]
        seen.update(real.values())
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no {error.filename}"
    if isinstance(error, EOFError):
        return "it asks a question here, and there is no terminal to answer it from"
    if isinstance(error, KeyError):
        return f"an entry {error} is missing"
    if isinstance(error, ZeroDivisionError):  # when scaling the cameras' largest distance to 1
        return (
            "all its cameras stand in one place; `--auto-scale-poses False` after the parser's name leaves them there"
        )
    text = " ".join(str(error).split()).rstrip(".")
    return text or f"{type(error).__name__} while parsing"


def _better_parser(path: Path, parser: str) -> str:
    fitting = [name for mark, name in _MARKS.items() if (path / mark).exists()]
    if not fitting or parser in (name.split()[0] for name in fitting) or not _reads(fitting[0], path):
        return ""
    return f" The folder looks like one for {fitting[0]}: name it at the end of the command."


def _reads(name: str, path: Path) -> bool:
    """Whether a parser, given by name and options, finds images in the folder."""
    config = checked(all_dataparsers[name.split()[0]])
    config.data = path
    if name.startswith("colmap "):
        config.colmap_path = Path(name.split()[-1])
    silenced, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        return len(config.setup().get_dataparser_outputs("train").image_filenames) > 0
    except _READING_ERRORS:  # a UserError is a ValueError
        return False
    finally:
        CONSOLE.quiet = silenced
