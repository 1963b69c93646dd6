"""Checkpoints by RL step."""

import re
from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.errors import UserError

_NAME = re.compile(r"step-(\d{8})\.ckpt")


class RunCheckpoint(Checkpoint):
    """Writes `<run_dir>/checkpoints/step-<RL steps>.ckpt` every n steps and at the end.

    Lightning's own ModelCheckpoint counts optimizer updates and warns about manual optimization; this one counts RL
    steps, and saves between steps, when the state is whole. A step that is validated is saved after its validation,
    so a resumed run neither repeats nor misses one.

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

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """A run that continues from an older checkpoint leaves the branch of the newer ones."""
        for step, path in list_checkpoints(checkpoint_folder(trainer.default_root_dir)):
            if step > pl_module.completed_steps and trainer.is_global_zero:
                path.rename(path.with_name(f"{path.name}.abandoned"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.validation_due(pl_module.completed_steps):
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and pl_module.completed_steps > 0:
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: Trainer, pl_module: Any) -> None:
        step = pl_module.completed_steps
        if step % self.every_n_steps and step != pl_module.total_steps:
            return
        started = perf_counter()
        folder = checkpoint_folder(trainer.default_root_dir)
        trainer.save_checkpoint(folder / f"step-{step:08d}.ckpt")
        if self.keep is not None and trainer.is_global_zero:
            for _, old in list_checkpoints(folder)[: -self.keep]:
                old.unlink(missing_ok=True)
        pl_module.write({"timing_s/save_checkpoint": perf_counter() - started})


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


def completed_steps_in(path: Path) -> int:
    """RL steps completed when a checkpoint was written.

    Raises:
        UserError: The file is no checkpoint of this program, or it is damaged.
    """
    try:
        # Mapped, so that only the directory of the file is read and not its weights.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(state["asymgrpo"]["completed_steps"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"--ckpt_path {path}: not a checkpoint of asymgrpo, or damaged ({type(error).__name__})."
        ) from error
