"""A whole training step of both methods on a GPU: the loss and the gradients of a CPU, and hardly a wait."""

import math
import warnings

import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.engine.callbacks import TrainingCallbackLocation as Where
from small_runs import configure
from small_scenes import write_disc

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
METHODS = ["raygauss", "instant-ngp-hardmine-bounded"]
LARGE = {
    "raygauss": {"training_window": 0, "sh_degree_interval": 0},
    METHODS[1]: {"merge_most": 1, "grid_blocks_first": False},
}
MOST_WAITS = {"raygauss": 0, METHODS[1]: 0}


def trainer_on(device, method, scene, output, **fields):
    config = configure(method, scene, output, steps=1000)
    config.machine.device_type = device
    for name, value in (LARGE[method] | {"exposure": "off"} | fields).items():
        setattr(config.pipeline.model, name, value)
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.pipeline.train()
    trainer._last_save = math.inf
    return trainer


def gradients(trainer, camera_or_rays, batch):
    """The loss and, by name, the gradients of a step on a given batch."""
    model, device = trainer.pipeline.model, trainer.pipeline.device
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    outputs = model(camera_or_rays.to(device))
    loss = sum(model.get_loss_dict(outputs, batch, {}).values())
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), {name: g.to_dense() if g.is_sparse else g for name, g in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_a_cpu(method, tmp_path, monkeypatch):
    scene = write_disc(tmp_path / "scene", side=64)
    fields = {} if method == "raygauss" else {"mining_rule": "off"}
    trainers = [trainer_on(device, method, scene, tmp_path / device, **fields) for device in ("cpu", DEVICE)]
    trainers[1].pipeline.model.load_state_dict(trainers[0].pipeline.model.state_dict())
    # The jitter along rays: each device draws its own.
    monkeypatch.setattr(torch, "rand_like", lambda tensor: torch.full_like(tensor, 0.5))
    step = trainers[0].pipeline.datamanager.next_train(0)
    (expected, wanted), (loss, found) = (gradients(trainer, *step) for trainer in trainers)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert found.keys() == wanted.keys()
    compared = 0
    for name, gradient in wanted.items():
        if float(gradient.norm()) > 0:
            assert float((found[name].cpu() - gradient).norm() / gradient.norm()) < 1e-3, name
            compared += 1
    assert compared > 4


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_and_hardly_waits(method, tmp_path):
    trainer = trainer_on(DEVICE, method, write_disc(tmp_path / "scene", side=64), tmp_path)
    losses, waits = [], []
    for step in range(1, 12):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if step > 3 else "default")
            try:
                for callback in trainer.callbacks:
                    callback.run_callback_at_location(step, Where.BEFORE_TRAIN_ITERATION)
                loss, _, _ = trainer.train_iteration(step)
                for callback in trainer.callbacks:
                    callback.run_callback_at_location(step, Where.AFTER_TRAIN_ITERATION)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        losses.append(loss.detach())
        waits.append([str(warning.message) for warning in said if "synchroniz" in str(warning.message)])
    losses = torch.stack(losses).tolist()
    assert all(map(math.isfinite, losses))
    assert min(losses[-3:]) < losses[0]
    assert max(map(len, waits)) <= MOST_WAITS[method], waits
