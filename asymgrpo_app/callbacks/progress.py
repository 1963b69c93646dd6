"""The progress of a run on the terminal."""

import re
import sys
from time import monotonic
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.compat import shown_progress_bar

_BAR = "step {n_fmt}/{total_fmt} |{bar}| {desc}{remaining} left{postfix}"  # in 80 columns with all that is shown
_ACCURACY = re.compile(r"val/(.+)/(?:avg@\d+|greedy)")


class RunProgress(TQDMProgressBar):
    """A bar over the RL steps of the run on a terminal, one line every few steps elsewhere.

    Both show reward, validation accuracy, entropy, seconds per step, and the time left: the steps that are left at the
    mean pace of this process so far, validations and checkpoints included.

    Args:
        every_n_steps: RL steps between lines where there is no terminal.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.terminal = sys.stdout.isatty()  # where Lightning's bar goes
        self._started = (monotonic(), 0)
        if not self.terminal:
            self.disable()

    @property
    def total_train_batches(self) -> int:
        module = cast(AsymGRPOModule, self.trainer.lightning_module)
        return int(module.total_steps)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        module = cast(AsymGRPOModule, trainer.lightning_module)
        done = module.completed_steps
        self._started = (monotonic(), done)
        if not self.terminal:
            return
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.bar_format = _BAR
        self.train_progress_bar.set_description_str("", refresh=False)
        self.train_progress_bar.initial = done
        self.train_progress_bar.n = done
        self.train_progress_bar.refresh()

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
        elif trainer.is_global_zero and (done % self.every_n_steps == 0 or done == pl_module.total_steps):
            shown = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            left = Tqdm.format_interval(self._seconds_left(done, pl_module.total_steps))
            print(f"step {done}/{pl_module.total_steps}  {shown}  left {left}", flush=True)

    def get_metrics(
        self, trainer: Trainer, pl_module: AsymGRPOModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        sets = {match[1]: tag for tag in values if (match := _ACCURACY.fullmatch(tag))}
        accuracies = {"val" if len(sets) == 1 else name: tag for name, tag in sets.items()}
        places = {"reward": "reward/mean", **accuracies, "entropy": "actor/entropy", "s/step": "timing_s/step"}
        return {label: f"{values[tag]:.3f}" for label, tag in places.items() if tag in values}

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: validation is one generate call per set, so a bar would stand at 0 and jump to 1."""
        return Tqdm(disable=True)

    def _seconds_left(self, done: int, total: int) -> float:
        """Seconds left at the mean pace since this process began to train, as tqdm shows it on the bar."""
        started, first = self._started
        return (monotonic() - started) / (done - first) * (total - done)
