import pytest
import torch

from asymgrpo_app.algorithm.advantages import asym_advantages
from asymgrpo_app.algorithm.overlong import overlong_penalty, shaped_advantages


def test_penalty_by_hand() -> None:
    lengths = torch.tensor([[0, 1, 12, 13], [14, 15, 16, 17]])
    expected = [[0, 0, 0, -0.25], [-0.5, -0.75, -1, -1]]
    assert overlong_penalty(lengths, max_tokens=16, buffer=4).tolist() == expected
    assert overlong_penalty(torch.tensor([0, 8, 16]), max_tokens=16, buffer=16).tolist() == [0, -0.5, -1]
    assert overlong_penalty(torch.tensor([15, 16, 17]), max_tokens=16, buffer=1).tolist() == [0, -1, -1]


@pytest.mark.parametrize("buffer", [0, 17])
def test_buffer_outside_the_limit_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match=rf"buffer must be in 1..16 \(max_tokens\), got {buffer}"):
        overlong_penalty(torch.tensor([1]), max_tokens=16, buffer=buffer)


def test_penalty_comes_after_accuracy_and_leaves_dropped_groups_alone() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    valid = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4, [True] * 4])
    lengths = torch.tensor([[14, 16, 2, 16], [16, 2, 2, 13], [16, 16, 16, 16], [16, 2, 16, 2]])
    advantages = asym_advantages(rewards, 0.9, 0.4, valid=valid)
    shaped = shaped_advantages(advantages, overlong_penalty(lengths, 16, 4), valid)
    # One of three right, then three of four: a right one that is too long ends below 0.
    assert shaped[0].tolist() == pytest.approx([2**0.9 - 0.5, -(2**-0.4) - 1, -(2**-0.4), 0])
    assert shaped[1].tolist() == pytest.approx([3**-0.9 - 1, 3**-0.9, 3**-0.9, -(3**0.4) - 0.25])
    assert shaped[1, 0] < 0
    assert shaped[2:].abs().max() == 0
