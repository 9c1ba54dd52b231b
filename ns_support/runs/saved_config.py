"""Reads the config.yml of a run without executing anything in it.

nerfstudio writes configurations as YAML with Python tags, and reads them with a loader that calls whatever function a
tag names: in its own commands, a stranger's config.yml is a stranger's program. `read_config` constructs configuration
classes, paths, tuples and enumerations of nerfstudio and of installed methods, and refuses everything else.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import numbers
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePath
from types import GenericAlias
from typing import Any

import torch
import yaml
from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.engine.trainer import TrainerConfig

from ns_support.errors import UserError

_FUNCTIONS = (
    "nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate",
    "nerfstudio.data.datamanagers.base_datamanager.variable_res_collate",
)
"""Functions that a configuration may refer to."""
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_CLOSED = ("nerfstudio.scripts", "nerfstudio.process_data")
"""Packages of programs, whose classes no configuration refers to."""
_LARGEST = 4 << 20
"""Size of a file that is not read (bytes): a configuration has some 10 KiB."""
_REQUIRED = {"experiment_name", "method_name", "output_dir", "pipeline", "timestamp", "vis"}
"""Fields without which a training's configuration is cut off. They are sorted by name: "vis" is the last."""
_SIMPLE = (int, float, bool, str)


def read_config(path: Path) -> TrainerConfig:
    """The configuration of a run. Nothing in the file is executed.

    Fields that an older version did not have get their defaults.

    Args:
        path: config.yml.

    Raises:
        UserError: the file is missing or damaged, is no training's configuration, or names something that is not on the
            list; says where, and what to do.
    """
    try:
        if not path.is_file():
            raise UserError(f"There is no file {path}: give a trained run's folder or its config.yml.")
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is no run's config.yml: it has {path.stat().st_size >> 20} MiB.")
        config = yaml.load(path.read_text("utf8"), Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{path} is not loaded, line {error.problem_mark.line + 1}: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged{_line(error)}: it is cut off or was altered. {_REMEDY}") from error
    if not isinstance(config, TrainerConfig):
        raise UserError(f"{path} is not the configuration of a training: it is cut off or another file. {_REMEDY}")
    check_fields(config, path)
    return config


_REMEDY = (
    "Restore it, or write it anew from the checkpoint beside it: `ns-train METHOD --data DATA --load-dir RUN "
    "--max-num-iterations 1`, with the settings that the run was trained with."
)


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" at line {mark.line + 1}"


@cache
def _packages() -> frozenset[str]:
    """The packages whose classes may be used: nerfstudio's, and those of the methods that are installed."""
    from nerfstudio.configs.method_configs import all_methods  # late: imports every installed method

    packages = {"nerfstudio"}
    for config in all_methods.values():
        pipeline = getattr(config, "pipeline", None)  # a method that is not installed has none
        for part in (config, pipeline, getattr(pipeline, "model", None)):
            if isinstance(part, PrintableConfig):
                packages.add(type(part).__module__.partition(".")[0])
    return frozenset(packages)


class _Loader(yaml.SafeLoader):
    """`SafeLoader`, and the tags of configurations."""


def _refuse(node: yaml.Node, what: str) -> typing.NoReturn:
    raise yaml.constructor.ConstructorError(
        None,
        None,
        f"it refers to {what}, which is not on the list of what a configuration may contain. If the file is a "
        "stranger's, do not open it with nerfstudio's own commands, which execute what it says",
        node.start_mark,
    )


def _known(name: str, node: yaml.Node) -> Any:
    """The class or function of a dotted name: of a package on the list, and defined in one."""
    module, _, attribute = name.rpartition(".")
    packages = _packages()
    is_optimizer = module.startswith("torch.optim")
    if (not is_optimizer and module.partition(".")[0] not in packages) or module.startswith(_CLOSED):
        _refuse(node, name)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"there is no {name} in the version that is installed", node.start_mark
        ) from error
    if name in _FUNCTIONS:
        return found
    home = getattr(found, "__module__", "")
    fits = issubclass(found, torch.optim.Optimizer) if is_optimizer and inspect.isclass(found) else False
    if not inspect.isclass(found) or not (fits or home.partition(".")[0] in packages):
        _refuse(node, name)
    return found


def _name(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    return _known(suffix, node)


def _object(loader: _Loader, suffix: str, node: yaml.Node) -> Iterator[Any]:
    cls: Any = _known(suffix, node)
    if not dataclasses.is_dataclass(cls) or not isinstance(node, yaml.MappingNode):
        _refuse(node, f"an object of the class {suffix}")
    kind: Any = cls  # mypy takes it for an instance, too
    made = object.__new__(kind)
    yield made
    renews = hasattr(kind, "__setstate__")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # An entry of another version is left out; it must not take the place of a method either.
    state = {name: value for name, value in loader.construct_mapping(node, deep=renews).items() if name in fields}
    if renews:
        made.__setstate__(state)
    else:
        vars(made).update(state)
    if issubclass(kind, TrainerConfig) and not state.keys() >= _REQUIRED:
        lacking = ", ".join(sorted(_REQUIRED - state.keys()))
        raise yaml.constructor.ConstructorError(None, None, f"it is cut off, and lacks {lacking}", node.end_mark)
    for name, field in fields.items():
        if name not in vars(made):
            _set_default(made, field)


def _set_default(made: Any, field: dataclasses.Field[Any]) -> None:
    if field.default is not dataclasses.MISSING:
        vars(made)[field.name] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        vars(made)[field.name] = field.default_factory()


def _applied(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    """What a tag calls: paths, members of enumerations and classes with parameters. Nothing else is called."""
    if not isinstance(node, yaml.SequenceNode):
        _refuse(node, f"a call of {suffix}")
    module, _, attribute = suffix.rpartition(".")
    values = loader.construct_sequence(node, deep=True)
    if module in ("pathlib", "pathlib._local") and attribute in _PATHS and all(isinstance(v, str) for v in values):
        return Path(*values)
    if suffix == "_operator.getitem" and len(values) == 2 and inspect.isclass(values[0]):
        return _with_parameters(values[0], values[1], node)
    if module in ("builtins", "posix", "os", "subprocess"):
        _refuse(node, f"a call of {suffix}")
    cls = _known(suffix, node)
    if not (inspect.isclass(cls) and issubclass(cls, enum.Enum)) or len(values) != 1:
        _refuse(node, f"a call of {suffix}")
    return cls(values[0])


def _with_parameters(cls: type, given: Any, node: yaml.Node) -> Any:
    parameters = given if isinstance(given, tuple) else (given,)
    if not all(inspect.isclass(parameter) for parameter in parameters):
        _refuse(node, f"{cls.__name__} with parameters that are no classes")
    subscript: Callable[[Any], Any] = getattr(cls, "__class_getitem__", lambda p: GenericAlias(cls, p))
    return subscript(given)


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        _refuse(node, "a tuple without elements")
    return tuple(loader.construct_sequence(node, deep=True))


_PYTHON = "tag:yaml.org,2002:python/"
_Loader.add_constructor(f"{_PYTHON}tuple", _tuple)
_Loader.add_multi_constructor(f"{_PYTHON}name:", _name)
_Loader.add_multi_constructor(f"{_PYTHON}object:", _object)
_Loader.add_multi_constructor(f"{_PYTHON}object/apply:", _applied)
_Loader.add_multi_constructor(_PYTHON, lambda loader, suffix, node: _refuse(node, f"python/{suffix}"))


def check_fields(config: Any, source: object) -> None:
    """Refuse a configuration that lacks fields, or has a word in place of a number.

    Args:
        config: a configuration, with all others in it.
        source: the file that it is from, or another name of it, for messages.

    Raises:
        UserError: names the field, its value and the type that it must have.
    """
    _check_fields(config, source, "", set())


def _check_fields(config: Any, source: object, name: str, seen: set[int]) -> None:
    if id(config) in seen:
        return
    seen.add(id(config))
    if isinstance(config, dict):
        for key, value in config.items():
            _check_fields(value, source, f"{name}.{key}", seen)
    if not isinstance(config, PrintableConfig):
        return
    try:
        hints = typing.get_type_hints(type(config))
    except NameError:  # another method's annotations may name what is imported for type checkers only
        hints = {}
    for field in dataclasses.fields(config):
        whole, wanted = f"{name}.{field.name}".lstrip("."), hints.get(field.name)
        if not hasattr(config, field.name):
            raise UserError(f"{source} lacks {whole}: it is cut off, or of another version. {_REMEDY}")
        value = getattr(config, field.name)
        if wanted in _SIMPLE and not _fits(value, wanted):
            raise UserError(f"{source} has {whole} = {value!r}, which must be of the type {wanted.__name__}. {_REMEDY}")
        if wanted is Path and not isinstance(value, (PurePath, str)):
            raise UserError(f"{source} has {whole} = {value!r}, which must be a path. {_REMEDY}")
        _check_fields(value, source, whole, seen)


def _fits(value: Any, wanted: Any) -> bool:
    if value is None:  # nerfstudio's own annotations leave it out
        return True
    if isinstance(value, bool):
        return wanted is bool
    # A program may set numbers of NumPy.
    return isinstance(value, {int: numbers.Integral, float: numbers.Real}.get(wanted, wanted))
