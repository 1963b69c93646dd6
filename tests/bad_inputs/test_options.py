"""Values of the wrong type, out of range, and in conflict."""

import pytest

from tests.bad_inputs.refused import assert_check_says_what_fit_says, assert_refused, run_tables
from tests.bad_inputs.run_all import cases

CASES = cases("options")


@pytest.fixture(scope="module")
def results():
    return run_tables("options")


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_names_key_and_value_and_nothing_is_touched(name, results):
    assert_refused(CASES[name][1], results[name])


def test_there_are_hundreds_of_cases():
    assert len(CASES) > 280


def test_check_says_what_fit_says(results):
    assert_check_says_what_fit_says({name: results[name] for name in CASES})
