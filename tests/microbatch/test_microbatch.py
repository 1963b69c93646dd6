"""Cutting an update into forward passes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asymgrpo_app.microbatch.microbatch import TokenSequence, build, cut_by_tokens


@given(st.lists(st.integers(2, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_cut_keeps_every_sequence_once_and_within_the_budget(lengths, budget):
    groups = cut_by_tokens(lengths, budget)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[place] for place in group)
        assert padded <= budget or len(group) == 1


def test_cut_puts_like_lengths_together_longest_first():
    assert cut_by_tokens([3, 10, 4, 10], 20) == [[1, 3], [2, 0]]


def test_build_pads_on_the_right_and_points_at_the_predicting_positions():
    sequences = [TokenSequence([5, 6, 7], [8, 9]), TokenSequence([4], [3, 2, 1])]
    batch = build(sequences, [1, 0])
    assert batch.input_ids.tolist() == [[4, 3, 2, 1, 0], [5, 6, 7, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.predictors.tolist() == [0, 1, 2, 5 + 2, 5 + 3]
    assert batch.targets.tolist() == [3, 2, 1, 8, 9]
    assert batch.sequence_ids.tolist() == [0, 0, 0, 1, 1]
    # What stands at a predictor's place is the token just before its target.
    assert batch.input_ids.flatten()[batch.predictors].tolist() == [4, 3, 2, 7, 8]
    assert batch.targets.dtype == torch.int64
