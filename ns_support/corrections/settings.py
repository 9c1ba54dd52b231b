"""The settings of all corrections, which the configurations of both models share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ns_support.corrections.exposure import EXPOSURE_MODES, ExposureMode
from ns_support.corrections.poses import PoseRefinementConfig
from ns_support.errors import require
from ns_support.help import documented

PHOTOGRAPH_GROUPS = frozenset({"camera_opt", "exposure"})
"""Parameter groups with a row for each training photograph."""
OPTIONAL_GROUPS = PHOTOGRAPH_GROUPS | {"background"}
"""Parameter groups that a method's training may have or not, as its settings say."""


@documented
@dataclass
class CorrectionsConfig:
    """What of a capture is corrected while it is trained on."""

    camera_optimizer: PoseRefinementConfig = field(default_factory=PoseRefinementConfig)
    """Refinement of the training cameras' poses, under nerfstudio's names."""
    exposure: ExposureMode = "off"
    """Whether each training photograph has a colour correction of its own, for cameras that meter anew. auto: given up
    after 40 % of the training if the photographs agree."""
    ignore_moving: bool = False
    """Leave out parts of photographs that the others keep contradicting, such as people who walk through."""

    def check_corrections(self) -> None:
        """Refuse settings that can't be trained with.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        self.camera_optimizer.check()
        known = self.exposure in EXPOSURE_MODES
        require("--pipeline.model.exposure", known, f"one of {', '.join(EXPOSURE_MODES)}", self.exposure)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a saved configuration; version 0.1.0 corrected nothing, and its checkpoints hold no corrections."""
        self.__dict__.update({"camera_optimizer": PoseRefinementConfig()} | state)
