"""Verdicts of groups of completions, and the counts that advantages are computed from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GroupRewards:
    """Verdicts of P prompts with G completions each, the only input of an advantage estimator.

    Attributes:
        rewards: [P, G]. Exactly 0 (wrong) or 1 (right) where `valid`, ignored elsewhere. Stored as float32, with 0 at
            invalid entries.
        valid: [P, G] bool. False for a completion that is left out: it is in neither k nor n.
        progress: Share of the run that is done, in [0, 1]; read by schedules.

    Raises:
        ValueError: A shape, a dtype, or a valid reward other than 0 and 1.
    """

    rewards: Tensor
    valid: Tensor
    progress: float = 0.0

    def __post_init__(self) -> None:
        if self.rewards.ndim != 2 or self.rewards.shape != self.valid.shape:
            raise ValueError(
                "rewards and valid must both have the shape [prompts, group_size], "
                f"got {list(self.rewards.shape)} and {list(self.valid.shape)}"
            )
        if self.valid.dtype != torch.bool:
            raise ValueError(f"valid must be a bool tensor, got {self.valid.dtype}")
        if not 0.0 <= self.progress <= 1.0:
            raise ValueError(f"progress must be in [0, 1], got {self.progress}")
        judged = self.rewards.detach()
        refused = self.valid & (judged != 0) & (judged != 1)
        if refused.any():
            raise ValueError(
                "rewards must be exactly 0 or 1, since the group accuracy p is a share of right completions, "
                f"got {judged[refused][0].item()}"
            )
        self.rewards = torch.where(self.valid, judged, 0).float()

    @property
    def num_correct(self) -> Tensor:
        """k, [P] float64: number of right completions among the valid ones."""
        return self.rewards.sum(dim=-1, dtype=torch.float64)

    @property
    def num_valid(self) -> Tensor:
        """n, [P] float64: number of valid completions."""
        return self.valid.sum(dim=-1, dtype=torch.float64)

    @property
    def accuracy(self) -> Tensor:
        """p = k / n, [P] float64 in [0, 1]; 0 for a group without valid completions."""
        return self.num_correct / self.num_valid.clamp(min=1)

    @property
    def degenerate(self) -> Tensor:
        """Groups without a comparison, [P] bool: all right, all wrong, or fewer than two valid completions."""
        k, n = self.num_correct, self.num_valid
        return (k == 0) | (k == n) | (n < 2)


def of_all_ranks(groups: GroupRewards, gather: Callable[[GroupRewards], list[GroupRewards]]) -> GroupRewards:
    """The groups of all ranks, concatenated in the order of the ranks; every rank takes part.

    Args:
        groups: This rank's groups; their size G is the same on every rank.
        gather: Returns the values of all ranks, on every rank.
    """
    parts = gather(groups)
    rewards, valid = (torch.cat([getattr(part, name) for part in parts]) for name in ("rewards", "valid"))
    return GroupRewards(rewards, valid, groups.progress)
