"""Sums over the tokens of each sequence of a packed batch."""

import torch
from torch import Tensor


def sequence_sums(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Sum of `values` [T] within each sequence, [S], in the dtype of `values`; `sequence_ids` [T] is in 0..S-1."""
    return values.new_zeros(num_sequences).index_add(0, sequence_ids, values)


def sequence_lengths(sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Number of tokens of each sequence, [S] int64."""
    # Not `bincount`, which waits for a GPU to learn the largest index.
    return sequence_sums(torch.ones_like(sequence_ids), sequence_ids, num_sequences)


def sequence_means(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Mean of `values` [T] within each sequence, [S]; 0 for a sequence without tokens."""
    lengths = sequence_lengths(sequence_ids, num_sequences).clamp(min=1)
    return sequence_sums(values, sequence_ids, num_sequences) / lengths
