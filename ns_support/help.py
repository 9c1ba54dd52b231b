"""The `--help` text of a setting: its docstring, as one paragraph.

tyro takes the docstring of a field verbatim from the source, where the lines after the first are indented, and prints
each of them on its own line. Passed as an argument's help text, it is wrapped to the terminal's width instead.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from typing import Annotated, TypeVar

import tyro

C = TypeVar("C", bound=type)


def documented(cls: C) -> C:
    """Class decorator, above `dataclass`: pass each field's docstring to tyro with its lines joined.

    Args:
        cls: a dataclass whose source is available. The annotations of its fields become `Annotated`, which
            `typing.get_type_hints` removes again.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, text in field_docstrings(cls).items():
        cls.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=" ".join(text.split()))]
    return cls


def field_docstrings(cls: type) -> dict[str, str]:
    """The docstring below each field that the class itself declares, as in the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = below.value.value
    return found
