"""What both methods put into nerfstudio's viewer: who is asking for a picture, a stop button, a slice to place.

nerfstudio looks for controls in the attributes of the model and of its modules, and names their folders after those:
`ViewerRun` and its like are modules for that reason alone, and hold no parameters.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerDropdown, ViewerSlider
from torch import Tensor, nn

from ns_support.fair_lock import FairLock

Axis = Literal["x", "y", "z"]
_AXES: tuple[Axis, ...] = ("x", "y", "z")
_LONGEST, _LONGEST_COARSE = 3.0, 1.0
"""Seconds that a picture may take while the training waits for it; the second is for those that nerfstudio makes
coarse, though never coarser than 30 rows, for a quick answer."""


def viewer_asks() -> bool:
    """Whether it is the viewer that this thread renders for.

    The viewer's controls change its own pictures only: training, evaluation and `ns-render` run in other threads.
    """
    return isinstance(threading.current_thread(), RenderStateMachine)


def _render_again(renderer: RenderStateMachine) -> None:
    """Have a picture drawn anew, unless the browser has left or the camera has moved meanwhile."""
    if renderer.running and renderer.state == "high":
        renderer.viewer.update_step(renderer.viewer.step)
        renderer.action(RenderAction("step", renderer.viewer.get_camera_state(renderer.client)))


class ViewerLink(ViewerControl):
    """The viewer that a model is shown in, once there is one."""

    def __init__(self, run: ViewerRun) -> None:
        self._run = run

    def _setup(self, viewer: Any) -> None:
        """Called by the viewer when its controls are in place."""
        super()._setup(viewer)
        self._run.attach(viewer)


class ViewerRun(nn.Module):
    """The folder of the controls that act on the run: a button that ends training and leaves a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.viewer: Any = None
        """nerfstudio's viewer; None without one."""
        self.stop = ViewerButton("Stop training and save", cb_hook=lambda _: self.stop_training())
        self.link = ViewerLink(self)
        self._rays_per_second = math.inf

    def attach(self, viewer: Any) -> None:
        """Take note of the viewer: without a training nothing to stop, with one take turns with it."""
        self.viewer = viewer
        if viewer.trainer is None:
            self.hide()
        else:  # before the first step: nobody holds the old one
            viewer.train_lock = viewer.trainer.train_lock = FairLock()

    def hide(self) -> None:
        """Take the controls out of a viewer that has no training to act on."""
        self.stop.set_hidden(True)

    def stop_training(self) -> None:
        """End the training before its next step.

        nerfstudio then does what it does after the last step: it saves a checkpoint and, unless
        --viewer.quit-on-train-completion is set, keeps the viewer open.
        """
        trainer = None if self.viewer is None else self.viewer.trainer
        if trainer is None or trainer.training_state == "completed":
            return
        trainer.stop_training = True
        self.stop.set_disabled(True)

    @contextmanager
    def in_time(self, camera: Cameras) -> Iterator[None]:
        """Render a picture in here; while a model trains, one for the viewer takes some seconds at most.

        nerfstudio follows each coarse picture by one of full resolution, however long that takes, and trains no further
        until it is there. At the pace of the picture before, that can be minutes on a CPU, early in a training. The
        camera is then made smaller, and so is the picture. Another one follows when training has had its share of the
        time ("Train Util"): nerfstudio's own next one would be as late as if this one had been whole.

        Args:
            camera: one camera; its resolution may change.
        """
        if not viewer_asks():
            yield
            return
        trainer = None if self.viewer is None else self.viewer.trainer
        waits = trainer is not None and trainer.training_state == "training"
        renderer: Any = threading.current_thread()
        fine = getattr(renderer, "state", "high") == "high"
        seconds = _LONGEST if fine else _LONGEST_COARSE
        share = self._rays_per_second * seconds / float(camera.height * camera.width)
        shrinks = waits and share < 1
        if shrinks:
            camera.rescale_output_resolution(math.sqrt(share))
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self._rays_per_second = float(camera.height * camera.width) / seconds
        if shrinks and fine:
            training = min(self.viewer.train_util, 0.95)
            again = threading.Timer(seconds * training / (1 - training), _render_again, (renderer,))
            again.daemon = True
            again.start()

    def shown(self) -> set[str]:
        """Names of the pictures that the viewer shows; empty without a viewer."""
        if self.viewer is None:
            return set()
        panel = self.viewer.control_panel
        return {panel.output_render} | ({panel.split_output_render} if panel.split else set())


class SlicePlane(nn.Module):
    """The folder of the controls that place the plane of `density_slice`.

    Args:
        box: [2, 3] corners of the scene box (scene units): the plane moves within its longest side.
    """

    def __init__(self, box: Tensor) -> None:
        super().__init__()
        reach = float(box.abs().max())
        step = 10.0 ** math.floor(math.log10(reach / 50))  # a power of ten: the viewer shows as many digits as it has
        self.slice_axis = ViewerDropdown(
            "Slice across", "z", list(_AXES), hint="density_slice: the axis it is normal to"
        )
        self.slice_position = ViewerSlider(
            "Slice at", 0.0, -reach, reach, step, hint="density_slice: where on that axis, in scene units"
        )

    def distances(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Distance along each ray at which it meets the plane; infinite where it never does.

        Args:
            origins: [R, 3].
            directions: [R, 3] of unit length.

        Returns:
            [R] > 0.
        """
        axis = _AXES.index(self.slice_axis.value)
        distance = (self.slice_position.value - origins[:, axis]) / directions[:, axis]
        return torch.where(distance > 0, distance, torch.inf)  # a ray within the plane: 0 / 0 is not > 0
