import io
import math

import pytest
import torch
from rich.console import Console

from ns_support.runs import progress as module
from ns_support.runs.progress import TrainingProgress, duration, install, writer


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)`: time goes on by so much."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def log(progress, step, **metrics):
    writer.EVENT_STORAGE[:] = [{"name": "Train Metrics Dict", "event": metrics, "step": step}]
    progress.write_stats_log(step)
    writer.EVENT_STORAGE.clear()


def console(terminal, width=60, **options):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, **options)


def test_the_time_of_compilation_is_not_foretold(clock):
    progress = TrainingProgress(200, 50, console(False))
    clock(40.0)  # compiles
    progress.follow(200)
    assert progress.seconds_left(200) is None
    for step in range(201, 211):
        clock(0.5)
        progress.follow(step)
    assert progress.seconds_left(210) == pytest.approx(0.5 * 39)


def test_the_pace_is_that_of_the_latest_minute(clock):
    progress = TrainingProgress(0, 1000, console(False))
    for step, seconds in enumerate([0.1] * 300 + [1.0] * 100):
        clock(seconds)
        progress.follow(step)
    assert progress.seconds_left(399) == pytest.approx(600.0, rel=0.05)


def test_a_line_in_a_file_now_and_then(clock):
    out = console(False)
    progress = TrainingProgress(0, 3000, out)
    for step in range(800):
        clock(0.125)
        log(progress, step, psnr=torch.tensor(30.0), gaussian_count=torch.tensor(45_210.0))
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3  # one in 30 s
    assert lines[-1] == "step 720 of 3,000: 30.0 dB, 45,210 Gaussians, 5 min left"
    assert "\x1b" not in out.file.getvalue()
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("width", [60, 120])
def test_one_line_in_a_terminal(clock, width):
    out = console(True, width, color_system=None)
    progress = TrainingProgress(0, 30_000, out)
    for step in range(20_000, 20_030):
        clock(0.5)
        log(progress, step, psnr=31.26, gaussian_count=1_245_210)
    progress._progress.refresh()
    shown = out.file.getvalue().replace("\x1b[2K", "\n").splitlines()[-1].replace("\r", "")
    assert "20,030/30,000" in shown
    assert "31.3 dB  1,245,210 Gaussians  1 h 23 min left" in shown
    assert len(shown.rstrip()) <= width
    progress.stop()
    length = len(out.file.getvalue())
    log(progress, 30_000)  # as nerfstudio does when training is over
    assert len(out.file.getvalue()) == length


def test_colors_are_left_out_where_they_are_not_wanted(clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = console(True, 120)
    progress = TrainingProgress(0, 100, out)
    log(progress, 5, psnr=31.26)
    progress.stop()
    assert "\x1b[3" not in out.file.getvalue()  # foreground colours


def test_a_psnr_that_is_not_a_number_is_left_out(clock):
    progress = TrainingProgress(0, 10, console(False))
    log(progress, 0, psnr=float("nan"))
    assert progress.psnr is None
    log(progress, 1, psnr=20.0)
    log(progress, 2, psnr=22.0)
    # The mean of the errors 0.01 and 0.01 * 10^-0.2.
    assert progress.psnr == pytest.approx(20.8859, abs=1e-4)


def test_windows_without_an_error_do_not_hide_the_others(clock):
    progress = TrainingProgress(0, 10, console(False))
    log(progress, 0, psnr=float("inf"))
    assert progress.psnr is None
    log(progress, 1, psnr=30.0)
    assert progress.psnr == pytest.approx(30.0 + 10 * math.log10(2))


def test_it_takes_the_place_of_nerfstudios_table(monkeypatch):
    monkeypatch.setattr(writer, "EVENT_WRITERS", [writer.LocalWriter(module.LocalWriterConfig()), "tensorboard"])
    monkeypatch.setattr(writer, "GLOBAL_BUFFER", {"max_iter": 50})
    progress = TrainingProgress(200, 50, console(False))
    install(progress)
    assert ["tensorboard", progress] == writer.EVENT_WRITERS
    assert writer.GLOBAL_BUFFER["max_iter"] == 250


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min"), (4800, "1 h 20 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
