"""A page of viser that shows a trained model without nerfstudio's trainer, one drawing thread for each browser."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import viser
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.colormaps import ColormapOptions, apply_colormap
from nerfstudio.viewer.utils import CameraState, get_camera
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from numpy.typing import NDArray
from torch import Tensor
from viser import transforms

from ns_support.concurrency.fair_lock import FairLock
from ns_support.errors import UserError, require
from ns_support.runs.stopping import stop_signals
from ns_support.terminal import say
from ns_support.viewer.controls import ViewerRun
from ns_support.viewer.frames import FrameThread
from ns_support.viewer.opening import View, show

_TEXT = "Drag to turn, scroll to move, press the right button to shift. Images sharpen while the camera rests."
_SHARPEST = 768
"""Pixels on the longer side of the sharpest image, unless the page says otherwise."""
_SIDES = (128, 2048)


class Seen(NamedTuple):
    """What a browser looks at.

    Attributes:
        pose: [3, 4] camera to world, float64, in the units of nerfstudio's scene; the camera looks along -z.
        fov: vertical field of view (radians).
        aspect: width by height.
    """

    pose: Tensor
    fov: float
    aspect: float

    def size(self, pixels: int) -> tuple[int, int]:
        """Width and height of an image of about so many pixels."""
        height = max(round(math.sqrt(pixels / self.aspect)), 1)
        return max(round(height * self.aspect), 1), height

    def camera(self, pixels: int) -> Cameras:
        """A camera of about so many pixels."""
        width, height = self.size(pixels)
        camera = get_camera(CameraState(self.fov, self.aspect, self.pose, CameraType.PERSPECTIVE), height, width)
        camera.metadata = None
        return camera


@dataclass
class _Panel:
    """What `ViewerRun` asks nerfstudio's control panel for."""

    output_render: str
    split: bool = False
    split_output_render: str = ""


@dataclass
class _Shown:
    """What `ViewerRun` asks nerfstudio's viewer for; there is no trainer."""

    control_panel: _Panel
    trainer: None = None
    browsers: dict[int, FrameThread[Seen]] = field(default_factory=dict)


def check_address(host: str, port: int) -> None:
    """Refuse an address that can't be listened on: viser would wait for ever.

    Raises:
        UserError: the port is out of range, or the host is not one of this machine's.
    """
    require("--port", 1 <= port <= 65535, "in 1..65535", port)
    try:
        with socket.create_server((host, 0)):
            pass
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host} can't be listened on ({error}): give an address of this machine, 127.0.0.1 for this "
            "machine only or 0.0.0.0 for all."
        ) from error


def _refuse_to_share(verbose: bool = True) -> None:
    """What viser calls when a browser asks for a public address of the page."""
    say("A browser asked to share this page: it is not published. --host 0.0.0.0 opens it to the network.")


class Page:
    """Shows a model to every browser that opens the page, until `close`.

    Args:
        model: in evaluation mode; a nerfstudio model whose `run` is a `ViewerRun`.
        outputs: names of the outputs that can be chosen; the first is shown at first.
        view: what a browser sees first.
        host: address to listen on (see `check_address`).
        port: to listen on; the next free one if it is taken.
        label: title of the panel.
    """

    def __init__(self, model: Any, outputs: list[str], view: View, host: str, port: int, label: str) -> None:
        self._model, self._view = model, view
        self._turns = FairLock()
        self._shown = _Shown(_Panel(outputs[0]))
        run: ViewerRun = model.run
        run.viewer = self._shown
        self.server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
        gui = self.server.gui
        # viser's button "Share" would publish the page through a server of viser's. Not hidden by `configure_theme`:
        # the client of viser 0.2.7 then ends in React's error 300, and the page stays blank.
        setattr(self.server, "request_share_url", _refuse_to_share)  # noqa: B010
        gui.add_markdown(_TEXT)
        self._output = gui.add_dropdown("Output", outputs)
        self._side = gui.add_slider("Sharpest image", *_SIDES, 64, _SHARPEST, hint="Pixels on its longer side")
        for control in (self._output, self._side):
            control.on_update(lambda _: self.draw_again())
        with gui.add_folder("Picture"):
            for element in run.picture_controls():
                element.cb_hook = lambda _: self.draw_again()
                element.install(self.server)
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._farewell)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server.get_port())

    def draw_again(self) -> None:
        """Have every browser's image drawn anew, as after a change of the controls."""
        self._shown.control_panel.output_render = self._output.value
        for number, client in self.server.get_clients().items():
            thread = self._shown.browsers.get(number)
            if thread is not None:
                thread.request(seen_by(client.camera))

    def close(self) -> None:
        """End the drawing threads and the server."""
        for thread in self._shown.browsers.values():
            thread.close()
        self.server.stop()

    def _welcome(self, client: Any) -> None:
        thread = FrameThread(lambda seen, pixels: self._draw(client, seen, pixels), self._most)
        self._shown.browsers[client.client_id] = thread
        client.camera.on_update(lambda camera: thread.request(seen_by(camera)))
        show(client, self._view)
        thread.start()
        thread.request(seen_by(client.camera))

    def _farewell(self, client: Any) -> None:
        thread = self._shown.browsers.pop(client.client_id, None)
        if thread is not None:
            thread.close()

    def _most(self, seen: Seen) -> int:
        side = float(self._side.value)
        return round(side * side / max(seen.aspect, 1 / seen.aspect))

    def _draw(self, client: Any, seen: Seen, pixels: int) -> int:
        with self._turns:
            name = self._shown.control_panel.output_render
            frame = picture(self._model.get_outputs_for_camera(seen.camera(pixels)), name)
        client.scene.set_background_image(frame, format="jpeg", jpeg_quality=90 if pixels == self._most(seen) else 75)
        return int(frame.shape[0] * frame.shape[1])


def seen_by(camera: Any) -> Seen:
    """What viser's handle of a browser's camera sees at this moment."""
    turned = transforms.SO3(wxyz=camera.wxyz) @ transforms.SO3.from_x_radians(np.pi)
    position = torch.tensor(camera.position, dtype=torch.float64) / VISER_NERFSTUDIO_SCALE_RATIO
    return Seen(torch.cat([torch.tensor(turned.as_matrix()), position[:, None]], 1), camera.fov, camera.aspect)


def picture(outputs: Mapping[str, Tensor], name: str) -> NDArray[np.uint8]:
    """An output as an image for the browser.

    Args:
        outputs: [H, W, 1 or 3] each.
        name: which; what has one channel is shown in nerfstudio's colours, opacities from 0 to 1 and others from their
            least to their greatest value.
    """
    image = outputs[name]
    if image.shape[-1] == 1:
        image = apply_colormap(image, ColormapOptions(colormap="turbo", normalize=name != "accumulation"))
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels


def serve(page: Page) -> None:
    """Serve a page until Ctrl+C or SIGTERM, then close it."""
    ended = threading.Event()

    def end() -> bool:
        ended.set()
        return False

    try:
        with stop_signals(end):
            while not ended.wait(1.0):  # with a limit: without one, Windows would not deliver Ctrl+C
                pass
    finally:
        page.close()
