"""What a run says on the terminal while it trains."""

import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_SHOWN = {"reward": "reward/mean", "entropy": "actor/entropy", "s/step": "timing_s/step"}


class RunProgress(TQDMProgressBar):
    """A bar over the RL steps of the run on a terminal, one line every few steps elsewhere.

    Args:
        every_n_steps: RL steps between lines where there is no terminal.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.terminal = sys.stderr.isatty()
        if not self.terminal:
            self.disable()

    @property
    def total_train_batches(self) -> int:
        module: Any = self.trainer.lightning_module
        return int(module.total_steps)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        if not self.terminal:
            return
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.set_description("RL steps")
        self.train_progress_bar.initial = trainer.lightning_module.completed_steps
        self.train_progress_bar.n = trainer.lightning_module.completed_steps
        self.train_progress_bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Lightning would start the bar anew here; an epoch means nothing for an endless stream."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        done = pl_module.completed_steps
        if self.terminal:
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
        elif trainer.is_global_zero and (done % self.every_n_steps == 0 or done == pl_module.total_steps):
            shown = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            print(f"step {done}/{pl_module.total_steps}  {shown}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        values = trainer.callback_metrics
        shown = {label: f"{float(values[tag]):.3f}" for label, tag in _SHOWN.items() if tag in values}
        for tag in values:
            if tag.startswith("val/"):
                shown[tag.removeprefix("val/")] = f"{float(values[tag]):.3f}"
        return dict(shown)

    def init_validation_tqdm(self) -> Tqdm:
        """Validation is one generate call per set: a bar over it would stand at 0 and jump to 1."""
        return Tqdm(disable=True)
