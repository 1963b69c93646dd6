"""Correction for a sampler whose probabilities differ from the trainer's (another engine, precision, or stale weights).

Token losses are weighted by exp(trainer log-probability - sampler log-probability), truncated or masked. The weights
are constants: they multiply the policy term, not the KL and entropy terms.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asymgrpo_app.algorithm.metrics import Mean, mean_of
from asymgrpo_app.algorithm.ratios import bounded
from asymgrpo_app.algorithm.sequences import sequence_lengths, sequence_means, sequence_sums
from asymgrpo_app.errors import UserError


@dataclass
class CorrectionWeights:
    """Correction weights of a micro-batch, with their metrics.

    Attributes:
        weights: [T], constant: factor on each token's policy loss.
        means: Metrics that are means, by full tag: `rollout_corr/{ratio_raw_mean,ratio_mean,masked}` over tokens or
            completions, depending on `level`, and `rollout_corr/kl`, the mean over tokens of sampler - trainer
            log-probability, which estimates KL(sampler || trainer).
        maxima: Metrics that are maxima, by full tag: `rollout_corr/{ratio_raw_max,ratio_max}`, scalars; combine them
            over micro-batches and ranks by their maximum.
    """

    weights: Tensor
    means: dict[str, Mean]
    maxima: dict[str, Tensor]


@dataclass(frozen=True)
class SamplerCorrection:
    """Importance weights against a mismatch between the sampler's and the trainer's probabilities.

    Attributes:
        mode: `off` weighs every token by 1 and only measures; `truncate` weighs by the ratio, at most `threshold`;
            `mask` weighs by the ratio, and by 0 where it is above `threshold`.
        level: `token` takes each token's own ratio, `sequence` one ratio per completion.
        threshold: Largest ratio that is used, >= 1. Usual: 2 or 3 to truncate tokens, 3 to mask completions (TRL).
        sequence_reduction: The ratio of a completion is exp of the `sum` (TRL; its variance grows with the length) or
            of the `mean` of its tokens' log-ratios. Read at level `sequence` only.
    """

    mode: Literal["off", "truncate", "mask"] = "off"
    level: Literal["token", "sequence"] = "token"
    threshold: float = 2.0
    sequence_reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not self.threshold >= 1:
            raise UserError(f"threshold of the sampler correction is {self.threshold}: give a ratio >= 1, such as 2")

    def weigh(
        self, trainer_logprobs: Tensor, rollout_logprobs: Tensor, sequence_ids: Tensor, num_sequences: int
    ) -> CorrectionWeights:
        """Weights and metrics of a packed batch of T tokens of S whole completions.

        Args:
            trainer_logprobs: [T] the trainer's log-probabilities at the start of the step, in nats.
            rollout_logprobs: [T] log-probabilities that the sampler reported, in nats.
            sequence_ids: [T] int64 in 0..S-1.
            num_sequences: S.
        """
        log_ratios = (trainer_logprobs - rollout_logprobs).detach()
        if self.level == "sequence":
            reduce = sequence_sums if self.sequence_reduction == "sum" else sequence_means
            raw = bounded(reduce(log_ratios, sequence_ids, num_sequences)).exp()
            measured = sequence_lengths(sequence_ids, num_sequences) > 0
        else:
            raw = bounded(log_ratios).exp()
            measured = torch.ones_like(raw, dtype=torch.bool)
        applied = self._bound(raw)
        weights = applied[sequence_ids] if self.level == "sequence" else applied
        raw, applied = raw[measured], applied[measured]
        means = {
            "rollout_corr/ratio_raw_mean": mean_of(raw),
            "rollout_corr/ratio_mean": mean_of(applied),
            "rollout_corr/masked": mean_of(applied == 0),
            "rollout_corr/kl": mean_of(-log_ratios),
        }
        maxima = {"rollout_corr/ratio_raw_max": _largest(raw), "rollout_corr/ratio_max": _largest(applied)}
        return CorrectionWeights(weights, means, maxima)

    def _bound(self, ratios: Tensor) -> Tensor:
        if self.mode == "off":
            return torch.ones_like(ratios)
        if self.mode == "truncate":
            return ratios.clamp(max=self.threshold)
        return torch.where(ratios > self.threshold, 0, ratios)


def _largest(ratios: Tensor) -> Tensor:
    """The largest ratio; 0 if there are none, which is below every ratio."""
    return torch.cat([ratios, ratios.new_zeros(1)]).max()
