"""The corrections of a model: those that its configuration asks for, and when they begin and end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.models.base_model import Model
from nerfstudio.viewer.viewer_elements import ViewerElement, ViewerSlider
from torch import Tensor, nn

from ns_support.corrections.exposure import Exposure
from ns_support.corrections.matching import FITTED_POSES
from ns_support.corrections.moving import BLOCKS, MovingPixels, MovingRule, pixel_blocks
from ns_support.corrections.newton import l1_curvature
from ns_support.corrections.poses import PoseRefinement
from ns_support.corrections.settings import CorrectionsConfig
from ns_support.corrections.view_change import view_change
from ns_support.terminal import say
from ns_support.viewer.controls import ViewerRun, viewer_asks

_MEASURED = 1.8
"""The loss's curvature as a multiple of that of normally distributed residuals: theirs have heavy tails, and structural
similarity has a part in it. Median over cameras, from the gradients' change: 1.7 to 1.9 (1.3 to 2.8)."""

_ROWS = dict.fromkeys(("moving.errors", "moving.moved"), BLOCKS * BLOCKS)
"""Rows of a photograph in the state, where there is more than one."""


class CorrectedModel(Model):
    """A model that corrects poses, exposures and moving things of its N training photographs.

    The parts are the model's own modules, so that nerfstudio finds `camera_optimizer` where it looks for it: in its
    viewer and in `ns-export cameras`. It is there only if poses are refined.
    """

    moving_rule: ClassVar[MovingRule]
    """Which blocks of photographs are left out."""
    exposure: Exposure
    moving: MovingPixels

    def make_corrections(self, config: CorrectionsConfig, num_photos: int, cameras: Cameras | None) -> None:
        """Create the modules.

        Args:
            config: what to correct.
            num_photos: N.
            cameras: the N training cameras; None for a model without a datamanager, whose poses stay.
        """
        if config.camera_optimizer.mode != "off" and cameras is not None:
            self.camera_optimizer = PoseRefinement(config.camera_optimizer, cameras)
            fitted = (self.kwargs.get("metadata") or {}).get(FITTED_POSES)
            if fitted is not None:
                self.camera_optimizer.start_at(fitted)
        self._sizes = None if cameras is None else (cameras.height.reshape(-1), cameras.width.reshape(-1))
        self.exposure = Exposure(config.exposure, num_photos)
        self.moving = MovingPixels(config.ignore_moving, num_photos, self.moving_rule)
        self.look = PhotoLook(self.exposure, num_photos)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state; one of version 0.1.0, which corrected no exposures, leaves them uncorrected.

        The number of photographs becomes the state's: a trained scene can be looked at when some of them are gone.
        """
        unused = {f"exposure.{name}": value for name, value in self.exposure.unused_state().items()}
        if not unused.keys() & state_dict.keys():
            state_dict = unused | dict(state_dict)
        corrected = {name: own for name, own in self.per_photograph().items() if name in state_dict}
        photos = {len(state_dict[name]) / _ROWS.get(name, 1) for name in corrected if state_dict[name].ndim > 0}
        # Where the state contradicts itself, PyTorch says what does not fit.
        for name, own in corrected.items() if len(photos) == 1 else ():
            own.data = own.data.new_zeros(len(state_dict[name]), *own.shape[1:])
        return super().load_state_dict(state_dict, *args, **kwargs)

    def parameters_of_scene(self) -> Iterator[nn.Parameter]:
        """Parameters of what all photographs show: not those of the corrections."""
        of_photographs = self.per_photograph()
        return (parameter for name, parameter in self.named_parameters() if name not in of_photographs)

    def per_photograph(self) -> dict[str, Tensor]:
        """What of the state belongs to single training photographs, by its names there."""
        known = ["exposure.adjustments", "exposure.curvature", *_ROWS]
        known += ["camera_optimizer.pose_adjustment", "camera_optimizer.curvature"]
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensors[name] for name in known if name in tensors}

    @property
    def refinement(self) -> PoseRefinement | None:
        """The refinement of poses, if there is one."""
        return getattr(self, "camera_optimizer", None)

    def correction_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameter groups of whatever is corrected."""
        groups = self.exposure.get_param_groups()
        if self.refinement is not None:
            self.refinement.get_param_groups(groups)
        return groups

    def before_corrected_step(self, progress: float) -> None:
        """Tell the corrections what fraction of the training is done."""
        if self.refinement is not None:
            self.refinement.progress = progress
        self.moving.before_step(progress)
        self.exposure.before_step(progress)

    def after_corrected_step(self, step: int, progress: float) -> None:
        """What the corrections do once the optimisers have stepped.

        Args:
            step: training step.
            progress: fraction of the training that is done after it.
        """
        if self.refinement is not None:
            self.refinement.after_step(step)
        self.moving.after_step(step)
        decision = self.exposure.after_step(progress)
        if decision:
            say(decision)

    def correction_losses(self, photo: Tensor | int | None) -> dict[str, Tensor]:
        """Penalties on the corrections in use, by name.

        Args:
            photo: number of the photograph that is trained on, or several numbers; None: of none of them.
        """
        losses: dict[str, Tensor] = {}
        if photo is None:
            return losses
        if self.exposure.moves:
            losses["exposure_regularizer"] = self.exposure.penalty(photo)
        if self.refinement is not None and self.refinement.moves:
            losses["camera_opt_regularizer"] = self.refinement.penalty(photo)
        return losses

    def correction_curvature(
        self,
        photo: int | None,
        residuals: Tensor,
        mask: Tensor | None,
        changes: Tensor | None,
        l1_weight: Tensor | float,
    ) -> dict[str, Tensor]:
        """Terms of value 0 that tell the corrections of a photograph how far to move, by name.

        Args:
            photo: number of the photograph that is trained on; None: of none.
            residuals: [H, W, 3] of its image, or of a crop.
            mask: [H, W, 1] pixels that count; None: all.
            changes: [H, W, 3, 6] what a motion of its camera changes (`view_change`); None: it does not move.
            l1_weight: of the mean absolute residual in the loss, whose rest is structural similarity.
        """
        if photo is None or not (self.exposure.moves or changes is not None):
            return {}
        kept = torch.ones_like(residuals[..., 0]) if mask is None else mask[..., 0].to(residuals)
        curvature = _MEASURED * l1_weight * l1_curvature(residuals, None if mask is None else kept > 0)
        weight = curvature * kept.flatten() / (3 * kept.sum()).clamp_min(1e-12)
        terms = {}
        if self.exposure.moves:
            terms["exposure_curvature"] = self.exposure.curvature_of(weight)
        if changes is not None and self.refinement is not None:
            terms["camera_opt_curvature"] = self.refinement.curvature_of(photo, changes.flatten(0, 1), weight)
        # Where nothing is kept, nothing was seen of the photograph: not even that its corrections are to be small.
        return terms if mask is None else {name: torch.where(kept.any(), term, 0.0) for name, term in terms.items()}

    def squared_error_terms(self, squares: Tensor) -> dict[str, Tensor]:
        """What tells the corrections how far to move, from the weighted squared errors [R, 3] of rays' colours."""
        if self.refinement is not None:
            self.refinement.note_residuals(squares.sum(-1))
        if not self.exposure.moves:
            return {}
        weight = torch.full_like(squares[:, 0], 2 / squares.numel())
        return {"exposure_curvature": self.exposure.curvature_of(weight)}

    def correction_metrics(self) -> dict[str, Tensor]:
        """How large the corrections are, for the log."""
        metrics: dict[str, Any] = {}
        if self.refinement is not None:
            self.refinement.get_metrics_dict(metrics)
        if self.exposure.corrects:
            metrics["exposure_spread"] = self.exposure.spread()
        if self.moving.is_on:
            metrics["left_out"] = self.moving.left_out
        return {name: torch.as_tensor(value) for name, value in metrics.items()}

    def correction_callbacks(self, total_steps: int | None) -> list[TrainingCallback]:
        """What the corrections do before and after each step.

        Args:
            total_steps: length of the training; None: unknown, and nothing ever begins or ends.
        """
        length = total_steps or math.inf
        return [
            TrainingCallback(
                [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                lambda step: self.before_corrected_step(step / length),
            ),
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                lambda step: self.after_corrected_step(step, (step + 1) / length),
            ),
        ]

    def counting(self, pixels: Tensor, losses: Tensor) -> Tensor:
        """Losses of single pixels, 0 where something has moved.

        Args:
            pixels: [n, 3] int64: photograph, row, column.
            losses: [n, C] squared errors.
        """
        if not self.moving.is_on or self._sizes is None:
            return losses
        heights, widths = self._sizes = tuple(sizes.to(pixels.device) for sizes in self._sizes)
        counts = self.moving.weights(pixel_blocks(pixels, heights, widths), losses.mean(-1).sqrt())
        return losses * counts[:, None]

    def refined(self, camera: Cameras) -> tuple[Cameras, Tensor | None]:
        """A training camera at its refined pose, and its motion (`PoseRefinement.corrected`)."""
        return (camera, None) if self.refinement is None else self.refinement.corrected(camera)

    def view_change(self, camera: Cameras, rays: RayBundle, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Derivatives of an image by its camera's motion: "view_change" [H, W, 3, 6] (`corrections.view_change`).

        Args:
            camera: at its refined pose.
            rays: [H, W].
            outputs: "rgb" [H, W, 3] and "depth" [H, W, 1].
        """
        assert self.refinement is not None
        pose, unit = camera.camera_to_worlds[0], self.refinement.unit
        return {"view_change": view_change(outputs["rgb"], outputs["depth"], rays, pose, unit)}

    def photo_shown(self) -> int | None:
        """The photograph whose colours an image has that is not trained on: the viewer's choice, else the mean."""
        return self.look.photo if viewer_asks() else None


class PhotoLook(nn.Module):
    """The viewer's choice of a photograph whose exposure and colours are shown.

    Args:
        exposure: the corrections.
        num_photos: N.
    """

    def __init__(self, exposure: Exposure, num_photos: int) -> None:
        super().__init__()
        self.slider: ViewerSlider | None = None
        if exposure.is_on:
            self.slider = ViewerSlider(
                "Look of photograph",
                0,
                0,
                num_photos,
                1,
                hint="Exposure and colours of a training photograph; 0: the mean of all",
            )

    def controls(self) -> list[ViewerElement[Any]]:
        """The slider, if photographs may differ."""
        return [] if self.slider is None else [self.slider]

    def join(self, run: ViewerRun) -> None:
        """Put the slider below the other controls that change pictures."""
        others = run.picture_controls
        run.picture_controls = lambda: [*others(), *self.controls()]

    @property
    def photo(self) -> int | None:
        """Number of the chosen photograph; None: the mean."""
        return None if self.slider is None or self.slider.value == 0 else int(self.slider.value) - 1
