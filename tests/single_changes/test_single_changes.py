"""Random single changes to the quick start's config and environment: what `check` passes, `fit` does."""

import pytest

from tests.single_changes.promise import main


def test_what_check_passes_fit_does():
    assert main(6, 0) == 0


@pytest.mark.long
def test_what_check_passes_fit_does_for_fifty_random_changes():
    assert main(50, None) == 0
