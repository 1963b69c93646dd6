"""Changed files are read or refused, whatever is in them."""

import pytest

from tests.security.fuzz import TARGETS, fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_changed_files(name):
    figures = fuzz(name, 1, seed=1)
    assert figures.inputs > 20
    assert figures.refused > figures.inputs // 4


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    assert fuzz(name, 20).inputs > 500
