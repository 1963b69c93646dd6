"""Refuses options that have another meaning here, or none, before any object is built."""

from pydoc import locate
from typing import Any

from asymgrpo_app.checks.lightning_support import (
    ACCELERATOR_NAMES,
    ARGUMENTS,
    CLASSES,
    OTHER_STRATEGY,
    PROFILER_NAMES,
    STRATEGIES,
    Fixed,
    Refused,
)
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.rollout.vllm_engine import require_vllm
from asymgrpo_app.update.trainer_settings import check_precision

_LISTS = ("callbacks", "logger", "plugins")  # arguments that may be given several objects


def check_options(section: Any) -> None:
    """Check the parsed config of a subcommand.

    Raises:
        UserError: With the key, the value and what to set instead.
    """
    check_trainer_options(section.trainer)
    at_least_1("steps", section.steps)
    if not 0 <= section.seed_everything < 2**32:
        raise UserError(f"seed_everything must be in [0, 2**32), got {section.seed_everything}.")
    scheduler = section.model.lr_scheduler
    if scheduler is not None and "ReduceLROnPlateau" in scheduler.class_path:
        raise UserError(f"model.lr_scheduler may not be {scheduler.class_path}: use one that goes by steps.")
    if section.rollout.sampler == "vllm":
        require_vllm()


def check_trainer_options(options: Any) -> None:
    """Check the section `trainer`.

    Raises:
        UserError: With the key, the value and what to set instead.
    """
    for name, entry in ARGUMENTS.items():
        if isinstance(entry, Fixed) and not _changes_nothing(options.get(name), entry.values):
            raise _fixed(name, options.get(name), entry)
    _check_names(options)
    for name in CLASSES:
        for class_path in _class_paths(options.get(name)):
            refuse_class(name, locate(class_path))
    check_precision("trainer.precision", options.precision)
    if (every := options.log_every_n_steps) is None or every < 1:
        raise UserError(f"trainer.log_every_n_steps must be at least 1, got {every}.")
    interval = options.val_check_interval
    if not isinstance(interval, int) or interval < 1:
        raise UserError(f"trainer.val_check_interval must be a whole number of RL steps >= 1, got {interval}.")


def refuse_class(argument: str, given: Any) -> None:
    """Refuse a class of Lightning that a run does not support, or a class of the user's own that inherits from one.

    Args:
        argument: The argument of the trainer that it is given to.
        given: The class; anything else is left alone, such as a function that returns an object.

    Raises:
        UserError: With the class and what to use instead.
    """
    if not isinstance(given, type):
        return
    table = CLASSES[argument]
    parent = next(
        (cls for cls in given.__mro__ if cls.__module__.startswith("lightning.") and cls.__name__ in table), None
    )
    if parent is None or not isinstance(entry := table[parent.__name__], Refused):
        return
    if entry.hooks and all(getattr(given, hook) is not getattr(parent, hook) for hook in entry.hooks):
        return
    kind = "" if given is parent else f", a {parent.__name__},"
    place = f"trainer.{argument}{':' if argument in _LISTS else ''}"
    raise UserError(f"{place} {given.__name__}{kind} is not supported: {entry.text}.")


def other_strategy(name: str) -> UserError:
    """The error for a strategy that is not supported."""
    return UserError(f"trainer.strategy {name} is not supported: {OTHER_STRATEGY}.")


def _changes_nothing(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of some; 1 (one batch) is another than 1.0 (all of them)."""
    return any(value == own and (own != 1 or type(value) is type(own)) for own in values)


def _fixed(name: str, value: Any, entry: Fixed) -> UserError:
    if not entry.stays:
        return UserError(f"trainer.{name} is not used here: set {entry.instead}.")
    return UserError(f"trainer.{name} must stay {shown(entry.values[0])}, got {shown(value)}: {entry.instead}.")


def shown(value: Any) -> str:
    """A value as it stands in a config."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _check_names(options: Any) -> None:
    """Check strategy, accelerator and profiler where they are given by name, before Lightning misses their packages."""
    strategy = options.strategy
    if isinstance(strategy, str) and strategy.lower() not in STRATEGIES:
        raise other_strategy(strategy)
    if _class_paths(strategy) and (start := strategy.get("init_args", {}).get("start_method", "popen")) != "popen":
        raise UserError(f"trainer.strategy start_method must stay popen, got {start}: leave it out.")
    if isinstance(name := options.accelerator, str) and name not in ACCELERATOR_NAMES:
        raise UserError(f"trainer.accelerator {name} is not supported: use cpu or cuda.")
    if isinstance(name := options.profiler, str) and name.lower() not in PROFILER_NAMES:
        raise UserError(f"trainer.profiler must be simple, advanced, pytorch or a class, got {name}.")


def _class_paths(value: Any) -> list[str]:
    """Paths of the classes in the parsed value of an option that takes an object, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [item["class_path"] for item in values if not isinstance(item, str) and hasattr(item, "class_path")]
