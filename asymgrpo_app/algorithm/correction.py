"""Correction for a sampler whose probabilities differ from the trainer's (another engine, precision, or stale weights).

Token losses are weighted by exp(trainer log-probability - sampler log-probability), truncated or masked. The weights
are constants: they multiply the policy term, not the KL and entropy terms.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asymgrpo_app.algorithm.ratios import bounded
from asymgrpo_app.algorithm.sequences import sequence_means, sequence_sums
from asymgrpo_app.errors import UserError


@dataclass(frozen=True)
class SamplerCorrection:
    """Importance weights against a mismatch between the sampler's and the trainer's probabilities.

    Attributes:
        mode: `off` weighs every token by 1; `truncate` weighs by the ratio, at most `threshold`; `mask` weighs by the
            ratio, and by 0 where it is above `threshold`.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the policy losses in a packed batch of T tokens of S whole completions; not for mode `off`.

        Args:
            trainer_logprobs: [T] the trainer's log-probabilities at the start of the step, in nats.
            rollout_logprobs: [T] log-probabilities that the sampler reported, in nats.
            sequence_ids: [T] int64 in 0..S-1.
            num_sequences: S.

        Returns:
            (weights, ratios, applied), constant: the factor on each token's policy loss, [T]; the ratios before and
            after they are truncated or masked, of tokens [T] or completions [S], depending on `level`.
        """
        log_ratios = (trainer_logprobs - rollout_logprobs).detach()
        if self.level == "sequence":
            reduce = sequence_sums if self.sequence_reduction == "sum" else sequence_means
            log_ratios = reduce(log_ratios, sequence_ids, num_sequences)
        ratios = bounded(log_ratios).exp()
        if self.mode == "truncate":
            applied = ratios.clamp(max=self.threshold)
        else:
            applied = torch.where(ratios > self.threshold, 0, ratios)
        return applied[sequence_ids] if self.level == "sequence" else applied, ratios, applied
