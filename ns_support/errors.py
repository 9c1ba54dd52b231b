"""User errors: printed as one line, without a traceback, and exit code 1."""

from __future__ import annotations


class UserError(SystemExit, ValueError):
    """An error that the user can fix. Ends a command with one sentence on stderr and exit code 1.

    As a `SystemExit`, it passes through nerfstudio's commands without a traceback. As a `ValueError`, it is caught by
    `except Exception` in programs that use the packages as a library, and a thread that it ends is reported, whereas a
    bare `SystemExit` ends a thread silently.

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
    """Refuse a setting that is out of range.

    Args:
        option: the setting, as on the command line.
        holds: whether its value is valid.
        wanted: the valid values, completing "must be ...".
        value: the actual value.

    Raises:
        UserError: names all of that.
    """
    if not holds:
        raise UserError(f"{option} must be {wanted}, got {value}.")
