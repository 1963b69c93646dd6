"""Tries an optimizer and its schedule before a model is loaded."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from asymgrpo_app.errors import UserError, one_line


def check_optimization(
    optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None, settings: Mapping[str, Any]
) -> None:
    """Make one update of a small matrix, so that settings which cannot work are refused now and not hours later.

    Args:
        optimizer: Makes the optimizer from parameters.
        lr_scheduler: Makes the schedule from the optimizer; None: constant.
        settings: The section `model` of the config, for messages.

    Raises:
        UserError: The optimizer or the schedule does not take its settings, or the learning rate is no finite number.
    """
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros_like(weight)
    tried: Any = _tried(settings, "optimizer", lambda: optimizer([weight]))
    closure = inspect.signature(tried.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"model.optimizer may not be {type(tried).__name__}: it evaluates the loss several times in an update."
        )
    for group in tried.param_groups:
        for name, value in group.items():
            numbers = value if isinstance(value, tuple | list) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise UserError(f"model.optimizer: {name} must be a finite number, got {value}.")
    schedule: Any = _tried(settings, "lr_scheduler", lambda: lr_scheduler(tried)) if lr_scheduler else None
    _tried(settings, "optimizer", tried.step)
    if schedule is not None:
        _tried(settings, "lr_scheduler", schedule.step)
        if not math.isfinite(rate := float(tried.param_groups[0]["lr"])):
            raise UserError(f"model.lr_scheduler: the learning rate becomes {rate} after the first step.")


def _tried(settings: Mapping[str, Any], key: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, ArithmeticError) as error:
        section = settings[key]
        given = ", ".join(f"{name}: {value}" for name, value in (section.get("init_args") or {}).items())
        raise UserError(
            f"model.{key} {section['class_path']} does not take its settings ({given}): "
            f"{one_line(str(error)).rstrip('.')}."
        ) from error
