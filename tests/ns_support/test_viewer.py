import threading
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement

from ns_support.fair_lock import FairLock
from ns_support.viewer import SlicePlane, ViewerRun, viewer_asks


class Handle:
    """What viser gives for a control that is in place."""

    visible, disabled = True, False


def viewer(trainer, output="rgb", split=None):
    panel = SimpleNamespace(output_render=output, split=split is not None, split_output_render=split)
    return SimpleNamespace(trainer=trainer, control_panel=panel, viser_server=None)


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


def test_a_slice_is_where_the_controls_put_it():
    plane = SlicePlane(torch.tensor([[-1.0, -1.0, -2.0], [1.0, 1.0, 2.0]]))
    origins = torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [3.0, 0.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.6, -0.8], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    inf = torch.inf
    assert plane.distances(origins, directions).tolist() == [4.0, 5.0, inf, inf]  # the last lies within the plane
    plane.slice_axis.default_value, plane.slice_position.default_value = "x", 0.5
    assert plane.distances(origins, directions).tolist() == [inf, inf, inf, 2.5]
    assert (plane.slice_position.min, plane.slice_position.max, plane.slice_position.step) == (-2.0, 2.0, 0.01)
