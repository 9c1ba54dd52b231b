"""Steps per second in nerfstudio's logs, in addition to the rays per second that its trainer writes.

Like these, it is a mean over the latest steps, written at each step through nerfstudio's writer, for TensorBoard and
wandb alike. A step is the time between the two callbacks: without evaluation, checkpoints and the viewer.
"""

from __future__ import annotations

from time import perf_counter

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer

STEPS_PER_SECOND = "Train Steps / Sec"
"""The name in the logs (1/s); nerfstudio's own are "Train Rays / Sec" and "Train Iter (time)" (s)."""
_NOT_COUNTED = 2
"""First steps of a run, which compile kernels and fill caches. nerfstudio excludes them from rays per second too."""


class StepTimer:
    """Times the steps of one training.

    Example:
        >>> timer = StepTimer()
        >>> callbacks = [timer.before(), *others, timer.after()]  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._seen = 0

    def before(self) -> TrainingCallback:
        """The callback that must come first."""
        return TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._start)

    def after(self) -> TrainingCallback:
        """The callback that must come last."""
        return TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._stop)

    def _start(self, step: int) -> None:
        self._begin = perf_counter()

    def _stop(self, step: int) -> None:
        self._seen += 1
        if self._begin is None or self._seen <= _NOT_COUNTED or not writer.is_initialized():
            return
        # An average of rates, as nerfstudio's rays per second, so that their quotient is the number of rays per step.
        rate = 1.0 / max(perf_counter() - self._begin, 1e-9)
        writer.put_time(name=STEPS_PER_SECOND, duration=rate, step=step, avg_over_steps=True)
