"""Shares of solved groups over full passes of the training data."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from asymgrpo_app.algorithm.diagnostics import group_shares
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.datamodule import data_of
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.rollout.types import PromptBatch

_COUNTS = ("solved_all", "solved_none", "groups")  # groups: those with a valid completion


class EpochShares(Callback):
    """Writes `reward/epoch_solved_{all,none}` in the step that completes a pass over a training source that ends.

    The share of a single step varies with its prompts; a pass has had every prompt. A step may end one pass and begin
    the next: its groups are then split by their position in the stream. A step that completes several passes of a small
    source writes their common mean.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_COUNTS, 0.0)  # of the unfinished pass, over all ranks

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AsymGRPOModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        data = data_of(trainer)
        size = data.train_source.size if data.train_source else None
        if size is None or data.repeat_steps is not None:
            return
        assert batch.rollouts is not None
        first = batch.step * data.prompts_per_step
        end_of_pass = (first + data.prompts_per_step) // size * size
        positions = torch.tensor([first + prompt.index for prompt in batch.rollouts.prompts])
        if end_of_pass > first:
            self._add(pl_module, positions < end_of_pass)
            if groups := self._counts.pop("groups"):
                pl_module.publish({f"reward/epoch_{name}": solved / groups for name, solved in self._counts.items()})
            self._counts = dict.fromkeys(_COUNTS, 0.0)
        self._add(pl_module, positions >= end_of_pass)

    def state_dict(self) -> dict[str, float]:
        return dict(self._counts)

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._counts = {name: float(state_dict[name]) for name in _COUNTS}

    def _add(self, pl_module: AsymGRPOModule, chosen: Tensor) -> None:
        """Count the step's groups that `chosen` ([P], bool) selects; every rank takes part."""
        assert pl_module.last_step is not None
        groups = pl_module.last_step.groups
        shares = group_shares(GroupRewards(groups.rewards[chosen], groups.valid[chosen]))
        solved_all, solved_none = shares["solved_all"], shares["solved_none"]
        counts = float(solved_all.total), float(solved_none.total), float(solved_all.weight)
        for of_rank in gather_objects(counts):
            for name, number in zip(_COUNTS, of_rank, strict=True):
                self._counts[name] += number
