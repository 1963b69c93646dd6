"""Reduction of per-token losses to one number: the loss of an update is sum(weights * losses) / divisor.

The divisor is that of the whole update: the sum of `local_divisor` over all its micro-batches and ranks. So the
gradient does not depend on how the update is cut. Only tokens of valid completions are passed in, those with advantage
0 included.
"""

from typing import Literal

import torch
from torch import Tensor

from asymgrpo_app.algorithm.sequences import sequence_lengths

Aggregation = Literal["token", "sequence", "constant"]
"""`token`: mean over all tokens (DAPO; TRL's `dapo`). `sequence`: mean over completions of their token means (TRL's
`grpo`). `constant`: sum over tokens divided by completions times the length limit (Dr.GRPO; TRL's `dr_grpo`)."""


def token_weights(sequence_ids: Tensor, num_sequences: int, mode: Aggregation) -> Tensor:
    """Weight of each token's loss before the division, [T] float32.

    Args:
        sequence_ids: [T] int64 in 0..S-1; every completion is whole.
        num_sequences: S.
        mode: `sequence` weighs a token by 1 / length of its completion, the others by 1.
    """
    if mode == "sequence":
        return sequence_lengths(sequence_ids, num_sequences)[sequence_ids].float().reciprocal()
    return torch.ones_like(sequence_ids, dtype=torch.float32)


def local_divisor(sequence_ids: Tensor, num_sequences: int, mode: Aggregation, max_completion_tokens: int) -> float:
    """Contribution of these tokens to the divisor of their update.

    Args:
        sequence_ids: [T] int64 in 0..S-1.
        num_sequences: S.
        mode: `token` gives T, `sequence` the number of completions with at least one token, `constant`
            S * max_completion_tokens, empty completions included since it does not look at lengths.
        max_completion_tokens: The length limit of completions, in tokens; read by `constant` only.
    """
    if mode == "token":
        return float(sequence_ids.numel())
    if mode == "sequence":
        return float((sequence_lengths(sequence_ids, num_sequences) > 0).sum())
    return float(num_sequences * max_completion_tokens)
