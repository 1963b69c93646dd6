"""Changed inputs are read or refused, whatever is in them."""

import pytest

from tests.security.fuzz.__main__ import TARGETS
from tests.security.fuzz.run import fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_changed_inputs(name):
    figures = fuzz(TARGETS[name], 1, seed=1)
    assert figures.inputs > 10
    assert figures.refused > figures.inputs // 4


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_read_or_refused(name):
    assert fuzz(TARGETS[name], 20).inputs > 100


def test_a_fault_is_named_by_seed_and_number():
    def target(_):
        def attack(draw):
            assert draw.random() < 0.9
            return True

        return attack

    with pytest.raises(AssertionError, match=r"^input (\d+) of seed 3: AssertionError") as failure:
        fuzz(target, 5, seed=3)
    number = int(str(failure.value).split()[1])
    with pytest.raises(AssertionError, match=f"^input {number} of seed 3: "):
        fuzz(target, 0, seed=3, first=number)
    assert fuzz(target, 0, seed=3, first=number - 1).inputs == 1
