"""Steps per second in nerfstudio's logs, beside the rays per second that its trainer writes.

Like those, a mean over the latest steps, written each step, through nerfstudio's writer: TensorBoard and wandb get it
alike. A step is what lies between the two callbacks: neither evaluation, nor checkpoints, nor the viewer.
"""

from __future__ import annotations

from time import perf_counter

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer

STEPS_PER_SECOND = "Train Steps / Sec"
"""The name in the logs (1/s); nerfstudio's own are "Train Rays / Sec" and "Train Iter (time)" (s)."""
_NOT_COUNTED = 2
"""Steps of a run that compile kernels and fill caches. nerfstudio leaves them out of the rays per second too."""


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
        """To be called first of all callbacks."""
        return TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._start)

    def after(self) -> TrainingCallback:
        """To be called last of all callbacks."""
        return TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self._stop)

    def _start(self, step: int) -> None:
        self._begin = perf_counter()

    def _stop(self, step: int) -> None:
        self._seen += 1
        if self._begin is None or self._seen <= _NOT_COUNTED or not writer.is_initialized():
            return
        # An average of rates, as nerfstudio's is of the rays': their quotient is then the rays of a step.
        rate = 1.0 / max(perf_counter() - self._begin, 1e-9)
        writer.put_time(name=STEPS_PER_SECOND, duration=rate, step=step, avg_over_steps=True)
