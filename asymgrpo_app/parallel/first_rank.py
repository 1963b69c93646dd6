"""What one process of a run does for all of them."""

from collections.abc import Callable

from lightning.pytorch import Trainer

from asymgrpo_app.errors import RunError, UserError


def on_first_rank(trainer: Trainer, action: Callable[[], None]) -> None:
    """Let the first rank do something; if it fails, every rank does."""
    failure = None
    if trainer.is_global_zero:
        try:
            action()
        except (UserError, RunError) as error:
            failure = error
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise failure
