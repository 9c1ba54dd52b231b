"""The learning rate falls over the whole training, however long it is."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.engine.optimizers import Optimizers

from hardmine_ns.method import instant_ngp_hardmine, instant_ngp_hardmine_bounded
from hardmine_ns.optimizers import FullLengthDecayConfig, fit_learning_rates

FIRST, LAST = 1e-2, 1e-3


def optimizers_of(spec=instant_ngp_hardmine, **schedule):
    config = copy.deepcopy(spec.config.optimizers)
    for name, value in schedule.items():
        setattr(config["fields"]["scheduler"], name, value)
    return Optimizers(config, {"fields": [torch.nn.Parameter(torch.zeros(3))]})


def rates(optimizers, steps):
    found = []
    for _ in range(steps):
        found.append(optimizers.optimizers["fields"].param_groups[0]["lr"])
        optimizers.optimizers["fields"].step()
        optimizers.scheduler_step_all(0)
    return found


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """`scheduler_step_all` writes to a log that is not there."""
    monkeypatch.setattr("nerfstudio.utils.writer.put_scalar", lambda *args, **kwargs: None)


@pytest.mark.parametrize("spec", [instant_ngp_hardmine, instant_ngp_hardmine_bounded])
@pytest.mark.parametrize("total", [10, 30])
def test_decay_ends_with_the_training(spec, total):
    optimizers = optimizers_of(spec)
    assert isinstance(optimizers.config["fields"]["scheduler"], FullLengthDecayConfig)
    for _ in range(2):  # once more changes nothing
        fit_learning_rates(optimizers, total)
    assert rates(optimizers, total + 3) == pytest.approx([FIRST * 0.1 ** min(k / total, 1) for k in range(total + 3)])


def test_a_length_that_was_given_stays():
    optimizers = optimizers_of(max_steps=5)
    fit_learning_rates(optimizers, 100)
    assert rates(optimizers, 8)[5:] == pytest.approx([LAST] * 3)


def test_constant_while_nobody_says_how_long_the_training_is():
    assert rates(optimizers_of(), 5) == pytest.approx([FIRST] * 5)


def test_a_resumed_run_keeps_the_decay_it_began_with():
    optimizers = optimizers_of()
    fit_learning_rates(optimizers, 20)
    rates(optimizers, 10)
    file = io.BytesIO()
    torch.save({"fields": optimizers.schedulers["fields"].state_dict()}, file)
    file.seek(0)
    resumed = optimizers_of()
    resumed.load_schedulers(torch.load(file))  # with weights_only, torch's default
    fit_learning_rates(resumed, 500)
    assert rates(resumed, 12) == pytest.approx([FIRST * 0.1 ** min(k / 20, 1) for k in range(10, 22)])


def test_a_training_fits_its_learning_rates(ball):
    config = copy.deepcopy(instant_ngp_hardmine_bounded.config)
    config.pipeline.datamanager.data = ball
    config.pipeline.model.log2_hashmap_size, config.pipeline.model.grid_resolution = 8, 8
    config.max_num_iterations = 4
    pipeline, optimizers = config.pipeline.setup(device="cpu"), optimizers_of()
    trainer = SimpleNamespace(config=config)
    pipeline.get_training_callbacks(TrainingCallbackAttributes(optimizers, None, pipeline, trainer))
    assert rates(optimizers, 5)[-1] == pytest.approx(LAST)
