import threading
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement

from ns_support.concurrency.fair_lock import FairLock
from ns_support.viewer.controls import SlicePlane, ViewerRun, viewer_asks


class Handle:
    """What viser gives for a control that is in place."""

    visible, disabled = True, False


def viewer(trainer, output="rgb", split=None):
    panel = SimpleNamespace(output_render=output, split=split is not None, split_output_render=split)
    camera = SimpleNamespace(get_camera_state=lambda client: f"camera of {client}")
    shows = SimpleNamespace(trainer=trainer, control_panel=panel, viser_server=None, train_util=0.5, **vars(camera))
    shows.step, shows.update_step = 7, lambda step: setattr(shows, "shown_step", step)
    return shows


def attached(trainer, **panel):
    run = ViewerRun()
    run.stop.gui_handle = Handle()
    run.link._setup(viewer(trainer, **panel))
    return run


def a_trainer(state="training"):
    return SimpleNamespace(training_state=state, stop_training=False)


def test_the_controls_are_where_nerfstudio_looks_for_them():
    model = torch.nn.Module()
    model.run, model.plane = ViewerRun(), SlicePlane(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    found = {path: type(e).__name__ for path, e in parse_object(model, ViewerElement, "Custom Elements")}
    assert found == {
        "Custom Elements/run/stop": "ViewerButton",
        "Custom Elements/plane/slice_axis": "ViewerDropdown",
        "Custom Elements/plane/slice_position": "ViewerSlider",
    }
    assert [path for path, _ in parse_object(model, ViewerControl, "Custom Elements")] == ["Custom Elements/run/link"]
    assert not model.state_dict()


def test_the_button_ends_training_once():
    trainer = a_trainer()
    run = attached(trainer)
    assert run.stop.gui_handle.visible
    run.stop.cb_hook(run.stop)
    assert trainer.stop_training
    assert isinstance(trainer.train_lock, FairLock)
    assert run.viewer.train_lock is trainer.train_lock
    assert run.stop.gui_handle.disabled


def test_a_training_that_is_over_is_not_stopped():
    trainer = a_trainer("completed")
    run = attached(trainer)
    run.stop.cb_hook(run.stop)
    assert not trainer.stop_training


def test_without_a_training_there_is_no_button():
    run = attached(None)
    assert run.stop.gui_handle.visible is False
    run.stop_training()  # not an error


@pytest.mark.parametrize(
    ("panel", "shown"),
    [({}, {"rgb"}), ({"output": "normals"}, {"normals"}), ({"output": "rgb", "split": "depth"}, {"rgb", "depth"})],
)
def test_what_the_viewer_shows(panel, shown):
    assert attached(a_trainer(), **panel).shown() == shown


def test_without_a_viewer_nothing_is_shown():
    assert ViewerRun().shown() == set()


def test_only_the_viewers_threads_are_the_viewer():
    assert not viewer_asks()
    answers = []

    class Renderer(RenderStateMachine):
        def run(self):
            answers.append(viewer_asks())

    for thread in (Renderer(None, 1.0, None), threading.Thread(target=lambda: answers.append(viewer_asks()))):
        thread.start()
        thread.join()
    assert answers == [True, False]


class TestPace:
    """Pictures of 100 x 60 rays at 500 rays a second, of which there is time for 3 seconds' worth: half the side."""

    @pytest.fixture
    def rendered(self, monkeypatch):
        """The size of a second picture, by the state of the viewer's thread."""
        clock = iter([0.0, 12.0, 20.0, 25.0])
        monkeypatch.setattr("ns_support.viewer.controls.time.perf_counter", lambda: next(clock))

        later = []

        class Timer:
            def __init__(self, seconds, function, arguments):
                later.append((seconds, function, arguments))

            def start(self):
                assert self.daemon

        monkeypatch.setattr("ns_support.viewer.controls.threading.Timer", Timer)

        def render(run, state, running=True):
            sizes = []

            class Renderer(RenderStateMachine):
                def run(self):
                    for self.state in ("low_static", state):
                        camera = Cameras(torch.eye(4)[None, :3], 50.0, 50.0, 50.0, 30.0, 100, 60)
                        with run.in_time(camera):
                            sizes.append((int(camera.width), int(camera.height), float(camera.fx)))

            thread = Renderer(run.viewer, 1.0, "a browser")
            thread.running = running
            thread.start()
            thread.join()
            later.append(thread)
            assert sizes[0] == (100, 60, 50.0)
            return sizes[1]

        render.later = later
        return render

    def test_a_training_waits_for_small_pictures_only(self, rendered):
        assert rendered(attached(a_trainer()), "high") == (50, 30, 25.0)

    def test_another_follows_when_training_has_had_its_share(self, rendered):
        rendered(attached(a_trainer()), "high")
        (seconds, again, arguments), thread = rendered.later
        assert seconds == pytest.approx(5.0)  # as long as the picture took
        again(*arguments)
        assert (thread.next_action.action, thread.next_action.camera_state) == ("step", "camera of a browser")
        assert thread.viewer.shown_step == 7

    def test_none_follows_when_the_browser_has_left(self, rendered):
        rendered(attached(a_trainer()), "high", running=False)
        (_, again, arguments), thread = rendered.later
        again(*arguments)
        assert thread.next_action is None

    def test_a_coarse_picture_is_quicker_still(self, rendered):
        assert rendered(attached(a_trainer()), "low_move") == (28, 17, pytest.approx(50 / 12**0.5))
        assert len(rendered.later) == 1  # the thread itself

    @pytest.mark.parametrize("trainer", [None, a_trainer("paused"), a_trainer("completed")])
    def test_nothing_waits_without_a_training(self, rendered, trainer):
        assert rendered(attached(trainer), "high") == (100, 60, 50.0)

    def test_other_threads_take_their_time(self):
        run, camera = attached(a_trainer()), Cameras(torch.eye(4)[None, :3], 50.0, 50.0, 50.0, 30.0, 100, 60)
        run._rays_per_second = 1.0
        with run.in_time(camera):
            assert int(camera.width) == 100


def test_a_slice_is_where_the_controls_put_it():
    plane = SlicePlane(torch.tensor([[-1.0, -1.0, -2.0], [1.0, 1.0, 2.0]]))
    origins = torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [3.0, 0.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.6, -0.8], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    inf = torch.inf
    assert plane.distances(origins, directions).tolist() == [4.0, 5.0, inf, inf]  # the last lies within the plane
    plane.slice_axis.default_value, plane.slice_position.default_value = "x", 0.5
    assert plane.distances(origins, directions).tolist() == [inf, inf, inf, 2.5]
    assert (plane.slice_position.min, plane.slice_position.max, plane.slice_position.step) == (-2.0, 2.0, 0.01)
