"""Silence the warnings that nerfstudio 1.1.5 causes at every start on current versions of torch, and no others.

The user can do nothing about them. Each is identified by its text, its category and the module it is attributed to.
`silence_known_warnings` installs the filters. They come too late for three warnings that nerfstudio's commands raise
while importing nerfstudio's own models, since plugins are loaded after that.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple


class KnownWarning(NamedTuple):
    """A warning as `warnings.filterwarnings` identifies it: two regular expressions and a category."""

    message: str
    category: type[Warning]
    module: str


KNOWN_WARNINGS = (
    KnownWarning(r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\._script"),
    KnownWarning(
        r"`torch\.cuda\.amp\.custom_(fwd|bwd)\(args\.\.\.\)` is deprecated",
        FutureWarning,
        r"nerfstudio\.field_components\.activations",
    ),
    KnownWarning(
        r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated", FutureWarning, r"nerfstudio\.engine\.trainer"
    ),
    KnownWarning(
        r"Using a non-tuple sequence for multidimensional indexing is deprecated",
        UserWarning,
        r"nerfstudio\.cameras\.cameras",
    ),
    KnownWarning(r"Converting a tensor with requires_grad=True to a scalar", UserWarning, r"nerfstudio\.utils\.writer"),
    # At the first step: a parameter that is not active yet (a higher SH degree) has no gradient.
    KnownWarning(
        r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
        UserWarning,
        r"nerfstudio\.engine\.optimizers",
    ),
    KnownWarning(
        r"Importing `\w+` from `torchmetrics\.functional` was deprecated",
        FutureWarning,
        r"torchmetrics\.utilities\.prints",
    ),
    # nerfstudio requests four workers on any machine, and uses threads instead.
    KnownWarning(r"This DataLoader will create 4 worker processes", UserWarning, r"torch\.utils\.data\.dataloader"),
)


def silence_known_warnings() -> None:
    """Ignore `KNOWN_WARNINGS` from now on, in this process."""
    for message, category, module in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
