"""Checkpoints by RL step."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.callbacks.event_log import begin_at, force_to_disk
from asymgrpo_app.checkpoints.files import Label
from asymgrpo_app.checkpoints.folder import (
    BestCheckpoints,
    checkpoint_path,
    labels,
    list_checkpoints,
    obsolete,
    reason,
    set_aside,
    sweep,
)
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.checkpoints.shards import remove_checkpoint
from asymgrpo_app.errors import RunError, UserError, at_least_1
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import on_first_rank
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.runtime.console import say

_MOST_FAILURES = 3  # saves that fail one after the other; then the run stops


class RunCheckpoint(Checkpoint):
    """Writes the checkpoint `<run_dir>/checkpoints/step-<RL steps>.ckpt` every n steps and at the end.

    Lightning's own ModelCheckpoint counts optimizer updates and warns about manual optimization; this callback counts
    RL steps, and saves between steps, when the state is whole. A step that is validated is saved after its validation,
    so a resumed run neither repeats nor misses a validation.

    If a callback stops the run early (`trainer.should_stop`) on any rank, all ranks stop after the same step, and that
    step is saved.

    If a checkpoint cannot be written, the older ones stay as they are and training goes on; the run stops if that
    happens three times in a row, or with the last checkpoint.

    Args:
        every_n_steps: RL steps between checkpoints, at least 1.
        keep: How many of the newest checkpoints to keep, at least 1; null keeps all.
        best: Checkpoints to keep because of a validation metric; null: none.
        layout: `full`: one file, gathered and written by the first process. `sharded`, for trainer.strategy fsdp2:
            every process writes its own part, into a folder beside the file. A run resumes from either with any number
            of processes.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        keep: int | None = 2,
        best: BestCheckpoints | None = None,
        layout: Literal["full", "sharded"] = "full",
    ) -> None:
        at_least_1("checkpoint.every_n_steps", every_n_steps)
        if keep is not None and keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1 or null, got {keep}.")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.best = best
        self.layout = layout
        self._saved: tuple[int, bool] | None = None  # the newest saved step, and whether its validation is due
        self._failures = 0  # in a row
        self._validated = Label(0)  # the newest validation of this process

    def setup(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        """Have all checkpoints of the trainer written by `WholeCheckpointIO`."""
        if not isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO | WholeCheckpointIO):
            raise UserError(
                f"trainer.plugins has {type(trainer.strategy.checkpoint_io).__name__}, but checkpoints are written by "
                "asymgrpo's own: leave it out."
            )
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
        if isinstance(trainer.strategy, FSDP2Strategy):
            trainer.strategy.sharded_checkpoints = self.layout == "sharded"

    def on_load_checkpoint(self, trainer: Trainer, pl_module: AsymGRPOModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["asymgrpo"]
        self._saved = (int(state["completed_steps"]), bool(state.get("validation_pending", False)))

    def on_fit_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        """Tidy up after a process that was killed; newer checkpoints are set aside, newer events are replaced."""
        on_first_rank(trainer, lambda: _begin(trainer, pl_module.completed_steps))
        _agree_on_stop(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        _agree_on_stop(trainer)

    # ---- when to save ----

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        _agree_on_stop(trainer)
        # Lightning validates before it stops, too.
        validated_next = pl_module.validation_due(pl_module.completed_steps) or (
            trainer.should_stop and any(trainer.num_val_batches)
        )
        if not validated_next and (trainer.should_stop or self._due(pl_module)):
            self.save(trainer, pl_module, Label(pl_module.completed_steps))

    def on_validation_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        _agree_on_stop(trainer)
        if pl_module.completed_steps == 0:
            return
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("val/")}
        label = self._validated = Label(pl_module.completed_steps, values)
        if trainer.should_stop or self._due(pl_module) or self._among_the_best(trainer, label):
            self.save(trainer, pl_module, label)

    def _due(self, pl_module: AsymGRPOModule) -> bool:
        step: int = pl_module.completed_steps
        return step % self.every_n_steps == 0 or step >= pl_module.total_steps

    def _among_the_best(self, trainer: Trainer, candidate: Label) -> bool:
        if self.best is None:
            return False
        takes = trainer.is_global_zero and self.best.takes(candidate, labels(trainer.default_root_dir).values())
        return bool(trainer.strategy.broadcast(takes))

    # ---- saving ----

    def label(self, step: int) -> Label:
        """The label of a step's checkpoint, with the values of its validation if it was validated."""
        return self._validated if self._validated.step == step else Label(step)

    def save(self, trainer: Trainer, pl_module: AsymGRPOModule, label: Label, *, last: bool = False) -> None:
        """Save the state after the last completed step, unless it is saved already. Every rank takes part.

        Args:
            trainer: The run's trainer.
            pl_module: The run's module.
            label: The last completed step, with the values of the validation after it.
            last: Whether the process is about to end, so that no later save makes up for this one. Always so at the
                last step of a run.

        Raises:
            RunError: The checkpoint cannot be written, and it is the last one or the third failure in a row.
        """
        state, path = (label.step, pl_module.validation_pending), checkpoint_path(trainer.default_root_dir, label.step)
        if state == self._saved and path.exists():
            return
        started = perf_counter()
        failure = _written(trainer, path, label)
        if failure is None:
            self._saved, self._failures = state, 0
            if trainer.is_global_zero:
                self._prune(trainer.default_root_dir)
            pl_module.write({"timing_s/save_checkpoint": perf_counter() - started})
            return
        self._failures += 1
        paths = [*list_checkpoints(trainer.default_root_dir).values()]
        kept = f"the newest checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
        message = f"The checkpoint of RL step {label.step} could not be written ({failure}); {kept}"
        if last or label.step >= pl_module.total_steps or self._failures >= _MOST_FAILURES:
            raise RunError(f"{message}. Make room or repair the folder, and continue with --ckpt_path last.")
        say(f"WARNING: {message}. Training goes on, and the next save tries again.")

    def _prune(self, run_dir: str) -> None:
        for path in obsolete(labels(run_dir), self.keep, self.best):
            try:
                remove_checkpoint(path)
            except OSError as error:
                say(f"WARNING: {path} cannot be removed: {reason(error)}.")

    # ---- the best checkpoints ----

    def check_metric(self, known: Sequence[str]) -> None:
        """Refuse a metric that no validation of this run gives.

        Raises:
            UserError: Another metric is set; the message names the known ones.
        """
        if self.best is not None and self.best.metric not in known:
            there = f"there are {', '.join(known)}" if known else "data.validation is empty"
            raise UserError(f"checkpoint.best.metric is {self.best.metric}, which this run does not have: {there}.")


def _begin(trainer: Trainer, done: int) -> None:
    run_dir = trainer.default_root_dir
    try:
        sweep(run_dir)
        set_aside(run_dir, after=done)
        # After that: as long as newer checkpoints are there, a process that is killed now resumes from them.
        begin_at(trainer.loggers, done + 1 if trainer.ckpt_path else 0)
    except OSError as error:
        raise RunError(f"The folder {run_dir} of the run cannot be tidied up: {reason(error)}.") from error


def _agree_on_stop(trainer: Trainer) -> None:
    """Stop every rank if a callback stops any of them: a rank that went on alone would wait for the others."""
    trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)


def _written(trainer: Trainer, path: Path, label: Label) -> str | None:
    """Write a checkpoint; returns on every rank None, or why it could not be written."""
    failure = None
    try:
        on_first_rank(trainer, lambda: force_to_disk(trainer.loggers))
        trainer.save_checkpoint(path, storage_options=label)
    except OSError as error:
        trainer.strategy.barrier()  # where other ranks wait if the first alone writes
        failure = reason(error)
    return trainer.strategy.broadcast(failure)


def run_checkpoint(trainer: Trainer) -> RunCheckpoint:
    """The RunCheckpoint of a trainer, which may have other checkpoint callbacks added by the user.

    Raises:
        UserError: It has none.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoint):
            return callback
    raise UserError("SafeStop and RunSummary work with a RunCheckpoint: add one to the callbacks of the Trainer.")
