"""Work of the first rank for all ranks."""

from collections.abc import Callable

from lightning.pytorch import Trainer

from asymgrpo_app.errors import RunError, UserError


def on_first_rank(trainer: Trainer, action: Callable[[], None]) -> None:
    """Run an action on the first rank alone; if it raises, every rank raises the same error."""
    failure = None
    if trainer.is_global_zero:
        try:
            action()
        except (UserError, RunError) as error:
            failure = error
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise failure
