"""Checks of the callbacks and loggers that a config adds to a run, before a model is loaded."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger

from asymgrpo_app.callbacks.checkpoint import run_checkpoint
from asymgrpo_app.checks.hooks import check_hooks, own_hooks
from asymgrpo_app.checks.options import refuse_class
from asymgrpo_app.checks.run_tags import near, run_tags, validation_tags
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.compat import looks_at_epochs

_NEED_A_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)


def configured_callbacks(trainer: Trainer) -> list[Callback]:
    """The callbacks that are not the run's own."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if not type(callback).__module__.startswith("asymgrpo_app.")]


def check_callbacks(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, section: Any) -> list[str]:
    """Check the callbacks and loggers of a training run; returns notes for the user.

    Raises:
        UserError: One that the run cannot have, or that would do nothing; with what to use instead.
    """
    callbacks = configured_callbacks(trainer)
    notes = check_hooks(callbacks, len(data.evaluation_sets))
    for callback in callbacks:
        refuse_class("callbacks", type(callback))
        if isinstance(callback, _NEED_A_LOGGER) and not trainer.loggers:
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} writes to loggers, but trainer.logger is false: turn "
                "logging on, or leave the callback out."
            )
        if isinstance(callback, LearningRateMonitor) and callback.logging_interval == "epoch":
            raise UserError(
                "trainer.callbacks: LearningRateMonitor.logging_interval is epoch, but a run is one epoch: leave it "
                "out."
            )
        if isinstance(callback, EarlyStopping):
            _check_early_stopping(callback, data, trainer)
    _check_loggers(trainer)
    run_checkpoint(trainer).check_metric(validation_tags(data, trainer))
    return [*notes, *_check_monitors(callbacks, module, run_tags(module, data, trainer, section))]


def check_evaluation_callbacks(data: PromptDataModule, trainer: Trainer) -> None:
    """Check the callbacks and loggers of an evaluation.

    Raises:
        UserError: A hook that Lightning could not call, or a logger that would replace a file.
    """
    check_hooks(configured_callbacks(trainer), len(data.evaluation_sets))
    _check_loggers(trainer)


def _check_early_stopping(callback: EarlyStopping, data: PromptDataModule, trainer: Trainer) -> None:
    if not validation_tags(data, trainer):
        why = "trainer.limit_val_batches is 0" if data.evaluation_sets else "data.validation is empty"
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__} looks at {callback.monitor} after each validation, but "
            f"{why}: name a set there, or leave the callback out."
        )
    if looks_at_epochs(callback):
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__}.check_on_train_epoch_end is true, but a run is one epoch: "
            "leave it out, and monitor is looked at after each validation."
        )


def _check_monitors(callbacks: list[Callback], module: AsymGRPOModule, tags: dict[str, bool]) -> list[str]:
    """Check that each `monitor` is a scalar of this run; returns a note where a class of the user's own may give it."""
    own: list[Any] = [callback for callback in callbacks if own_hooks(callback)]
    own += [module.objective] if not type(module.objective).__module__.startswith("asymgrpo_app.") else []
    writers = sorted({type(each).__name__ for each in own})
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    notes = []
    for callback in callbacks:
        tag, place = getattr(callback, "monitor", None), f"trainer.callbacks: {type(callback).__name__}.monitor"
        if not isinstance(tag, str) or (rates and tag.startswith("lr-")):
            continue
        if tag not in tags:
            what = f"{place} is {tag}, which this run does not have"
            if not writers:
                raise UserError(f"{what}: there are {near(tag, list(tags))} and others (docs/metrics.md).")
            notes.append(
                f"{what} by itself; {' or '.join(writers)} has to log it before the first validation of a step."
            )
        elif not tags[tag] and getattr(callback, "strict", False):
            raise UserError(f"{place} is {tag}, which some steps do not have: set strict to false.")
    return notes


def _check_loggers(trainer: Trainer) -> None:
    for logger in trainer.loggers:
        refuse_class("logger", type(logger))
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            path = Path(logger.log_dir) / "metrics.csv"
            if path.exists():
                raise UserError(
                    f"trainer.logger: CSVLogger would replace {path}: leave its version out, give it another one, or "
                    "set trainer.logger to false."
                )
