"""Configs, data, models and folders that are missing, broken or used; bad input of the commands beside `fit`."""

import pytest

from tests.bad_inputs.refused import assert_check_says_what_fit_says, assert_refused, run_tables
from tests.bad_inputs.run_all import SOUND, cases

FILES = cases("files")
CHECKED = cases("checked_files")
CASES = FILES | cases("commands")


@pytest.fixture(scope="module")
def results():
    return run_tables("files", "commands")


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_names_key_and_value_and_nothing_is_touched(name, results):
    assert_refused(CASES[name][1], results[name])


@pytest.mark.long
def test_check_says_what_fit_says(results):
    checked = run_tables("checked_files")
    for name, (_, case) in CHECKED.items():
        assert_refused(case, checked[name])
    assert_check_says_what_fit_says({name: results[name] for name in FILES} | checked)


def test_there_are_cases_for_every_command():
    verbs = {arguments[0] for arguments, _ in CASES.values()}
    assert len(CASES) > 150
    assert verbs >= {"fit", "validate", "predict", "score", "audit", "export", "compare"}


def test_a_sound_config_passes_and_touches_nothing_either(results):
    did = results[SOUND]
    assert (did["code"], did["error"], did["crash"]) == (0, "", "")
    assert did["out"].endswith("Nothing stands in the way of this run.\n")
    assert not did["written"]
    assert did["weights"] == []
    assert not did["vllm"]
