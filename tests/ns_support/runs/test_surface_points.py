"""Points on what a finished run shows, and a training that starts from them."""

import pytest
import torch
from small_runs import begin, configure_growing
from small_scenes import write_disc

from ns_support.errors import UserError
from ns_support.runs.surface_points import surface_points
from ns_support.runs.trained_on import trained_on


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has learnt a disc of radius 0.86, the same from four sides; its trainer."""
    folder = tmp_path_factory.mktemp("disc")
    write_disc(folder / "scene")
    return begin(configure_growing(folder / "scene", folder / "runs", 60, densify_until=0, training_window=0))


def test_points_are_on_what_the_run_shows(finished):
    found = surface_points(finished.base_dir, trained_on(finished.pipeline.datamanager), 200)
    assert found.positions.shape == found.colors.shape == (200, 3)
    distances = torch.linalg.vector_norm(found.positions, dim=-1)
    assert float((distances < 1.3).float().mean()) > 0.95  # nothing of the box of +-1.5 beside the disc's hull
    assert 0 <= float(found.colors.min()) < float(found.colors.max()) <= 255
    again = surface_points(finished.base_dir, trained_on(finished.pipeline.datamanager), 200)
    assert torch.equal(again.positions, found.positions)


def test_a_training_starts_from_them(finished, tmp_path):
    config = configure_growing(finished.config.data or finished.config.pipeline.datamanager.data, tmp_path, 1)
    config.pipeline.datamanager.points_from, config.pipeline.datamanager.surface_points = finished.base_dir, 150
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    positions = trainer.pipeline.model.cloud.params["means"].detach()
    expected = surface_points(finished.base_dir, trained_on(trainer.pipeline.datamanager), 150).positions
    assert torch.equal(positions, expected)


def test_a_run_of_other_data_is_refused(finished):
    here = trained_on(finished.pipeline.datamanager)
    here["poses"] = here["poses"] + 0.1
    with pytest.raises(UserError, match="is of other data: the cameras of 4 of 4 images"):
        surface_points(finished.base_dir, here, 10)


def test_a_run_that_shows_nothing_is_refused(tmp_path):
    write_disc(tmp_path / "scene")
    config = configure_growing(tmp_path / "scene", tmp_path, 1, initial_density=0.11, densify_until=0)
    config.optimizers["densities"]["optimizer"].lr = 1e-9
    run = begin(config)
    with pytest.raises(UserError, match="shows no surface from its training cameras"):
        surface_points(run.base_dir, trained_on(run.pipeline.datamanager), 10)
