import time

import pytest
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

from ns_support.viewer.controls import stop_if_unwanted, viewer_asks
from ns_support.viewer.frames import FrameThread

WHOLE = 40_000


class Drawing:
    """A thread whose frames take no time of their own; `moves` maps a frame's number to a view requested meanwhile."""

    def __init__(self, pace=50_000.0):
        self.frames, self.given_up, self.moves = [], [], {}
        self.pace, self.begun = pace, 0
        self.thread = FrameThread(self.draw, lambda view: WHOLE)
        self.thread.start()

    def draw(self, view, pixels):
        assert viewer_asks()
        self.begun += 1
        if self.begun in self.moves:
            self.thread.request(self.moves[self.begun])
        try:
            stop_if_unwanted()
        except IOChangeException:
            self.given_up.append((view, pixels))
            raise
        self.frames.append((view, pixels))
        return pixels

    def wait_for(self, true):
        end = time.monotonic() + 10
        while not true():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def drawing():
    made = Drawing()
    yield made
    made.thread.close()
    made.thread.join(10)
    assert not made.thread.is_alive()


def slowly(drawing, monkeypatch):
    """Have frames take the time that they would at the drawing's pace."""
    clock = iter(range(10_000))
    drawn = drawing.draw
    times = {"now": 0.0}

    def draw(view, pixels):
        times["now"] += pixels / drawing.pace
        return drawn(view, pixels)

    drawing.thread._draw = draw
    monkeypatch.setattr("ns_support.viewer.frames.time.perf_counter", lambda: next(clock) * 1e-9 + times["now"])


def test_frames_sharpen_while_the_camera_rests(drawing, monkeypatch):
    slowly(drawing, monkeypatch)
    drawing.thread.request("a")
    drawing.wait_for(lambda: drawing.frames and drawing.frames[-1][1] == WHOLE)
    sizes = [pixels for _, pixels in drawing.frames]
    assert sizes == sorted(set(sizes))
    assert len(sizes) > 2
    time.sleep(0.05)
    assert len(drawing.frames) == len(sizes)  # no more than needed
    drawing.thread.request("b")
    drawing.wait_for(lambda: drawing.frames[-1] == ("b", WHOLE))
    first = next(pixels for view, pixels in drawing.frames if view == "b")
    assert first == pytest.approx(0.12 * drawing.pace, rel=0.01)  # in an eighth of a second, at the pace found


def test_a_quick_model_is_drawn_whole_at_once(drawing):
    drawing.thread.request("a")
    drawing.wait_for(lambda: ("a", WHOLE) in drawing.frames)
    drawing.thread.request("b")
    drawing.wait_for(lambda: ("b", WHOLE) in drawing.frames)
    assert [pixels for view, pixels in drawing.frames if view == "b"] == [WHOLE]


def test_while_the_camera_moves_coarse_frames_are_finished_and_sharp_ones_given_up(drawing, monkeypatch):
    slowly(drawing, monkeypatch)
    drawing.moves = {1: "b", 3: "c"}  # during the first frame of a, and the second of b
    drawing.thread.request("a")
    drawing.wait_for(lambda: drawing.frames and drawing.frames[-1] == ("c", WHOLE))
    views = [view for view, _ in drawing.frames]
    assert views[:2] == ["a", "b"]
    assert set(views[2:]) == {"c"}
    assert [view for view, _ in drawing.given_up] == ["b"]
