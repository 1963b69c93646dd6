"""The progress of a run on the terminal."""

import re
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.compat import shown_progress_bar

_BAR = "step {n_fmt}/{total_fmt} |{bar}| {desc}{remaining} left{postfix}"  # in 80 columns with all that is shown
_STEPS_BETWEEN_LINES = 10  # where there is no terminal
_ACCURACY = re.compile(r"val/(.+)/(?:avg@\d+|greedy)")


class RunProgress(TQDMProgressBar):
    """A bar over the RL steps of the run on a terminal, one line every ten steps elsewhere.

    Both show reward, validation accuracy, entropy, seconds per step, and the time left: the steps that are left at the
    mean pace of this process so far, validations and checkpoints included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terminal = sys.stdout.isatty()  # where Lightning's bar goes
        self._started = (monotonic(), 0)
        if not self.terminal:
            self.disable()

    @property
    def total_train_batches(self) -> int:
        return int(cast(AsymGRPOModule, self.trainer.lightning_module).total_steps)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        done = cast(AsymGRPOModule, trainer.lightning_module).completed_steps
        self._started = (monotonic(), done)
        if self.terminal:
            bar = self.train_progress_bar
            bar.reset(self.total_train_batches)
            bar.bar_format = _BAR
            bar.set_description_str("", refresh=False)
            bar.initial = bar.n = done
            bar.refresh()

    def announce(self, text: str) -> None:
        """Show on the bar what the run waits for, nothing if `text` is empty. Without a terminal this does nothing."""
        if self.terminal and shown_progress_bar(self) is not None:
            self.train_progress_bar.set_description_str(f"{text}, " if text else "")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Does nothing: Lightning would restart the bar here, but an endless stream has no epochs."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *args: Any) -> None:
        done = pl_module.completed_steps
        if self.terminal:
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
        elif trainer.is_global_zero and (done % _STEPS_BETWEEN_LINES == 0 or done == pl_module.total_steps):
            shown = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            started, first = self._started  # the pace since this process began to train, as tqdm shows it on the bar
            left = Tqdm.format_interval((monotonic() - started) / (done - first) * (pl_module.total_steps - done))
            print(f"step {done}/{pl_module.total_steps}  {shown}  left {left}", flush=True)

    def get_metrics(
        self, trainer: Trainer, pl_module: AsymGRPOModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {label: f"{value:.3f}" for label, value in shown_values(trainer).items()}

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: validation is one generate call per set, so a bar would stand at 0 and jump to 1."""
        return Tqdm(disable=True)


class BarValues(Callback):
    """Hands the values of the run's own bar to a bar of the user's, which shows what Lightning's `log` was given."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.progress_bar_metrics.update(shown_values(trainer))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.progress_bar_metrics.update(shown_values(trainer))


def shown_values(trainer: Trainer) -> dict[str, float]:
    """Reward, validation accuracies, entropy and seconds of the last step, as far as they are there, by their label."""
    values = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    sets = {match[1]: tag for tag in values if (match := _ACCURACY.fullmatch(tag))}
    accuracies = {"val" if len(sets) == 1 else name: tag for name, tag in sets.items()}
    places = {"reward": "reward/mean", **accuracies, "entropy": "actor/entropy", "s/step": "timing_s/step"}
    return {label: values[tag] for label, tag in places.items() if tag in values}


def with_one_bar(configured: Sequence[Callback], own: Sequence[Callback]) -> list[Callback]:
    """All callbacks of a run: those of its config and its own, whose bar gives way to a configured one."""
    if not any(isinstance(callback, ProgressBar) for callback in configured):
        return [*configured, *own]
    return [BarValues(), *configured, *(callback for callback in own if not isinstance(callback, RunProgress))]
