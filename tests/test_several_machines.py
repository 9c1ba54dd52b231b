"""Two `ns-train` that meet over TCP on this machine, each as if it were a machine of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_scenes import write_disc

TESTS = Path(__file__).parent
OPTIONS = (
    *("--machine.device-type", "cpu", "--machine.num-machines", "2"),
    *("--experiment-name", "test", "--timestamp", "run", "--vis", "tensorboard", "--max-num-iterations", "6"),
    *("--pipeline.model.num-random", "300", "--pipeline.model.step-size", "0.02"),
    *("--pipeline.model.training-window", "12"),
)
LONGEST = 900
"""Seconds that the two may take: nerfstudio is imported in four processes, and kernels may have to be compiled."""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_two_machines_end_with_equal_models(tmp_path):
    scene = tmp_path / "scene"
    scene.mkdir()
    write_disc(scene)
    # Whatever this machine's name resolves to.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if any(name == "lo" for _, name in socket.if_nameindex()) else {}
    environment = (
        os.environ | loopback | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    )
    address = f"tcp://127.0.0.1:{free_port()}"
    machines = []
    for rank in range(2):
        place = ("--machine.machine-rank", str(rank), "--machine.dist-url", address)
        folders = ("--data", str(scene), "--output-dir", str(tmp_path / f"output_{rank}"))
        words = [str(TESTS / "one_machine.py"), str(tmp_path / f"digests_{rank}"), "raygauss", *place, *OPTIONS]
        with (tmp_path / f"log_{rank}").open("w") as log:
            machines.append(
                subprocess.Popen([sys.executable, *words, *folders], env=environment, stdout=log, stderr=log)
            )
    latest = time.monotonic() + LONGEST
    codes = [None, None]
    try:
        while None in codes and not any(codes):  # if one fails, the other would wait for it
            assert time.monotonic() < latest, "the machines wait for one another"
            time.sleep(0.2)
            codes = [machine.poll() for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                machine.terminate()  # also ends the process that it started
                machine.wait()
    logs = [(tmp_path / f"log_{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(logs)

    assert f"Machine 1 of 2 waits at {address}" in " ".join(logs[1].split())
    assert "Training Finished: 6 steps" in logs[0]
    assert "Training Finished" not in logs[1]  # rank 0 reports for all
    first, second = [(tmp_path / f"digests_{rank}").read_text().split() for rank in range(2)]
    assert first == second
    assert first[0] != first[1]
    checkpoints = [list((tmp_path / f"output_{rank}").rglob("*.ckpt")) for rank in range(2)]
    assert [len(found) for found in checkpoints] == [1, 0]
