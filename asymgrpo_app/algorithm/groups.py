"""Groups of completions of one prompt, and the counts every advantage is a function of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GroupRewards:
    """The verdicts of P prompts with G completions each; all an advantage may depend on.

    Attributes:
        rewards: [P, G]. Exactly 0 (wrong) or 1 (right) where `valid`; anything where not. Kept as float32, with 0 at
            invalid places.
        valid: [P, G] bool. False for a completion that was left out: it counts neither in k nor in n.
        progress: Share of the run that is done, in [0, 1]; what schedules read.

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
        """k, [P] float64: how many of the valid completions are right."""
        return self.rewards.sum(dim=-1, dtype=torch.float64)

    @property
    def num_valid(self) -> Tensor:
        """n, [P] float64: how many completions count."""
        return self.valid.sum(dim=-1, dtype=torch.float64)

    @property
    def accuracy(self) -> Tensor:
        """p = k / n, [P] float64 in [0, 1]; 0 for a group without valid completions."""
        return self.num_correct / self.num_valid.clamp(min=1)

    @property
    def degenerate(self) -> Tensor:
        """[P] bool: all right, all wrong, or fewer than two valid completions, so nothing can be compared."""
        k, n = self.num_correct, self.num_valid
        return (k == 0) | (k == n) | (n < 2)


def of_all_ranks(groups: GroupRewards, gather: Callable[[GroupRewards], list[GroupRewards]]) -> GroupRewards:
    """The groups of all ranks, one rank's after the other's; every rank takes part.

    Args:
        groups: This rank's, of the same size G on each.
        gather: The value of every rank, on every rank.
    """
    parts = gather(groups)
    rewards, valid = (torch.cat([getattr(part, name) for part in parts]) for name in ("rewards", "valid"))
    return GroupRewards(rewards, valid, groups.progress)
