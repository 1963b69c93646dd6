"""Builds the objects of a run from a parsed config."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from asymgrpo_app.callbacks.early_stopping import EarlyStoppingStart
from asymgrpo_app.callbacks.epochs import EpochShares
from asymgrpo_app.callbacks.evaluation import RESULTS_NAME, EvaluationReport, FinalResults
from asymgrpo_app.callbacks.export import ExportCallback
from asymgrpo_app.callbacks.progress import RunProgress
from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.callbacks.safe_stop import SafeStop
from asymgrpo_app.callbacks.summary import RunSummary
from asymgrpo_app.checkpoints.run_folder import tensorboard_folder
from asymgrpo_app.cli.parser import RunParser
from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError, one_line, user_error_in, with_key
from asymgrpo_app.evaluation.files import refuse_existing
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.compat import key_of, options_of
from asymgrpo_app.runtime.stopping import seconds_of


@dataclass(frozen=True)
class Run:
    """The objects that a command works with.

    Attributes:
        command: fit, validate, test or predict.
        section: Its config.
        module: The policy and its training.
        data: Prompts and verifiers.
        trainer: The Lightning trainer.
        folder: The folder of its results: the run's, or the evaluation's.
    """

    command: str
    section: Any
    module: AsymGRPOModule
    data: PromptDataModule
    trainer: Trainer
    folder: Path


def build(parser: RunParser) -> Run:
    """Seed the process and build the objects of a config.

    Raises:
        UserError: A constructor refuses its arguments; the message names the key where it is known.
    """
    command, section = parser.config["subcommand"], parser.section
    seed_everything(section.seed_everything, workers=True)
    folder = Path(section.run_dir) if command == "fit" else output_folder(command, section)
    options: dict[str, Any] = {
        "default_root_dir": section.run_dir,
        "max_epochs": -1 if command == "fit" else None,
        "callbacks": _callbacks(command, section, folder),
    }
    if section.trainer.logger in (None, True):
        # Only a training run writes events: an evaluation must not touch the events of the run it evaluates.
        options["logger"] = _tensorboard(section.run_dir) if command == "fit" else False
    try:
        module, data, trainer = parser.build(**options)
    except (UserError, ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        # The parser wraps a constructor's complaint about an optional or nested class in one of its own.
        said = user_error_in(error)
        if said is None and parser.builds_trainer:
            raise UserError(f"The trainer cannot be set up{_shown(section.trainer)}: {one_line(str(error))}") from error
        if said is None and isinstance(error, RuntimeError | ImportError):
            raise
        raise UserError(with_key(str(said or plain(str(error))), key_of(error))) from error
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = _ordered([*callbacks])
    module.config_text = parser.text
    return Run(command, section, module, data, trainer, folder)


def refuse_nulls(parser: RunParser) -> None:
    """Refuse null for keys that are not optional: the parser takes null for every key.

    Raises:
        UserError: With the key and its default.
    """
    for key, kind, default in options_of(parser.section_parser):
        takes_null = kind is None or kind is Any or NoneType in get_args(kind) or default is None
        if not takes_null and key in parser.section and parser.section[key] is None:
            raise UserError(f"{key} must not be null: leave the key out for its default, {default}.")


def _callbacks(command: str, section: Any, folder: Path) -> list[Callback]:
    """The callbacks of every run; for an evaluation also its report."""
    limit = section.time_limit
    callbacks: list[Callback] = [SafeStop(None if limit is None else seconds_of(limit))]
    if section.trainer.enable_progress_bar is not False:
        callbacks.append(RunProgress())  # before the summary is printed, so that the bar is closed
    callbacks += [EarlyStoppingStart(), EpochShares(), ExportCallback(), FinalResults(), RunSummary()]
    if command != "fit":
        callbacks.append(EvaluationReport(folder, section.ckpt_path, predict=command == "predict"))
    return callbacks


def _ordered(callbacks: list[Callback]) -> list[Callback]:
    """The callbacks in order: SafeStop, rollouts, then all others as given; checkpoints stay last, as in Lightning."""
    first = (SafeStop, VLLMRolloutCallback)
    return sorted(callbacks, key=lambda callback: next((n for n, k in enumerate(first) if isinstance(callback, k)), 9))


def _tensorboard(run_dir: str) -> TensorBoardLogger:
    folder = tensorboard_folder(run_dir)
    return TensorBoardLogger(folder.parent, name="", version=folder.name)


def output_folder(command: str, section: Any) -> Path:
    """The folder that an evaluation writes to; existing results are not overwritten."""
    checkpoint = Path(section.ckpt_path).stem if section.ckpt_path else "base"
    folder = Path(section.output or Path(section.run_dir) / "evaluations" / checkpoint)
    if command == "predict":
        return folder  # a prediction goes on with its own file, and refuses another's
    if section.output:
        refuse_existing(folder / RESULTS_NAME, option="--output")
        return folder
    return next(candidate for candidate in _numbered(folder) if not (candidate / RESULTS_NAME).exists())


def _numbered(folder: Path) -> Iterator[Path]:
    """Yield the folder, then the folder with `-2`, `-3`, ... added to its name."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _shown(options: Any) -> str:
    """The trainer options that are likely causes of the trainer's error, for its message."""
    chosen = {name: options.get(name) for name in ("accelerator", "devices", "strategy", "profiler")}
    return f" with {', '.join(f'trainer.{name}: {value}' for name, value in chosen.items() if value is not None)}"
