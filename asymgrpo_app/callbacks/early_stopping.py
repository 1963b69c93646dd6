"""Lets Lightning's EarlyStopping begin with the first step."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class EarlyStoppingStart(Callback):
    """Keeps EarlyStopping from failing in the validation before the first step, which has no metric of a step yet.

    That validation does not count for a `monitor` such as reward/mean. From the first step on `strict` holds as set.
    """

    def __init__(self) -> None:
        self._lenient: list[tuple[EarlyStopping, bool, bool]] = []

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, EarlyStopping) and not callback.monitor.startswith("val/"):
                self._lenient.append((callback, callback.strict, callback.verbose))
                callback.strict = callback.verbose = False

    def on_train_batch_end(self, *_: Any) -> None:
        for callback, strict, verbose in self._lenient:
            callback.strict, callback.verbose = strict, verbose
        self._lenient.clear()
