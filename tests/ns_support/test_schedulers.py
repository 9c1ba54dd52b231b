import io
import pickle

import pytest
import torch
import yaml
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

from ns_support.errors import UserError
from ns_support.schedulers import FloatExponentialDecayConfig, exponential_decay

LR = 1e-2


def schedule(config, lr=LR):
    optimizer = AdamOptimizerConfig(lr=lr).setup(params=[torch.nn.Parameter(torch.zeros(1))])
    return optimizer, config.setup().get_scheduler(optimizer=optimizer, lr_init=lr)


def rates(config, steps):
    optimizer, scheduler = schedule(config)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_is_log_linear_then_constant():
    found = rates(FloatExponentialDecayConfig(lr_final=1e-4, max_steps=10), 15)
    assert found[0] == LR
    assert found[5] == pytest.approx(1e-3)
    assert found[10:] == pytest.approx([1e-4] * 5)
    assert {type(rate) for rate in found} == {float}


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_agrees_with_nerfstudio(ramp):
    fields = {"lr_final": 1e-4, "max_steps": 20, "warmup_steps": 7, "ramp": ramp}
    theirs = rates(ExponentialDecaySchedulerConfig(**fields), 25)
    assert rates(FloatExponentialDecayConfig(**fields), 25) == pytest.approx(theirs, rel=1e-12)


def test_no_final_rate_means_constant():
    assert rates(FloatExponentialDecayConfig(max_steps=10), 15) == pytest.approx([LR] * 15)


def test_a_warm_up_longer_than_the_schedule_ends_at_the_final_rate():
    assert exponential_decay(9, LR, 1e-4, max_steps=5, warmup_steps=8) == pytest.approx(1e-4)


@pytest.mark.parametrize(("lr", "lr_final"), [(0.0, 1e-4), (LR, 0.0), (LR, -1.0)])
def test_refuses_rates_that_have_no_logarithm(lr, lr_final):
    with pytest.raises(UserError, match="learning rates > 0"):
        schedule(FloatExponentialDecayConfig(lr_final=lr_final), lr)


def test_state_round_trips_under_weights_only():
    config = FloatExponentialDecayConfig(lr_final=1e-4, max_steps=10, warmup_steps=2)
    optimizer, scheduler = schedule(config)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, file)
    assert b"numpy" not in file.getvalue()

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed_optimizer, resumed = schedule(config)
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["scheduler"])
    for each in (optimizer, resumed_optimizer):
        each.step()
    scheduler.step()
    resumed.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()


def test_config_survives_yaml_and_pickle():
    config = FloatExponentialDecayConfig(lr_final=1e-4)
    text = yaml.dump(config)
    assert "lambda" not in text
    assert yaml.load(text, Loader=yaml.Loader) == config
    assert pickle.loads(pickle.dumps(config)) == config
