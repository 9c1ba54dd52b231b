import multiprocessing
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
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


def _ports():
    """The addresses that this process listens on, as in /proc/net/tcp and tcp6."""
    own = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.add(words[1].split(":")[0])
    return found


def _listening(meeting, rank):
    def work(local_rank, world_size, config, global_rank):
        torch.distributed.barrier()
        Path(f"{meeting}.{rank}").write_text(" ".join(sorted(_ports())))
        torch.distributed.barrier()

    torch.set_num_threads(1)
    run_worker(rank, work, 2, 2, 0, Path(meeting).as_uri(), None, device_type="cpu")
    os._exit(0)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into Linux's /proc")
def test_processes_listen_on_this_machine_only(tmp_path):
    """Each in a process of its own, as `ns-train` starts them."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_listening, args=(str(tmp_path / "meeting"), rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    addresses = {word for rank in range(2) for word in Path(f"{tmp_path / 'meeting'}.{rank}").read_text().split()}
    assert addresses  # it does see them
    assert addresses <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1


def test_processes_meet_in_a_file(command):
    given = {}
    command.launch = lambda **kwargs: given.update(kwargs)
    prepare_launch()
    command.launch(num_devices_per_machine=2, num_machines=1, dist_url="auto")
    assert given["dist_url"].startswith("file://")
    command.launch(num_devices_per_machine=2, num_machines=2, dist_url="tcp://10.0.0.1:7000")
    assert given["dist_url"] == "tcp://10.0.0.1:7000"


@pytest.mark.parametrize(
    ("machines", "rank", "address", "said"),
    [
        (2, 0, "auto", "--machine.dist-url tcp://HOST:PORT"),
        (2, 2, "tcp://10.0.0.1:7000", "machine-rank is 2, but with --machine.num-machines 2 the ranks are 0 to 1"),
        (1, 1, "auto", "machine-rank is 1, but with --machine.num-machines 1 the ranks are 0 to 0"),
    ],
)
def test_machines_that_could_never_meet(command, machines, rank, address, said):
    command.launch = lambda **kwargs: pytest.fail("was started")
    prepare_launch()
    with pytest.raises(UserError, match=said):
        command.launch(num_devices_per_machine=2, num_machines=machines, machine_rank=rank, dist_url=address)
