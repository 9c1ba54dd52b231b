"""nerfstudio's viewer in a real browser: a training, and a Chromium that is controlled with the DevTools protocol.

Needs Chromium (`apt-get install chromium`) and nothing from PyPI: websockets and msgspec come with viser.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from PIL import Image
from websockets.sync.client import connect

from common.system import command_path, free_port

FLAGS = (
    "--headless=new",
    "--use-gl=angle",
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
)
FEW_DRAWINGS = "window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 250);"
"""Limits viser to four drawings per second: without a GPU, drawing would take a core from the training."""
HELPERS = """
    const named = (e, text) => e.textContent === text || e.tagName === 'BUTTON' && e.textContent.trim() === text;
    const exact = (selector, text) => [...document.querySelectorAll(selector)].filter(e => named(e, text));
    const input = label => {
        const found = exact('label', label).map(l => document.getElementById(l.htmlFor)).filter(e => e);
        if (!found.length) throw new Error('no control named ' + label);
        return found[0];
    };
    const middle = e => {
        e.scrollIntoView({block: 'center'});
        const r = e.getBoundingClientRect();
        return [r.left + r.width / 2, r.top + r.height / 2];
    };
"""
"""JavaScript helpers: elements by their text, a control by its label, and where to click on an element."""
TRAINING_STEP = "return Number((document.body.innerText.match(/Step: (\\d+)/) || [0, 0])[1])"
"""JavaScript: the training step that the viewer shows."""


class Frame(NamedTuple):
    """An image that the viewer sent to the browser."""

    time: float
    """Time of arrival (`time.monotonic`)."""
    width: int
    height: int


class Page:
    """A page of a browser, controlled with the DevTools protocol."""

    def __init__(self, address: str) -> None:
        self._socket = connect(address, max_size=None, ping_interval=None)  # a starved browser may be late
        self._calls = 0
        self.frames: list[Frame] = []

    def _send(self, method: str, parameters: dict[str, Any], session: str | None = None) -> None:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        self._socket.send(json.dumps(message if session is None else message | {"sessionId": session}))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._send(method, parameters)
        mine = self._calls
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            self._handle(message)
            if message.get("id") == mine:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Handle messages for `seconds`, or until `until()` is true; returns whether it became true."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                return False
            try:
                self._handle(json.loads(self._socket.recv(timeout=left)))
            except TimeoutError:
                return until()
        return True

    def _handle(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Target.attachedToTarget":  # viser's socket belongs to a worker
            session = message["params"]["sessionId"]
            self._send("Network.enable", {"maxTotalBufferSize": 10**8, "maxResourceBufferSize": 10**8}, session)
            self._send("Runtime.runIfWaitingForDebugger", {}, session)
        if message.get("method") != "Network.webSocketFrameReceived":
            return
        response = message["params"]["response"]
        if response["opcode"] != 2:
            return
        for sent in msgspec.msgpack.decode(base64.b64decode(response["payloadData"])):
            if isinstance(sent, dict) and sent.get("type") == "BackgroundImageMessage":
                with Image.open(io.BytesIO(sent["rgb_bytes"])) as image:
                    self.frames.append(Frame(time.monotonic(), *image.size))

    def run(self, script: str) -> Any:
        """Run JavaScript, with `HELPERS`, and return what it returns."""
        source = f"(() => {{ {HELPERS} {script} }})()"
        result = self.call("Runtime.evaluate", expression=source, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['exception']['description']}")
        return result["result"].get("value")

    def click(self, place: str) -> None:
        """Click on the element that is the value of a JavaScript expression."""
        x, y = self.run(f"return middle({place})")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, text: str) -> None:
        """Click on the button with this text."""
        self.click(f"exact('button', {json.dumps(text)})[0]")

    def choose(self, label: str, option: str) -> None:
        """Choose an option of a list."""
        self.click(f"input({json.dumps(label)})")
        there = f"return exact('[role=option]', {json.dumps(option)}).length > 0"
        if not self.wait_for(there, 20):
            raise RuntimeError(f"the list {label!r} has no option {option!r}")
        self.click(f"exact('[role=option]', {json.dumps(option)})[0]")

    def enter(self, label: str, value: float | str, field: int = 0) -> None:
        """Type a number or a text into a control: the box beside a slider, or one of a vector's boxes."""
        row = f"input({json.dumps(label)}).closest('div[class*=Flex]')"
        place = f"[...{row}.querySelectorAll('input:not([type=hidden])')].slice({field})[0]"
        self.click(place)
        self.run(f"{place}.select()")
        self.call("Input.insertText", text=value if isinstance(value, str) else f"{value:g}")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
        self.run("document.activeElement.blur()")

    def drag(self, by: tuple[int, int], start: tuple[int, int] = (400, 400), steps: int = 8) -> None:
        """Turn the camera with the left mouse button."""
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", clickCount=1)
        for i in range(1, steps + 1):
            x, y = (a + b * i / steps for a, b in zip(start, by, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        x, y = start[0] + by[0], start[1] + by[1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def scroll(self, notches: int, at: tuple[int, int] = (400, 400)) -> None:
        """Turn the mouse wheel: the camera moves away for positive numbers."""
        for _ in range(abs(notches)):
            turn = 100 if notches > 0 else -100
            self.call("Input.dispatchMouseEvent", type="mouseWheel", x=at[0], y=at[1], deltaX=0, deltaY=turn)

    def wait_for(self, script: str, seconds: float) -> bool:
        """Wait until JavaScript returns a true value; returns whether it did."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                return False
            self.wait(0.2)
        return True

    def settled(self, seconds: float, side: int) -> bool:
        """Wait for a new image whose longer side is at least `side` pixels; returns whether one came."""
        begin = time.monotonic()
        return self.wait(
            seconds, lambda: any(frame.time > begin and max(frame[1:]) >= side for frame in self.frames[-5:])
        )

    def screenshot(self) -> Image.Image:
        """The page as an RGB image."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@contextmanager
def chromium(width: int = 1200, height: int = 760) -> Iterator[Page]:
    """A headless Chromium with one empty page."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [program, *FLAGS, f"--window-size={width},{height}", "--remote-debugging-port=0"]
        words += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + 120
            while not (told.exists() and told.read_text().count("\n")):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{program} did not start")
                time.sleep(0.1)
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as reply:
                page = next(target for target in json.load(reply) if target["type"] == "page")
            made = Page(page["webSocketDebuggerUrl"])
            made.call("Page.enable")
            made.call("Page.addScriptToEvaluateOnNewDocument", source=FEW_DRAWINGS)
            made.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
            made.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            yield made
        finally:
            process.terminate()
            process.wait()


@contextmanager
def training(method: str, scene: Path, *options: object, log: Path | None = None) -> Iterator[tuple[Any, int, Path]]:
    """Run `ns-train` with its viewer until the block ends.

    Yields:
        (process, port of the viewer, folder in which the process runs).
    """
    command, port = command_path("ns-train"), free_port()
    if command is None:
        sys.exit(f"ns-train is not installed beside {sys.executable}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = [command, method, "--data", scene.resolve(), *options]
        words += ["--viewer.websocket-port", port, "--viewer.websocket-host", "127.0.0.1"]
        with open(log or Path(folder) / "log.txt", "w") as file:
            process = subprocess.Popen([*map(str, words)], cwd=folder, stdout=file, stderr=subprocess.STDOUT)
            try:
                yield process, port, Path(folder)
            finally:
                process.terminate()
                process.wait()


def wait_until(true: Callable[[], bool], process: Any, seconds: float, what: str) -> None:
    """Wait until `true()`; exit with a message if the training ends first, or after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"the training {'ended' if process.poll() is not None else 'took too long'} before {what}")
        time.sleep(0.2)


def answers(port: int) -> bool:
    """Whether a process listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def open_viewer(page: Page, port: int) -> None:
    """Open the viewer and wait for its first image, or exit with a message after 600 s."""
    page.call("Page.navigate", url=f"http://127.0.0.1:{port}")
    if not page.wait(600, lambda: bool(page.frames)):
        sys.exit("no image came within 600 s")


def wait_for_checkpoint(process: Any, folder: Path) -> Path:
    """Wait until the training that runs in a folder has saved a checkpoint; returns its path."""
    outputs = folder / "outputs"
    wait_until(lambda: any(outputs.rglob("*.ckpt")), process, 300, "it had saved a checkpoint")
    return next(outputs.rglob("*.ckpt"))
