"""Stops a run on a signal or a time limit so that it resumes later as if it had not stopped."""

import time
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.callbacks.checkpoint import run_checkpoint
from asymgrpo_app.checkpoints.folder import checkpoint_path
from asymgrpo_app.errors import RunError
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.runtime.compat import common_store, leave_signals_alone
from asymgrpo_app.runtime.console import say
from asymgrpo_app.runtime.stopping import StopRun, StopWatch, age_s, switch


class SafeStop(Callback):
    """Decides where a run may stop, and saves the last whole step when it does.

    Between the end of a step and the first optimizer update of the next one, policy, optimizer and all else that a
    checkpoint holds are those of the whole step: sampling, verifying, forward and backward passes and validation change
    none of it. There a run stops at once, and the state of the last whole step is saved. From the first update on the
    step is finished, which takes no more than the other updates of that step. So no state in between is ever saved.

    Several ranks agree on a stop: after the rollouts, before the first update, before a validation and after each of
    its batches every rank learns whether any rank was asked to stop.

    If a callback stops the run early, its last step is saved at the latest when training ends.

    If a run of one process fails where its state is whole, that state is saved as well.

    Args:
        time_limit_s: Seconds from the start of the process after which the run stops; None: no limit.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        self.time_limit_s = time_limit_s
        self._watch: StopWatch | None = None
        self._whole = False  # whether the state is that of a whole step
        self._first = 0  # steps that were complete when training began

    def setup(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        """Leave out Lightning's handlers: they wait for other ranks, or on SLURM save, in the middle of anything."""
        leave_signals_alone(trainer)
        if stage == "fit":
            run_checkpoint(trainer)  # or there would be nothing to save with at the stop
        if trainer.world_size > 1:
            switch.must_finish()
        if self._watch is None and (self.time_limit_s is not None or trainer.world_size > 1):
            deadline = None if self.time_limit_s is None else time.monotonic() + self.time_limit_s - age_s()
            self._watch = StopWatch(deadline, common_store() if trainer.world_size > 1 else None)
            self._watch.start()

    # ---- training ----

    def on_fit_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        switch.must_finish()  # checkpoints of another branch are set aside
        self._first = pl_module.completed_steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: Any, batch_idx: int) -> None:
        self._whole = True
        self._may_stop(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: AsymGRPOModule, optimizer: Any) -> None:
        if self._whole:  # the step's first update: nothing has changed yet
            switch.check_together(gather_objects)
            switch.must_finish()
            self._whole = False

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if pl_module.completed_steps > 0:
            keeper = run_checkpoint(trainer)
            keeper.save(trainer, pl_module, keeper.label(pl_module.completed_steps), last=True)

    # ---- validation ----

    def on_validation_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._whole = trainer.state.fn == TrainerFn.FITTING
        switch.check_together(gather_objects)
        self._may_stop(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        switch.must_finish()
        self._whole = False  # until the results are written and the checkpoint of this step, too

    # ---- prediction ----

    def on_predict_batch_start(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        self._may_stop(trainer)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        switch.must_finish()  # completions are written to the file

    # ---- saving ----

    def on_save_checkpoint(self, trainer: Trainer, pl_module: AsymGRPOModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's counters to the end of a step, wherever in its loop the run was stopped.

        Lightning validates by these counters. Whether a validation is still due after the step is an entry of ours.
        """
        loop = checkpoint["loops"]["fit_loop"]
        for part in ("total", "current"):
            steps, validation = (loop[f"epoch_loop.{name}batch_progress"][part] for name in ("", "val_loop."))
            steps.update(dict.fromkeys(steps, pl_module.completed_steps))
            validation.update(dict.fromkeys(validation, 0))  # a validation begins with its first batch

    def on_exception(self, trainer: Trainer, pl_module: AsymGRPOModule, exception: BaseException) -> None:
        switch.must_finish()
        if self._whole and isinstance(exception, StopRun):  # not while a checkpoint was being restored
            exception.outcome = self._keep(trainer, pl_module)
        elif self._whole and isinstance(exception, Exception) and trainer.world_size == 1:
            say(self._keep(trainer, pl_module))
        self._end_watch()

    def teardown(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        self._end_watch()

    def _keep(self, trainer: Trainer, pl_module: AsymGRPOModule) -> str:
        """Save the state of the last whole step unless it is saved; returns a sentence about it for the user."""
        step = pl_module.completed_steps
        if step == 0:
            return "No step was complete yet: with --ckpt_path last the run starts from its beginning."
        path = checkpoint_path(trainer.default_root_dir, step)
        if step == self._first and not path.exists():  # the folder stays free for the same command
            return f"No step was complete yet: the same command starts again from {trainer.ckpt_path}."
        try:
            keeper = run_checkpoint(trainer)
            keeper.save(trainer, pl_module, keeper.label(step), last=True)
        except RunError as error:
            return str(error)
        return f"RL step {step} of {pl_module.total_steps} is done and saved in {path}: go on with --ckpt_path last."

    def _may_stop(self, trainer: Trainer) -> None:
        """Allow a stop at any moment in a run of one process; several ranks stop only where they agree on it."""
        if trainer.world_size == 1:
            switch.may_stop()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None
