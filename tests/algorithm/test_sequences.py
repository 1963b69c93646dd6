import torch

from asymgrpo_app.algorithm.sequences import sequence_lengths, sequence_means, sequence_sums

VALUES, IDS = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 2])  # completions 1 and 3 have no tokens


def test_sums_lengths_and_means_by_hand() -> None:
    assert sequence_sums(VALUES, IDS, 4).tolist() == [2, 0, 13, 0]
    assert sequence_lengths(IDS, 4).tolist() == [1, 0, 3, 0]
    assert sequence_means(VALUES, torch.tensor([2, 0, 0, 2]), 4).tolist() == [3, 0, 4.5, 0]


def test_means_keep_the_dtype_of_the_values() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert sequence_means(VALUES.to(dtype), IDS, 4).dtype == dtype
