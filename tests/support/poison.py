"""Losses that are not finite."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.module import AsymGRPOModule

Poison = Callable[[torch.Tensor], torch.Tensor]


def times_nan(losses: torch.Tensor) -> torch.Tensor:
    """Neither the loss nor its gradient is finite."""
    return losses * torch.nan


def plus_infinity(losses: torch.Tensor) -> torch.Tensor:
    """The loss is not finite, its gradient is."""
    return losses + torch.inf


def poison(patch: pytest.MonkeyPatch, where: Callable[[Any], bool], how: Poison = times_nan) -> None:
    """Poison the token losses in the steps of a module for which `where` holds when they begin."""
    step, losses = AsymGRPOModule.training_step, ClippedObjective.token_losses
    on = False

    def training_step(module: Any, *arguments: Any) -> None:
        nonlocal on
        on = where(module)
        step(module, *arguments)

    def poisoned(objective: Any, batch: Any) -> Any:
        output = losses(objective, batch)
        return replace(output, losses=how(output.losses)) if on else output

    patch.setattr(AsymGRPOModule, "training_step", training_step)
    patch.setattr(ClippedObjective, "token_losses", poisoned)
