"""Collective operations over the ranks (processes) of a run; on one process each returns its input."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

from asymgrpo_app.errors import RunError, UserError

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this is rank 0, which writes the files that all ranks share."""
    return world_size() == 1 or distributed.get_rank() == 0


def gather_objects(value: T) -> list[T]:
    """The value of every rank, on every rank; every rank takes part."""
    size = world_size()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(value: float) -> float:
    """The sum over all ranks; every rank takes part."""
    return sum(gather_objects(value))


def cat_over_ranks(values: Tensor) -> Tensor:
    """1-D tensors of all ranks, of any lengths, one after the other, on the CPU; every rank takes part."""
    return torch.cat(gather_objects(values.cpu()))


def on_first_rank(trainer: Trainer, action: Callable[[], None]) -> None:
    """Run an action on the first rank alone; if it raises, every rank raises the same error."""
    failure = None
    if trainer.is_global_zero:
        try:
            action()
        except (UserError, RunError, OSError) as error:
            failure = error
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise failure
