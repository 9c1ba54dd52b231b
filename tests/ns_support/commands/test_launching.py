import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from ns_support.commands.launching import prepare_launch, run_worker
from ns_support.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """Stands in for `nerfstudio.scripts.train`; its launcher raises what it is given."""

    def launch(error):
        raise error

    module = ModuleType("nerfstudio.scripts.train")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module._distributed_worker, module.launch = object(), launch
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_command_gets_our_worker_once(command):
    prepare_launch()
    launch = command.launch
    prepare_launch()
    assert command._distributed_worker is run_worker
    assert command.launch is launch


def test_a_users_error_in_a_process_ends_in_its_sentence(command):
    prepare_launch()
    trace = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File ...\n"
    with pytest.raises(UserError) as caught:
        command.launch(ProcessRaisedException(f"{trace}ns_support.errors.UserError: dt must be > 0, got 0.\n", 1, 7))
    assert caught.value.message == "dt must be > 0, got 0."
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError"):
        command.launch(ProcessRaisedException(f"{trace}ZeroDivisionError: division by zero\n", 1, 7))


def test_fewer_devices_than_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="num-devices is 2, but this machine has 1 CUDA devices"):
        run_worker(1, lambda *_: None, 2, 2, 0, "tcp://127.0.0.1:1", None, device_type="cuda")
