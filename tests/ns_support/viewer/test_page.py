import math
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import viser
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

from ns_support.errors import UserError
from ns_support.viewer.controls import SlicePlane, ViewerRun, viewer_asks
from ns_support.viewer.opening import View
from ns_support.viewer.page import Page, Seen, check_address, picture, seen_by, serve

VIEW = View(torch.tensor([0.0, -4.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]), 0.9, 0.0)


class Model:
    """Draws one colour, and remembers for whom."""

    def __init__(self):
        self.run, self.plane = ViewerRun(), SlicePlane(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        self.run.picture_controls = self.plane.controls
        self.asked = []

    def get_outputs_for_camera(self, camera):
        self.asked.append((viewer_asks(), self.run.shown(), camera))
        size = int(camera.height), int(camera.width)
        return {"rgb": torch.full((*size, 3), 0.25), "depth": torch.rand(*size, 1)}


class Browser:
    """What the page needs of viser's handle of a browser."""

    def __init__(self):
        self.client_id, self.images = 1, []
        self.moved = []
        self.camera = SimpleNamespace(
            wxyz=np.array([1.0, 0, 0, 0]), position=np.array([0.0, -40.0, 0.0]), fov=0.9, aspect=1.5
        )
        self.camera.on_update = self.moved.append
        self.scene = SimpleNamespace(set_background_image=lambda image, **_: self.images.append(image))


@pytest.fixture
def page():
    made = Page(Model(), ["rgb", "depth"], VIEW, "127.0.0.1", free_port(), "label")
    yield made
    made.close()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_is_published(page, monkeypatch, capsys):
    """By what viser calls when a browser's button "Share" is pressed."""
    handlers = page.server._websock_server._incoming_handlers[viser._messages.ShareUrlRequest]
    assert handlers
    tunnels = []
    monkeypatch.setattr(viser._viser, "ViserTunnel", lambda *args, **_: tunnels.append(args))
    for handler in handlers:
        handler(1, viser._messages.ShareUrlRequest())
    assert not tunnels
    assert "not published" in " ".join(capsys.readouterr().out.split())


def test_the_theme_keeps_the_button(monkeypatch):
    """Without it, the client of viser 0.2.7 ends in React's error 300: a blank page."""
    themes = []
    monkeypatch.setattr(viser.GuiApi, "configure_theme", lambda self, **given: themes.append(given))
    Page(Model(), ["rgb"], VIEW, "127.0.0.1", free_port(), "label").close()
    assert all(given.get("show_share_button", True) for given in themes)


def test_a_browser_gets_images_until_it_leaves(page, monkeypatch):
    browser = Browser()
    monkeypatch.setattr(page.server, "get_clients", lambda: {1: browser})
    page._welcome(browser)
    whole = (512, 768, 3)
    wait_for(lambda: browser.images and browser.images[-1].shape == whole)
    assert browser.images[-1].dtype == np.uint8
    assert browser.images[-1][0, 0].tolist() == [64] * 3
    assert tuple(browser.camera.position) == (0, -4 * VISER_NERFSTUDIO_SCALE_RATIO, 0)  # shown the whole scene
    asks, shown, _ = page._model.asked[-1]
    assert asks  # so the sliders count, and the image can be given up
    assert shown == {"rgb"}

    count = len(browser.images)
    page._output.value = "depth"
    page.draw_again()
    wait_for(lambda: len(browser.images) > count)
    assert page._model.asked[-1][1] == {"depth"}
    page._side.value = 192
    page.draw_again()
    wait_for(lambda: browser.images[-1].shape == (128, 192, 3))

    page.server.get_clients().clear()
    thread = page._shown.browsers[1]
    page._farewell(browser)
    thread.join(10)
    assert not thread.is_alive()


def test_controls_of_the_model_draw_again(page, monkeypatch):
    calls = []
    monkeypatch.setattr(page, "draw_again", lambda: calls.append(1))
    page._model.plane.slice_position.cb_hook(None)
    assert calls == [1]
    assert page._model.plane.slice_axis.gui_handle is not None


def test_the_port_is_listened_on_from_this_machine_only(page):
    with socket.create_connection(("127.0.0.1", page.port), timeout=5) as connection:
        assert connection.getpeername()[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", page.port), timeout=5):
        pass


def test_what_a_browser_sees_as_a_camera():
    # viser: x right, y down, z ahead. A turn of -90 degrees about x looks along y, with z up.
    half = math.pi / 4
    camera = SimpleNamespace(
        wxyz=np.array([math.cos(half), -math.sin(half), 0, 0]), position=np.array([10.0, 20, 30]), fov=1.0, aspect=2.0
    )
    seen = seen_by(camera)
    wanted = torch.tensor([[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3]], dtype=torch.float64)
    torch.testing.assert_close(seen.pose, wanted)
    made = seen.camera(20_000)
    assert (int(made.width), int(made.height)) == (200, 100)
    assert float(made.fy) == pytest.approx(50 / math.tan(0.5), rel=1e-6)
    assert Seen(seen.pose, 1.0, 0.01).size(4) == (1, 20)


def test_pictures():
    outputs = {"rgb": torch.tensor([[[0.0, 0.5, 2.0]]]), "accumulation": torch.tensor([[[0.5], [0.5]]])}
    assert picture(outputs, "rgb").tolist() == [[[0, 128, 255]]]
    half = picture(outputs, "accumulation")
    assert half.shape == (1, 2, 3)
    assert half[0, 0].tolist() != picture({"depth": torch.tensor([[[0.5], [0.5]]])}, "depth")[0, 0].tolist()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("192.0.2.1", 7007, "--host 192.0.2.1"), ("127.0.0.1", 0, "--port"), ("127.0.0.1", 70_000, "1..65535, got 70000")],
)
def test_an_address_that_cannot_be_listened_on(host, port, said):
    with pytest.raises(UserError, match=said):
        check_address(host, port)
    check_address("127.0.0.1", 7007)


def test_ctrl_c_ends_serving():
    closed = []
    page = SimpleNamespace(close=lambda: closed.append(1))
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    serve(page)
    assert closed == [1]
