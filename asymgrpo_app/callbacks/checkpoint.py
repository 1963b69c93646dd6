"""Checkpoints by RL step."""

import re
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from asymgrpo_app.errors import UserError

_NAME = re.compile(r"step-(\d{8})\.ckpt")


class RunCheckpoint(Checkpoint):
    """Writes `<run_dir>/checkpoints/step-<RL steps>.ckpt` every n steps and at the end.

    Lightning's own ModelCheckpoint counts optimizer updates and warns about manual optimization; this one counts RL
    steps, and saves between steps, when the state is whole.

    Args:
        every_n_steps: RL steps between checkpoints, at least 1.
        keep: How many of the newest checkpoints to keep, at least 1; null keeps all.
    """

    def __init__(self, every_n_steps: int = 50, keep: int | None = 2) -> None:
        if every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}.")
        if keep is not None and keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1 or null, got {keep}.")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.newest: Path | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = pl_module.completed_steps
        if step % self.every_n_steps == 0 or step == pl_module.total_steps:
            started = perf_counter()
            self._save(trainer, step)
            pl_module.publish({"timing_s/save_checkpoint": perf_counter() - started})

    def _save(self, trainer: Trainer, step: int) -> None:
        folder = checkpoint_folder(trainer.default_root_dir)
        self.newest = folder / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(self.newest)
        if self.keep is not None and trainer.is_global_zero:
            for _, old in list_checkpoints(folder)[: -self.keep]:
                old.unlink(missing_ok=True)


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir) / "checkpoints"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a run with their RL step, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint of the highest step, or None if there is none yet."""
    found = list_checkpoints(checkpoint_folder(run_dir))
    return found[-1][1] if found else None


def step_of(path: str | Path) -> int:
    """RL steps completed when a checkpoint of ours was written, from its name; 0 for another name."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match[1]) if match else 0
