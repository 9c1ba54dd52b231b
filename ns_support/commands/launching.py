"""Make `ns-train --machine.num-devices N` work on any machine.

nerfstudio 1.1.5 chooses gloo for devices other than CUDA, and then asserts in each process that CUDA is available. It
also leaves every process on device 0, lets each use all cores, listens on every interface, and drops a connection after
half an hour of waiting, for which pausing the training in the viewer is enough.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nerfstudio.utils import comms
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from ns_support.concurrency.threads import share_threads
from ns_support.errors import UserError
from ns_support.runs.stopping import INTERRUPTED, pass_signals_on
from ns_support.terminal import say

_COMMAND = "nerfstudio.scripts.train"
_PATIENCE = timedelta(days=7)
"""How long a process waits for another. If one dies, the others are ended at once, without this delay."""


def prepare_launch() -> None:
    """Replace the functions with which `ns-train` starts processes; does nothing outside of `ns-train`.

    Must be called from a method's configuration, which `ns-train` uses between reading its command line and starting
    processes. An import would be too early: plugins are imported before `ns-train`'s own functions are defined.
    """
    for module in _commands():
        if module._distributed_worker is not run_worker:
            module._distributed_worker = run_worker
            module.launch = _explaining(module.launch)


def run_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_devices_per_machine: int,
    machine_rank: int,
    dist_url: str,
    config: Any,
    timeout: timedelta = _PATIENCE,
    device_type: str = "cuda",
) -> None:
    """Join the process group, train, leave. Replaces nerfstudio's `_distributed_worker`.

    Args:
        local_rank: rank among the processes of this machine.
        main_func: called as `main_func(local_rank, world_size, config, global_rank)`.
        world_size: number of processes on all machines.
        num_devices_per_machine: number of processes on this machine.
        machine_rank: rank of this machine.
        dist_url: rendezvous of the processes.
        config: for `main_func`.
        timeout: nerfstudio's, not used: see `_PATIENCE`.
        device_type: "cuda" for NCCL, anything else for gloo.

    Raises:
        UserError: there are fewer CUDA devices than processes.
    """
    if device_type == "cuda":
        if torch.cuda.device_count() < num_devices_per_machine:
            raise UserError(
                f"--machine.num-devices is {num_devices_per_machine}, but this machine has "
                f"{torch.cuda.device_count()} CUDA devices. Ask for fewer, or for --machine.device-type cpu."
            )
        torch.cuda.set_device(local_rank)
    share_threads(num_devices_per_machine)
    if num_devices_per_machine == world_size:
        _listen_on_this_machine_only()
    elif local_rank == 0:
        machines = world_size // num_devices_per_machine
        say(f"Machine {machine_rank} of {machines} waits at {dist_url} for the others (the first is machine 0).")
    rank = machine_rank * num_devices_per_machine + local_rank
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=rank,
        timeout=_PATIENCE,
    )
    for first in range(0, world_size, num_devices_per_machine):
        group = dist.new_group(list(range(first, first + num_devices_per_machine)), timeout=_PATIENCE)
        if first == rank - local_rank:
            comms.LOCAL_PROCESS_GROUP = group
    main_func(local_rank, world_size, config, rank)
    # No barrier: rank 0 may serve the viewer for hours.
    dist.destroy_process_group()


def _listen_on_this_machine_only() -> None:
    """Let gloo use the loopback interface, unless the environment names another; it may have any name elsewhere."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _commands() -> Iterator[Any]:
    """`ns-train`'s module, under all names that it can be loaded as."""
    for module in (sys.modules.get(_COMMAND), sys.modules.get("__main__")):
        spec = getattr(module, "__spec__", None)
        if module is not None and spec is not None and spec.name == _COMMAND:
            yield module


def _explaining(launch: Callable[..., None]) -> Callable[..., None]:
    """The launcher, with errors and signals reported in one sentence.

    A user error in one of several processes is reported as with a single process. A second signal, or one that arrives
    before training has begun, ends the command at once.
    """
    name = f"{UserError.__module__}.{UserError.__qualname__}: "

    def explained(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("num_devices_per_machine", 0) * kwargs.get("num_machines", 1) == 1:
            launch(*args, **kwargs | {"main_func": functools.partial(_without_traceback, kwargs["main_func"])})
            return
        _check_machines(kwargs.get("num_machines", 1), kwargs.get("machine_rank", 0), kwargs.get("dist_url", "auto"))
        with pass_signals_on() as was_stopped, tempfile.TemporaryDirectory(prefix="raygauss-hardmine-") as folder:
            if kwargs.get("num_machines", 1) == 1 and kwargs.get("dist_url") == "auto":
                # A file, as a TCP store listens on every interface of the machine.
                kwargs["dist_url"] = (Path(folder) / "meeting").as_uri()
            try:
                launch(*args, **kwargs)
            except ProcessRaisedException as error:
                _, found, sentence = error.msg.rpartition(name)
                if not found:
                    raise
                raise UserError(sentence.strip()) from None
            except ProcessExitedException:
                if not was_stopped():
                    raise
                raise SystemExit(INTERRUPTED) from None

    return explained


def _check_machines(num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Reject what would end in an assertion of nerfstudio's, or in machines that wait for one another for ever.

    Raises:
        UserError: there are several machines, and no address at which they meet or no machine of this rank.
    """
    if not 0 <= machine_rank < num_machines:
        raise UserError(
            f"--machine.machine-rank is {machine_rank}, but with --machine.num-machines {num_machines} the ranks are 0 "
            f"to {num_machines - 1}, each on one machine."
        )
    if num_machines > 1 and dist_url == "auto":
        raise UserError(
            "Several machines need an address to meet at, the same on each: --machine.dist-url tcp://HOST:PORT, where "
            "HOST is the machine of rank 0."
        )


def _without_traceback(main_func: Callable[..., Any], **kwargs: Any) -> Any:
    """Train in this process; an interruption is reported in one word, where nerfstudio prints a traceback."""
    try:
        return main_func(**kwargs)
    except KeyboardInterrupt:
        say("Interrupted.")
        raise SystemExit(INTERRUPTED) from None
