"""Training progress: a single updated line in a terminal, or a plain line at intervals in a file."""

from __future__ import annotations

import math
from collections import deque
from time import monotonic
from typing import Any

from nerfstudio.configs.base_config import LocalWriterConfig
from nerfstudio.utils import writer
from nerfstudio.utils.writer import LocalWriter
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ns_support.concurrency.processes import Processes
from ns_support.terminal import TERMINAL

_PLAIN_EVERY = 30.0
"""Interval of lines without a terminal (s)."""
_UNTIMED = 2
"""First steps, which compile kernels and fill caches: they are not used to estimate the remaining time."""
_WINDOW = 60.0
"""The remaining time is estimated from the steps of this period (s)."""
_SMOOTHED = 20
"""Number of logged errors, each of a small part of the images, that are averaged."""
_NARROW = 76
"""Terminal width below which no bar is shown (columns)."""


class TrainingProgress(LocalWriter):
    """Replaces nerfstudio's table of the latest values, which is reprinted with control codes.

    Args:
        first: the next training step.
        steps: number of remaining steps.
        console: output; default: the terminal.
    """

    def __init__(self, first: int, steps: int, console: Console = TERMINAL) -> None:
        super().__init__(LocalWriterConfig(enable=True))
        self.first, self.end = first, first + steps
        self.gaussians: int | None = None
        self._errors: deque[float] = deque(maxlen=_SMOOTHED)
        self._times: deque[tuple[float, int]] = deque()
        self._console, self._said = console, monotonic()
        self._progress: Progress | None = None
        self._over = False

    @property
    def psnr(self) -> float | None:
        """PSNR in training (dB) of the mean of the latest squared errors; None before the first.

        A window that shows nothing but background may be without any error: a mean of decibels would be infinite.
        """
        error = sum(self._errors) / max(len(self._errors), 1)
        return -10.0 * math.log10(error) if error > 0 else None

    def write_stats_log(self, step: int) -> None:
        """Called by nerfstudio after each step, with that step's events in its storage."""
        for event in writer.EVENT_STORAGE:
            if event["name"] == "Train Metrics Dict":
                self._take(event["event"])
        self.follow(step)

    def _take(self, metrics: dict[str, Any]) -> None:
        psnr = float(metrics.get("psnr", float("nan")))
        if psnr == psnr:
            self._errors.append(10.0 ** (-psnr / 10.0))
        if "gaussian_count" in metrics:
            self.gaussians = int(metrics["gaussian_count"])

    def follow(self, step: int) -> None:
        """Record that a step is done, and show it."""
        if self._over:  # nerfstudio writes once more after the end, with an invalid step
            return
        now = monotonic()
        if step >= self.first + _UNTIMED - 1:
            self._times.append((now, step))
        while len(self._times) > 2 and self._times[1][0] < now - _WINDOW:
            self._times.popleft()
        if self._console.is_terminal:
            self._show(step)
        elif now - self._said >= _PLAIN_EVERY:
            self._said = now
            self._console.print(self.line(step), markup=False, soft_wrap=True)

    def line(self, step: int) -> str:
        """The state of training after a step, in one line of fewer than 60 characters."""
        return f"step {step + 1:,} of {self.end:,}: {', '.join(self.facts(step))}"

    def facts(self, step: int) -> list[str]:
        """PSNR, number of Gaussians and remaining time, as far as they are known."""
        left = self.seconds_left(step)
        return [
            *([] if self.psnr is None else [f"{self.psnr:.1f} dB"]),
            *([] if self.gaussians is None else [f"{self.gaussians:,} Gaussians"]),
            *([] if left is None else [f"{duration(left)} left"]),
        ]

    def seconds_left(self, step: int) -> float | None:
        """Remaining time at the pace of the latest minute; None before any step without compilation."""
        if len(self._times) < 2:
            return None
        (begin, first), (end, last) = self._times[0], self._times[-1]
        return (self.end - 1 - step) * (end - begin) / max(last - first, 1)

    def _show(self, step: int) -> None:
        if self._progress is None:
            bar: list[ProgressColumn] = [BarColumn(16)] if self._console.width >= _NARROW else []
            columns = [TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), *bar, _Facts()]
            self._progress = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._progress.add_task("", total=self.end, completed=self.first, facts="")
            self._progress.start()
        # Called after each step; the display is redrawn only four times a second.
        self._progress.update(self._progress.task_ids[0], completed=step + 1, facts="  ".join(self.facts(step)))

    def stop(self) -> None:
        """Remove the line for good; later output takes its place."""
        self._over = True
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Facts(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"], no_wrap=True, overflow="ellipsis")


def duration(seconds: float) -> str:
    """A time in at most two units, e.g. "1 h 20 min", "12 min", "45 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{hours} h {minutes} min" if days == 0 else f"{days} d {hours} h"


class StepProgress:
    """Progress of steps one after the other, each with a number of things to do: a bar, or plain lines at intervals.

    A context manager: at its end the bar disappears.

    Args:
        console: output; default: the terminal.
    """

    def __init__(self, console: Console = TERMINAL) -> None:
        self._console, self._title, self._total = console, "", 0
        self._said = monotonic()
        self._shows = console.is_terminal and Processes.current().rank == 0
        columns = [
            TextColumn("{task.description}"),
            BarColumn(16),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        ]
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)

    def __enter__(self) -> StepProgress:
        if self._shows:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows:  # or else rich prints an empty line
            self._progress.stop()

    def begin(self, title: str, total: int) -> None:
        """Start the next step."""
        self._title, self._total = title, total
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(title, total=total)

    def follow(self, done: int) -> None:
        """Record how many things of the step are done."""
        done = min(done, self._total)
        for task in self._progress.task_ids:
            self._progress.update(task, completed=done)
        if not self._console.is_terminal and monotonic() - self._said >= _PLAIN_EVERY:
            self._said = monotonic()
            self._console.print(f"{self._title}: {done:,} of {self._total:,}", markup=False, soft_wrap=True)


def install(progress: TrainingProgress) -> None:
    """Replace nerfstudio's own table by this writer; TensorBoard and other writers are kept."""
    others = [w for w in writer.EVENT_WRITERS if not isinstance(w, LocalWriter)]
    writer.EVENT_WRITERS[:] = [*others, progress]
    writer.GLOBAL_BUFFER["max_iter"] = progress.end
