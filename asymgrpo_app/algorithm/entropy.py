"""Exploration by entropy: the adaptive coefficient of an entropy bonus, and the entropy-shaped advantage."""

import math

import torch
from torch import Tensor

from asymgrpo_app.errors import UserError


class AdaptiveEntropy:
    """Coefficient of the entropy bonus that follows a target (Skywork-OR1, arXiv 2505.22312).

    Each observed entropy moves the coefficient by `delta`: up while entropy is below the target, down otherwise, within
    [0, max_coef]. The bonus is applied only while the last observed entropy is below the target, hence not before the
    first observation.

    Args:
        coef: Coefficient to start from, in [0, max_coef].
        target: Entropy to keep, in nats per token, > 0.
        delta: Change per observation, > 0.
        max_coef: Upper bound of the coefficient, > 0.
    """

    def __init__(self, *, coef: float = 0.0, target: float = 0.2, delta: float = 1e-4, max_coef: float = 0.005) -> None:
        for name, number in {"target": target, "delta": delta, "max_coef": max_coef}.items():
            if not (math.isfinite(number) and number > 0):
                raise UserError(f"{name} of the adaptive entropy bonus is {number}: give a finite number > 0")
        if not 0 <= coef <= max_coef:
            raise UserError(
                f"coef of the adaptive entropy bonus is {coef}: give a number from 0 to max_coef, {max_coef}"
            )
        self.target = target
        self.delta = delta
        self.max_coef = max_coef
        self._coef = coef
        self._below_target = False

    @property
    def coefficient(self) -> float:
        """The coefficient to apply now, in [0, max_coef]; 0 unless the last observed entropy was below the target."""
        return self._coef if self._below_target else 0.0

    def observe(self, entropy: float) -> None:
        """Take in the mean token entropy of a step, in nats, over all ranks; call it once per step.

        Raises:
            ValueError: The entropy is not finite.
        """
        if not math.isfinite(entropy):
            raise ValueError(f"entropy must be finite, got {entropy}")
        self._below_target = entropy < self.target
        moved = self._coef + (self.delta if self._below_target else -self.delta)
        self._coef = min(max(moved, 0.0), self.max_coef)

    def state_dict(self) -> dict[str, float | bool]:
        """The controller's state for a checkpoint, as plain values."""
        return {"coef": self._coef, "below_target": self._below_target}

    def load_state_dict(self, state: dict[str, float | bool]) -> None:
        """Restore the state that `state_dict` returned."""
        self._coef = float(state["coef"])
        self._below_target = bool(state["below_target"])


def entropy_advantage(advantages: Tensor, entropy: Tensor, *, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """Add min(alpha H, |A| / kappa) to the advantage of each token (arXiv 2506.14758).

    It never changes the sign of an advantage for kappa > 1, and leaves an advantage of 0 alone.

    Args:
        advantages: [T].
        entropy: [T] token entropies in nats, >= 0; no gradient flows through them.
        alpha: Weight of the entropy, > 0.
        kappa: The addition is at most 1/kappa of |A|; > 1.

    Returns:
        [T] in the dtype of `advantages`.

    Raises:
        ValueError: alpha or kappa outside its range.
    """
    if not alpha > 0 or not kappa > 1:
        raise ValueError(f"alpha must be > 0 and kappa > 1, got {alpha} and {kappa}")
    bonus = torch.minimum(alpha * entropy.detach().to(advantages.dtype), advantages.abs() / kappa)
    return advantages + bonus
