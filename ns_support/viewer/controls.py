"""What both methods put into nerfstudio's viewer: who is asking for an image, a stop button, a slice to place.

nerfstudio looks for controls in the attributes of the model and of its modules: `ViewerRun` and its like are modules
for that reason alone, and hold no parameters. Once it has placed them, they are moved to the top of the panel.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerControl,
    ViewerDropdown,
    ViewerElement,
    ViewerSlider,
)
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from torch import Tensor, nn

from ns_support.concurrency.fair_lock import FairLock
from ns_support.terminal import warn
from ns_support.viewer.frames import FrameThread
from ns_support.viewer.opening import move_to_top, opening_view, remove_empty_folders, show, with_frustums

Axis = Literal["x", "y", "z"]
_AXES: tuple[Axis, ...] = ("x", "y", "z")
_LONGEST, _LONGEST_COARSE = 3.0, 1.0
"""Seconds that an image may take while the training waits for it; the second is for those that nerfstudio makes
coarse, though never coarser than 30 rows, for a quick answer."""
_UNINTERRUPTED = 0.25
"""Seconds for which the viewer's thread computes without looking whether its image is still wanted."""
_FEWEST_ROWS = 16
"""Rows of an image that are rendered at once, at least: fewer would cost more than they are worth."""
_PLAIN = 0.5
"""Grey of an image that could not be rendered."""
_WHILE_TRAINING = (
    "Images are coarse while training goes on: pause it, or wait for its end, for sharp ones. Drag to turn, scroll "
    "to move, press the right button to shift."
)
_FINISHED = "Drag to turn, scroll to move, press the right button to shift."


def viewer_asks() -> bool:
    """Whether it is the viewer that this thread renders for.

    The viewer's controls change its own images only: training, evaluation and `ns-render` run in other threads.
    """
    return isinstance(threading.current_thread(), (RenderStateMachine, FrameThread))


def stop_if_unwanted() -> None:
    """Give up the image that the viewer's thread is rendering if its camera has moved on. Elsewhere, do nothing.

    To be called where no kernel is half compiled and nothing half written.

    Raises:
        IOChangeException: nerfstudio's sign to its thread to begin another image.
    """
    renderer: Any = threading.current_thread()
    if viewer_asks() and getattr(renderer, "interrupt_render_flag", False):
        renderer.interrupt_render_flag = False
        raise IOChangeException


def _render_again(renderer: RenderStateMachine) -> None:
    """Have an image drawn anew, unless the browser has left or the camera has moved meanwhile."""
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
    """The controls that act on the run: a button that ends training and leaves a checkpoint.

    Also what keeps the viewer alive. nerfstudio gives up an image whose camera has moved by raising an exception from
    a trace function, at whatever line its thread has come to. Within a function that Numba calls from compiled code
    that becomes a `SystemError`, which ends the thread, and the page shows its last image for good. Here nothing is
    traced: the thread looks for itself, between pieces of its work (`stop_if_unwanted`).
    """

    trained_only: ClassVar[tuple[str, ...]] = ("stop",)
    """Names of the controls that act on a training."""
    always: ClassVar[tuple[str, ...]] = ()
    """Names of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.viewer: Any = None
        """nerfstudio's viewer; None without one."""
        self.stop = ViewerButton("Stop training and save", cb_hook=lambda _: self.stop_training())
        self.link = ViewerLink(self)
        self.picture_controls: Callable[[], list[ViewerElement[Any]]] = list
        """Gives the controls that act on images only, for a folder of their own."""
        self.words: Any = None
        """The handle of the text at the top of the panel, once there is one."""
        self._rays_per_second = math.inf
        self._names = ["rgb", "accumulation", "depth"]
        self._reported: set[str] = set()

    def attach(self, viewer: Any) -> None:
        """Take note of the viewer: without a training nothing to stop, with one take turns with it."""
        self.viewer = viewer
        if viewer.trainer is not None:  # before the first step: nobody holds the old one
            viewer.train_lock = viewer.trainer.train_lock = FairLock()
        if viewer.viser_server is not None:
            self._arrange(viewer)
        if viewer.trainer is None:
            self.hide()

    def _arrange(self, viewer: Any) -> None:
        """Own controls at the top; the cameras in sight; every browser begins with a view of the whole scene."""
        trains = viewer.trainer is not None
        names = (*self.trained_only, *self.always) if trains else self.always
        text = _WHILE_TRAINING if trains else _FINISHED
        before, after = viewer.pause_train.order, viewer.stats_markdown.order
        self.words = move_to_top(viewer, "Run", text, [getattr(self, name) for name in names], before - 0.5)
        move_to_top(viewer, "Picture", "", self.picture_controls(), after + 0.5)
        remove_empty_folders(viewer)
        if not trains:
            viewer.pause_train.visible = viewer.resume_train.visible = False
            viewer.update_step(getattr(viewer.pipeline, "loaded_step", 0))
            for control in (viewer.control_panel._train_speed, viewer.control_panel._train_util):
                control.set_hidden(True)
        view = opening_view(viewer.pipeline.datamanager.train_dataset.cameras)
        viewer.config = with_frustums(viewer.config, view)

        def welcome(client: Any) -> None:
            show(client, view)
            self._guard(viewer.render_statemachines[client.client_id])

        viewer.viser_server.on_client_connect(welcome)

    def hide(self) -> None:
        """Take the controls out of a viewer that has no training to act on."""
        for name in self.trained_only:
            control = getattr(self, name)
            if control.gui_handle is not None:
                control.set_hidden(True)

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

    def picture(
        self, camera: Cameras, render: Callable[[], MutableMapping[str, Tensor]]
    ) -> MutableMapping[str, Tensor]:
        """A camera's image. The viewer gets one whatever happens, and may give it up between its pieces.

        Args:
            camera: one camera; its resolution may change (`in_time`).
            render: makes the image, calling `stop_if_unwanted` now and then.

        Returns:
            What `render` gives; for the viewer, plain grey where it raised an exception, which is then reported once.

        Raises:
            IOChangeException: to the viewer's thread, where the image is no longer wanted.
        """
        if not viewer_asks():
            return render()
        sys.settrace(None)  # nerfstudio's, which it would take away when the image is there
        try:
            with self.in_time(camera):
                outputs = render()
            self._names = list(outputs)
            return outputs
        except IOChangeException:
            raise
        except Exception as error:
            self._report(error)
            gray = torch.full((int(camera.height), int(camera.width), 3), _PLAIN, device=camera.device)
            return {name: gray if name == "rgb" else gray[..., :1] for name in {*self._names, *self.shown()}}

    def in_pieces(
        self, rays: RayBundle, render: Callable[[RayBundle], Mapping[str, Tensor]]
    ) -> MutableMapping[str, Tensor]:
        """Render an image some rows at a time, between which the viewer may give it up.

        Args:
            rays: [H, W] of one camera.
            render: maps [h, W] rays to outputs [h, W, *].

        Returns:
            Outputs [H, W, *].
        """
        height, width = rays.origins.shape[:2]
        pace = self._rays_per_second if math.isfinite(self._rays_per_second) else 0.0
        rows = max(int(pace * _UNINTERRUPTED / width), _FEWEST_ROWS)
        pieces = []
        for first in range(0, height, rows):
            stop_if_unwanted()
            pieces.append(render(rays[first : first + rows]))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _report(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text not in self._reported:
            self._reported.add(text)
            warn(f"The viewer could not draw an image ({text}). It is said once; training is not affected.")

    def _guard(self, renderer: Any) -> None:
        """Have a browser's thread outlive what goes wrong in sending an image: a browser that has just left, say."""
        send = renderer._send_output_to_viewer
        panel = self.viewer.control_panel

        def guarded(outputs: dict[str, Any], static_render: bool = True) -> None:
            try:
                send(outputs, static_render)
                if panel.split_output_render == "gl_z_buf_depth" and not panel.split:
                    panel._split_output_render.value = "depth"  # not an inside name, the last in the list
            except Exception as error:
                self._report(error)

        renderer._send_output_to_viewer = guarded

    @contextmanager
    def in_time(self, camera: Cameras) -> Iterator[None]:
        """Render an image in here; while a model trains, one for the viewer takes some seconds at most.

        nerfstudio follows each coarse image by one of full resolution, however long that takes, and trains no further
        until it is there. At the pace of the image before, that can be minutes on a CPU, early in a training. The
        camera is then made smaller, and so is the image. Another one follows when training has had its share of the
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
        """Names of the images that the viewer shows; empty without a viewer."""
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

    def controls(self) -> list[ViewerElement[Any]]:
        """The controls that act on images only, in the order in which they are shown."""
        return [self.slice_axis, self.slice_position]

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
