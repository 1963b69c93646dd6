"""Callbacks that end a run after two steps, tell of it, or send its process a signal."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

DONE = "SINGLE_CHANGES_DONE"
"""The variable with the path of a file that gets the number of steps of a run that reached its end."""


class TwoSteps(Callback):
    """Stops after two steps, and writes how many were done to the file of the variable `DONE`."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.completed_steps >= 2:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        Path(os.environ[DONE]).write_text(str(pl_module.completed_steps))


class Signalled(Callback):
    """Sends the own process a signal, once.

    Args:
        name: Of the signal.
        hook: In which hook.
        step: After how many completed steps.
    """

    def __init__(self, name: str, hook: str, step: int) -> None:
        self.number = signal.Signals[name]
        self.hook = hook
        self.step = step

    def _send(self, hook: str, pl_module: Any) -> None:
        if hook == self.hook and pl_module.completed_steps >= self.step:
            self.hook = ""
            os.kill(os.getpid(), self.number)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._send("setup", pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send("on_train_start", pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._send("on_train_batch_start", pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self._send("on_before_backward", pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._send("on_train_batch_end", pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._send("on_validation_batch_end", pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._send("on_save_checkpoint", pl_module)
