"""Errors that are the user's to mend: one sentence on the terminal instead of a traceback."""

from __future__ import annotations


class UserError(SystemExit, ValueError):
    """Ends a command with a sentence on stderr and exit code 1, and nothing else.

    Being a `SystemExit`, it passes through nerfstudio's commands, which know no errors of their own, without a
    traceback. Being a `ValueError` too, it is caught by the `except Exception` of a program that uses the packages as a
    library, and a thread that dies of it is reported instead of vanishing as with a bare `SystemExit`.

    Example:
        >>> try:
        ...     raise UserError("dt must be > 0, got -1")
        ... except Exception as error:
        ...     print(error)
        dt must be > 0, got -1
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def require(option: str, holds: bool, wanted: str, value: object) -> None:
    """Refuse a setting out of its range.

    Args:
        option: the setting, as it is given on the command line.
        holds: whether its value can be used.
        wanted: what it must be, to go with "must be".
        value: what it is.

    Raises:
        UserError: names all of that.
    """
    if not holds:
        raise UserError(f"{option} must be {wanted}, got {value}.")
