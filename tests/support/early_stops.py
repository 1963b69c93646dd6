"""Callbacks that stop a run before its last step, each in another hook."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint


class StopsIn(Callback):
    """Sets `trainer.should_stop` in one hook, the first time that so many steps are complete.

    Args:
        hook: Name of the hook.
        steps: Completed steps.
        rank: The rank that asks alone; None: all.
        reason: What the callback says about it; None: nothing.
    """

    def __init__(self, hook: str, steps: int, rank: int | None = None, reason: str | None = None) -> None:
        self.steps = steps
        self.rank = rank
        self.stopping_reason_message: str | None = None
        self._reason = reason
        setattr(self, hook, self._stop)

    def _stop(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.completed_steps == self.steps and self.rank in (None, trainer.global_rank):
            trainer.should_stop = True
            self.stopping_reason_message = self._reason


class StopsAfterCheckpoints(StopsIn, Checkpoint):
    """Comes after the run's own checkpoints, since Lightning orders such callbacks last."""
