"""What `--help` says about a setting: its docstring, as one paragraph.

tyro takes the text below a field as it stands in the source, where the lines after the first are indented, and prints
each on a line of its own. Given as an argument's help text, it is wrapped to the terminal's width like any other.
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
    """Class decorator, above `dataclass`: hand each field's docstring to tyro with its lines joined.

    Args:
        cls: a dataclass whose source is at hand. Its fields' annotations become `Annotated`, which
            `typing.get_type_hints` takes away again.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, text in field_docstrings(cls).items():
        cls.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=" ".join(text.split()))]
    return cls


def field_docstrings(cls: type) -> dict[str, str]:
    """The docstring below each field that a class declares itself, as in the source."""
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
