"""Config of the loss around the objective: aggregation, KL, entropy, length penalty and sampler correction."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from asymgrpo_app.algorithm.aggregation import Aggregation
from asymgrpo_app.algorithm.correction import SamplerCorrection
from asymgrpo_app.algorithm.entropy import AdaptiveEntropy
from asymgrpo_app.errors import UserError


@dataclass(frozen=True)
class AdaptiveEntropyConfig:
    """An entropy bonus whose coefficient follows a target (arXiv 2505.22312); applied only while entropy is below it.

    Args:
        coef: Coefficient to start from, in [0, max_coef].
        target: Entropy to keep, in nats per token, > 0.
        delta: Change of the coefficient per RL step, > 0.
        max_coef: Upper bound of the coefficient, > 0.
    """

    coef: float = 0.0
    target: float = 0.2
    delta: float = 1e-4
    max_coef: float = 0.005

    def __post_init__(self) -> None:
        self.controller()  # refuses values outside their range

    def controller(self) -> AdaptiveEntropy:
        """A fresh controller with these settings."""
        return AdaptiveEntropy(coef=self.coef, target=self.target, delta=self.delta, max_coef=self.max_coef)


@dataclass(frozen=True)
class EntropyAdvantageConfig:
    """Adds min(alpha H, |A| / kappa) to each token's advantage (arXiv 2506.14758); H is the entropy under pi_old.

    Args:
        alpha: Weight of the entropy, > 0.
        kappa: The addition is at most |A| / kappa; > 1, so it never changes a sign.
    """

    alpha: float = 0.4
    kappa: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < inf and 1 < self.kappa < inf):
            raise UserError(
                f"model.loss.entropy_advantage needs finite alpha > 0 and kappa > 1, got {self.alpha} and {self.kappa}."
            )


@dataclass(frozen=True)
class LossConfig:
    """Terms added to the objective's token losses, and their aggregation to one number.

    Args:
        aggregation: `token`: mean over all completion tokens of the update (the paper's); `sequence`: mean over
            completions of their token means; `constant`: sum divided by completions times the length limit (Dr.GRPO).
        kl_coef: Weight of the k3 penalty to the reference policy, >= 0; 0 holds no reference model in memory.
        entropy_coef: Weight of a constant entropy bonus, >= 0; the paper's baseline row has 0.001.
        adaptive_entropy: An entropy bonus that follows a target, instead of a constant one; null: none.
        entropy_advantage: Advantages raised by token entropy; null: none.
        overlong_buffer: Length in tokens of the soft penalty's ramp below the completion limit (DAPO); null: none.
        old_logprobs: Log-probabilities of the old policy in the ratio: those of the `trainer` at the start of the step,
            or those that the `sampler` reported.
        correction: Importance weights against a mismatch between the sampler's and the trainer's probabilities.
    """

    aggregation: Aggregation = "token"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    adaptive_entropy: AdaptiveEntropyConfig | None = None
    entropy_advantage: EntropyAdvantageConfig | None = None
    overlong_buffer: int | None = None
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    correction: SamplerCorrection = SamplerCorrection()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for name in ("kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise UserError(f"model.loss.{name} must be a finite number >= 0, got {value}.")
        if self.overlong_buffer is not None and self.overlong_buffer < 1:
            raise UserError(f"model.loss.overlong_buffer must be at least 1 or null, got {self.overlong_buffer}.")
        if self.entropy_coef > 0 and self.adaptive_entropy is not None:
            raise UserError(
                f"model.loss.entropy_coef is {self.entropy_coef} beside adaptive_entropy: both set the weight of the "
                "entropy bonus, choose one."
            )
        if self.old_logprobs == "sampler" and self.correction.mode != "off":
            raise UserError(
                f"model.loss.correction.mode is {self.correction.mode} with old_logprobs sampler: the ratio then holds "
                "the sampler's mismatch already and would be corrected twice."
            )
