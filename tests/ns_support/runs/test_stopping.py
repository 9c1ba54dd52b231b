import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ns_support.runs.stopping import pass_signals_on, stop_signals, stop_signals_of_worker

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(number, capfd):
    asked = []
    before = signal.getsignal(number)

    def twice():
        with stop_signals(lambda: asked.append(1) or True):
            os.kill(os.getpid(), number)
            assert asked == [1]
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert asked == [1]
    assert signal.getsignal(number) is before
    assert "Stopping after this step and saving" in capfd.readouterr().err


def test_nothing_is_said_where_nothing_is_waited_for(capfd):
    with stop_signals(lambda: False):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_other_threads_get_no_signals():
    found = []

    def work():
        with stop_signals(lambda: True):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_a_worker_stops_when_it_is_told_and_not_by_the_terminal():
    asked = []
    with stop_signals_of_worker(lambda: asked.append(1) or True):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == []
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked == [1]


def test_without_children_a_signal_interrupts_at_once():
    def once():
        with pass_signals_on():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        once()


PARENT = """
import multiprocessing, os, signal, sys, time
from ns_support.runs.stopping import pass_signals_on, stop_signals_of_worker

def work():
    stopped = []
    with stop_signals_of_worker(lambda: stopped.append(1) or True):
        os.write(1, b"ready\\n")
        for _ in range(1000):
            if stopped:
                os.write(1, b"saved\\n")
                return
            time.sleep(0.01)

if __name__ == "__main__":
    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    with pass_signals_on() as was_stopped:
        for child in children:
            child.start()
        for child in children:
            child.join()
    sys.exit(3 if was_stopped() else 4)
"""


def test_a_command_passes_its_signal_on_to_all_processes(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    assert [parent.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    parent.send_signal(signal.SIGTERM)
    assert parent.stdout.read() == "saved\n" * 2
    assert parent.wait(timeout=20) == 3
