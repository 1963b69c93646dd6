"""Bad input ends with one sentence and code 2, before anything is written, and without vLLM or a model's weights."""

import json
import subprocess
import sys

import pytest

from asymgrpo_app.parser_messages import plain
from tests.bad_inputs.run_all import SOUND, cases
from tests.conftest import REPOSITORY

PROCESSES = 2
CASES = cases()


@pytest.fixture(scope="module")
def results():
    """What every case did, from processes of their own: in this one another test may have imported vLLM."""
    command = [sys.executable, "-m", "tests.bad_inputs.run_all"]
    running = [
        subprocess.Popen(
            [*command, str(part), str(PROCESSES)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PROCESSES)
    ]
    found = {}
    for process in running:
        out, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
        found |= json.loads(out)
    return found


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_names_key_and_value_and_nothing_is_touched(name, results):
    case, did = CASES[name][1], results[name]
    assert did["crash"] == ""
    assert did["code"] == 2
    assert did["out"] == ""
    (line,) = did["error"].splitlines()
    assert line.startswith("asymgrpo: error: ")
    for told in case.told:
        assert told in line
    assert "typing." not in line
    assert "<class" not in line
    assert not did["written"]
    assert case.opens or did["weights"] == []
    assert not did["vllm"]


def test_there_are_cases_for_every_command():
    assert len(CASES) > 400
    verbs = {arguments[0] for arguments, _ in CASES.values()}
    assert verbs >= {"fit", "check", "validate", "predict", "score", "export", "compare"}


def test_check_says_what_fit_says(results):
    pairs = [(name, f"fit:{name.removeprefix('check:')}") for name in CASES if name.startswith("check:")]
    assert len(pairs) > 100
    # `check` looks at every row, and counts the broken ones before it names them.
    sentences = {name: results[name]["error"].removeprefix("asymgrpo: error: ").strip() for name in CASES}
    assert [name for name, fit in pairs if sentences[fit] not in sentences[name]] == []


def test_a_sound_config_passes_and_touches_nothing_either(results):
    did = results[SOUND]
    assert (did["code"], did["error"], did["crash"]) == (0, "", "")
    assert did["out"].endswith("Nothing stands in the way of this run.\n")
    assert not did["written"]
    assert did["weights"] == []
    assert not did["vllm"]


MESSAGES = {
    "Parser key \"steps\": Expected a <class 'int'>. Got value: 1.5": "steps must be a whole number, got 1.5.",
    "Parser key \"model.attention\": Expected a typing.Literal['sdpa', 'eager']. Got value: flash": (
        "model.attention must be one of sdpa, eager, got flash."
    ),
    'Parser key "data.verifiers.workers":\n  Does not validate against any of the Union subtypes\n'
    "  Subtypes: [<class 'int'>, <class 'NoneType'>]\n  Errors:\n    - Expected a <class 'int'>\n"
    "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: 1.5": (
        "data.verifiers.workers must be a whole number, got 1.5."
    ),
    "something else\nthat nobody foresaw": "something else that nobody foresaw",
    'Parser key "a": in words that nobody foresaw': "a: in words that nobody foresaw",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_parser_in_plain_words(message):
    assert plain(message) == MESSAGES[message]
