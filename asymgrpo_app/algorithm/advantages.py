"""The AsymGRPO advantage, and the base class of every advantage estimator.

The formula is that of arXiv 2604.04894 ("Rethinking Exploration in RLVR: From Entropy Regularization to Refinement via
Bidirectional Entropy Modulation"; its v2 is titled "Asymmetric Advantage Modulation Calibrates Entropy Dynamics in
RLVR"). With k of n completions right and p = k/n, a right completion gets ((1-p)/p)^beta_pos and a wrong one
-(p/(1-p))^beta_neg. Other methods that are also called AsymGRPO are not this one.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.errors import UserError

__all__ = [
    "AdvantageEstimator",
    "AsymGRPO",
    "BetaSchedule",
    "DegenerateGroups",
    "Flip",
    "GroupRewards",
    "asym_advantages",
    "checked_advantages",
]

DegenerateGroups = Literal["drop", "keep"]
Flip = Literal["ent_increase", "ent_decrease"]


class AdvantageEstimator(ABC):
    """Base class of advantage estimators, which turn verdicts of groups into advantages; subclass it for your own.

    Constructor arguments are plain typed keyword arguments, so that a config can name the class by `class_path`.
    """

    @abstractmethod
    def __call__(self, groups: GroupRewards) -> Tensor:
        """The advantage of every completion, [P, G] float32; the same value holds for all of its tokens.

        Values at invalid entries are ignored, and no gradient flows through the result.
        """

    def scalars(self, progress: float) -> dict[str, float]:
        """Values to log as `advantages/...`: what is in force at this share of the run, in [0, 1]."""
        del progress
        return {}

    def observe(self, groups: GroupRewards) -> None:
        """Update the estimator's state, if it has one, from a step's verdicts of all ranks; called once after the step.

        `__call__` must not change the state: it is also called for figures and checks.
        """

    def state_dict(self) -> dict[str, Any]:
        """The estimator's state for a checkpoint, in plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def checked_advantages(estimator: AdvantageEstimator, groups: GroupRewards) -> Tensor:
    """Call an estimator, which may be a user's own, and check its result.

    Returns:
        [P, G] float32 without gradient, 0 at invalid entries.

    Raises:
        UserError: The result has another shape, or is not finite at a valid entry.
    """
    advantages = estimator(groups).detach()
    name = type(estimator).__name__
    if advantages.shape != groups.rewards.shape:
        raise UserError(
            f"advantages of {name} have the shape {list(advantages.shape)}: "
            f"return one per completion, {list(groups.rewards.shape)}"
        )
    advantages = torch.where(groups.valid, advantages, 0).float()
    if not advantages.isfinite().all():
        row = int((~advantages.isfinite()).any(dim=-1).nonzero()[0, 0])
        raise UserError(
            f"advantages of {name} are not finite for a group with {groups.num_correct[row]:.0f} of "
            f"{groups.num_valid[row]:.0f} right: evaluate only the branch that exists there"
        )
    return advantages


def asym_advantages(
    rewards: Tensor,
    beta_pos: float,
    beta_neg: float,
    *,
    valid: Tensor | None = None,
    degenerate_groups: DegenerateGroups = "drop",
    scale_pos: float = 1.0,
    scale_neg: float = 1.0,
    cap: float | None = None,
    flip: Flip | None = None,
) -> Tensor:
    """AsymGRPO advantages (arXiv 2604.04894): ((1-p)/p)^beta_pos if right, -(p/(1-p))^beta_neg if wrong.

    p = k/n per group, over the valid completions. (0.5, 0.5) is GRPO with the population standard deviation and no
    epsilon, (1, 0) MaxRL, (0, 0) REINFORCE with +1/-1. The largest value is (n-1)^beta, at one right (wrong) of n.

    Args:
        rewards: [prompts, group_size], exactly 0 or 1 at valid entries.
        beta_pos: Exponent of right completions, >= 0.
        beta_neg: Exponent of wrong completions, >= 0.
        valid: [prompts, group_size] bool; None: all are valid.
        degenerate_groups: Advantage of a group that is all right or all wrong, or has a single valid completion: `drop`
            gives 0, `keep` the formula, which is 0 for a positive exponent and +-1 for exponent 0.
        scale_pos: Factor on the advantages of right completions, >= 0.
        scale_neg: Factor on the advantages of wrong completions, >= 0.
        cap: Largest |A|, applied after the scales; None: no cap.
        flip: `ent_decrease` takes the positive curve at 1-p, `ent_increase` the negative curve (the adversarial
            ablations of the paper). The flipped curve has a pole at p = 1 (p = 0), where it is continued linearly from
            the last two points; so such a group gets an advantage whatever `degenerate_groups` says.

    Returns:
        [prompts, group_size] float32, always finite, without gradient, 0 at invalid entries.

    Raises:
        ValueError: Rewards other than 0 and 1, wrong shapes, or an exponent, scale or cap outside its range.
    """
    _check_settings(ValueError, cap, beta_pos=beta_pos, beta_neg=beta_neg, scale_pos=scale_pos, scale_neg=scale_neg)
    groups = GroupRewards(rewards, torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid)
    k, n = groups.num_correct, groups.num_valid
    keep = degenerate_groups == "keep"
    positive = _magnitude(k, n, beta_pos, flipped=flip == "ent_decrease", keep_degenerate=keep)
    negative = _magnitude(n - k, n, beta_neg, flipped=flip == "ent_increase", keep_degenerate=keep)
    # A scale, too, can carry a value past float32's range.
    limit = min(torch.finfo(torch.float32).max, math.inf if cap is None else cap)
    positive = (scale_pos * positive).clamp(max=limit).unsqueeze(-1)
    negative = (scale_neg * negative).clamp(max=limit).unsqueeze(-1)
    advantages = torch.where(groups.rewards == 1, positive, -negative)
    return torch.where(groups.valid, advantages, 0).float()


def _magnitude(own: Tensor, n: Tensor, beta: float, *, flipped: bool, keep_degenerate: bool) -> Tensor:
    """|A| of one side (right or wrong) of each group, [P] float64, from counts alone.

    Both sides are the same function of `own`, the number of completions on that side (k for right ones, n-k for wrong
    ones): (other/own)^beta, flipped (own/other)^beta. The value is not used where `own` is 0.
    """
    other = n - own
    numerator, denominator = (own, other) if flipped else (other, own)
    magnitude = _power(numerator / denominator.clamp(min=1), beta)
    if flipped:
        # Continued linearly to own = n from own = n-1 and n-2. At n = 2 the latter is the curve's own value at 0, that
        # is 0^beta (with 0^0 = 1). A single completion gives no two points, hence 0.
        end = 2 * _power((n - 1).clamp(min=0), beta) - _power((n - 2).clamp(min=0) / 2, beta)
        end = torch.where(n >= 2, end, 0)
    else:
        end = magnitude if keep_degenerate else torch.zeros_like(magnitude)
    return torch.where(other == 0, end, magnitude)


def _power(base: Tensor, beta: float) -> Tensor:
    """base^beta for base >= 0, at most float32's largest number: an infinity here would become nan further on."""
    return base.pow(beta).clamp(max=torch.finfo(torch.float32).max)


@dataclass
class BetaSchedule:
    """An exponent that changes over the run; `AsymGRPO` checks it and names the key.

    Attributes:
        kind: `constant` stays at `start`, `linear` and `cosine` (half a period) go from `start` to `end`.
        start: Exponent at the start of the run, >= 0.
        end: Exponent at the end of the run, >= 0; left out for `constant`.
    """

    kind: Literal["constant", "linear", "cosine"]
    start: float
    end: float | None = None

    def at(self, progress: float) -> float:
        """The exponent after a share `progress` in [0, 1] of the run."""
        if self.kind == "constant" or self.end is None:
            return self.start
        share_left = 1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.end + (self.start - self.end) * share_left


class AsymGRPO(AdvantageEstimator):
    """The two-exponent advantage of AsymGRPO (arXiv 2604.04894); see `asym_advantages` for the formula.

    Special cases (beta_pos, beta_neg): (0.5, 0.5) GRPO with the population standard deviation; (0, 0) with
    `degenerate_groups: keep` REINFORCE; (1, 0) MaxRL; (0.5, 0) and (0, 0.5) with `keep` Pos-Only and Neg-Only; (0, 0)
    with `keep` and `scale_neg: 0`, `scale_pos: 0` or `scale_pos: 0.1` PSR, NSR and W-REINFORCE (arXiv 2506.01347).

    Args:
        beta_pos: Exponent of right completions, >= 0, or a schedule. Larger: more weight on hard prompts.
        beta_neg: Exponent of wrong completions, >= 0, or a schedule. Larger: more weight on easy prompts.
        scale_pos: Factor on the advantages of right completions, >= 0.
        scale_neg: Factor on the advantages of wrong completions, >= 0.
        cap: Largest |A| after the scales, > 0; None: no cap, then it is (G-1)^beta for groups of G.
        degenerate_groups: `drop` gives groups that are all right or all wrong the advantage 0, `keep` the formula's
            value, which differs from 0 only for exponent 0.
        flip: Adversarial ablation of the paper: `ent_decrease` flips the positive curve in p, `ent_increase` the
            negative one; None: neither.
    """

    def __init__(
        self,
        *,
        beta_pos: float | BetaSchedule = 0.9,
        beta_neg: float | BetaSchedule = 0.4,
        scale_pos: float = 1.0,
        scale_neg: float = 1.0,
        cap: float | None = None,
        degenerate_groups: DegenerateGroups = "drop",
        flip: Flip | None = None,
    ) -> None:
        self.beta_pos = _as_schedule(beta_pos)
        self.beta_neg = _as_schedule(beta_neg)
        self.scale_pos = scale_pos
        self.scale_neg = scale_neg
        self.cap = cap
        self.degenerate_groups: DegenerateGroups = degenerate_groups
        self.flip: Flip | None = flip
        _check_settings(UserError, cap, scale_pos=scale_pos, scale_neg=scale_neg)
        for name, schedule in {"beta_pos": self.beta_pos, "beta_neg": self.beta_neg}.items():
            if (schedule.kind == "constant") != (schedule.end is None):
                remedy = "leave end out" if schedule.kind == "constant" else "give an end, or the kind constant"
                raise UserError(f"{name} is a {schedule.kind} schedule with end: {schedule.end}: {remedy}")
        for progress in (0.0, 1.0):
            _check_settings(UserError, None, **self.scalars(progress))

    def __call__(self, groups: GroupRewards) -> Tensor:
        return asym_advantages(
            groups.rewards,
            self.beta_pos.at(groups.progress),
            self.beta_neg.at(groups.progress),
            valid=groups.valid,
            degenerate_groups=self.degenerate_groups,
            scale_pos=self.scale_pos,
            scale_neg=self.scale_neg,
            cap=self.cap,
            flip=self.flip,
        )

    def scalars(self, progress: float) -> dict[str, float]:
        """`beta_pos` and `beta_neg` in force at this share of the run."""
        return {"beta_pos": self.beta_pos.at(progress), "beta_neg": self.beta_neg.at(progress)}


def _check_settings(error: type[Exception], cap: float | None, **numbers: float) -> None:
    """Raise `error` for a negative or non-finite exponent or scale, or a cap that is not positive."""
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise error(f"{name} is {number}: give a finite number >= 0")
    if cap is not None and not cap > 0:
        raise error(f"cap is {cap}: give a largest |advantage| > 0, or none at all")


def _as_schedule(beta: float | BetaSchedule) -> BetaSchedule:
    return beta if isinstance(beta, BetaSchedule) else BetaSchedule(kind="constant", start=beta)
