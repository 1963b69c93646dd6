"""Reward functions in the form of TRL as verifiers."""

import asyncio
import json
import os
import socket

import numpy as np
import pytest
import torch

from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import JsonLines
from asymgrpo_app.rewards import ExactMatch, FunctionVerifier, Status, Verdict, score
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig

ROW = {"prompt": "2+2>", "answer": "4", "level": 3}
GRADED = (
    "the reward 0.5 is neither 0 nor 1, as a share of right answers needs: set threshold, the least that is right; "
    "form is for model.shaping (docs/verifiers.md)"
)


def correct(prompts, completions, answer, **kwargs):
    assert prompts == ["2+2>"]
    assert kwargs == {"level": [3]}
    return [1.0 if text == right else 0.0 for text, right in zip(completions, answer, strict=True)]


def without_others(completions, answer):
    return [completions[0] == answer[0]]


def of_messages(completions, answer, **kwargs):
    assert completions[0][0]["role"] == "assistant"
    return [float(completions[0][0]["content"] == answer[0])]


async def slow(completions, answer, **kwargs):
    await asyncio.sleep(0.01)
    return [float(completions[0] == answer[0])]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        yield pool


FORMS = {
    "columns": FunctionVerifier(correct),
    "by name": FunctionVerifier(f"{__name__}.correct"),
    "named arguments alone": FunctionVerifier(without_others),
    "messages": FunctionVerifier(of_messages, completions="messages"),
    "async": FunctionVerifier(slow),
    "another field": FunctionVerifier(lambda prompts, completions, **_: [completions == ["4"]], prompt_field="answer"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_function_is_called_as_in_trl(name, pool):
    verdicts = score(FORMS[name], ["4", "5"], [ROW, ROW], pool)
    assert verdicts == [Verdict(correct=True), Verdict(correct=False)]
    assert pool.check([FORMS[name]], [ROW]) == [None]


@pytest.mark.parametrize("kind", [int, float, bool, np.bool_, np.float32, torch.tensor])
def test_one_is_right_and_zero_is_wrong(kind):
    assert FunctionVerifier(lambda completions: [kind(1)]).verify("", ROW) == Verdict(correct=True)
    assert FunctionVerifier(lambda completions: [kind(0)]).verify("", ROW) == Verdict(correct=False)


def returns(value):
    def rewarded(completions):
        return value

    return FunctionVerifier(rewarded)


FAILURES = {
    "graded": ([0.5], f"ValueError: {GRADED}"),
    "above one": ([2], "ValueError: the reward 2 is neither 0 nor 1"),
    "negative": ([-1.0], "ValueError: the reward -1 is neither 0 nor 1"),
    "no number": ([float("nan")], "ValueError: the reward nan is neither 0 nor 1"),
    "text": (["1"], "TypeError: rewarded must return numbers, got str"),
    "not judged": ([None], "rewarded returned None: not judged"),
    "one number": (1.0, "TypeError: rewarded must return a list with one reward for one completion"),
    "nothing": (None, "TypeError: rewarded must return a list with one reward for one completion"),
    "two rewards": ([1, 0], "TypeError: rewarded must return a list with one reward for one completion"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_no_verdict_is_an_error(name, pool):
    value, told = FAILURES[name]
    (verdict,) = score(returns(value), ["4"], [ROW], pool)
    assert (verdict.correct, verdict.status) == (False, Status.ERROR)
    assert verdict.detail.startswith(told)


def test_a_threshold_makes_graded_rewards_right_or_wrong():
    rewards = {"a": 0.49, "b": 0.5, "c": 7.0}
    verifier = FunctionVerifier(lambda completions: [rewards[completions[0]]], threshold=0.5)
    assert [verifier.verify(text, ROW).correct for text in rewards] == [False, True, True]
    with pytest.raises(ValueError, match="the reward nan is neither 0 nor 1"):
        FunctionVerifier(lambda completions: [float("nan")], threshold=0.5).verify("", ROW)


def needs_solution(completions, solution):
    return [1]


def needs_prompts(prompts, completions):
    return [1]


def partly(completions, **kwargs):
    return [0.5 if completions[0] == "4" else 0]


ROWS = {
    "a field is missing": (needs_solution, ROW, "needs_solution asks for solution, the row has answer, level, prompt"),
    "the prompt is elsewhere": (
        needs_prompts,
        {"question": "2+2>", "answer": "4"},
        "needs_prompts asks for prompts (prompt_field names the field of the prompt), the row has answer, question",
    ),
    "graded": (partly, ROW, f"partly: {GRADED}"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_the_function_cannot_judge_are_refused(name, pool):
    function, row, told = ROWS[name]
    assert pool.check([FunctionVerifier(function)], [row]) == [told]


def test_only_the_first_row_is_tried():
    calls = []
    verifier = FunctionVerifier(lambda completions: calls.append(completions) or [0])
    for _ in range(3):
        verifier.check_row(ROW)
    assert calls == [[""], ["4"]]


BAD = {
    "no module": ("correct", "function must be named by its module and name, e.g. my_rewards.correct, got 'correct'."),
    "a model": ("org/reward-model", "function must be named by its module and name, e.g. my_rewards.correct, got"),
    "no such module": ("no_such.function", "function no_such.function cannot be loaded: No module named 'no_such'."),
    "no such name": (
        "json.nothing",
        "function json.nothing cannot be loaded: module 'json' has no attribute 'nothing'.",
    ),
    "a class": ("json.JSONDecoder", "function must be a function that returns rewards, got json.JSONDecoder."),
    "a list": ([correct], "function must be a function that returns rewards, got [<function correct"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_function_is_refused(name):
    given, told = BAD[name]
    with pytest.raises(UserError) as error:
        FunctionVerifier(given)
    assert str(error.value).startswith(told)


def test_what_a_verifier_does_not_have_is_refused():
    with pytest.raises(UserError, match="asks for completion_ids, trainer_state, which a verifier does not have"):
        FunctionVerifier(lambda completions, completion_ids, trainer_state: [1])
    assert FunctionVerifier(lambda completions, trainer_state=None: [1]).verify("", ROW).correct
    for settings in ({"threshold": float("inf")}, {"completions": "chat"}):
        with pytest.raises(UserError, match=f"{next(iter(settings))} of FunctionVerifier must be"):
            FunctionVerifier(correct, **settings)


def test_functions_run_where_verifiers_run():
    assert FunctionVerifier.isolated

    def connects(completions):
        socket.create_connection(("127.0.0.1", 9))
        return [1]

    def pid(completions):
        return [os.getpid() != parent]

    parent = os.getpid()
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        assert score(FunctionVerifier(pid), ["4"], [ROW], pool) == [Verdict(correct=True)]
        assert "`sandbox: false`" in score(FunctionVerifier(connects), ["4"], [ROW], pool)[0].detail


HINT = (
    "; a reward function goes into asymgrpo_app.rewards.FunctionVerifier, and what scores form or length into "
    "model.shaping (docs/verifiers.md)."
)


@pytest.mark.parametrize("given", [correct, [correct, of_messages], ExactMatch, "my_rewards.correct"])
def test_what_is_no_verifier_is_refused_in_python(given, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW))
    for owner, use in (
        ("JsonLines", lambda: JsonLines(str(path), verifier=given)),
        ("score", lambda: score(given, [], [])),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value).startswith(f"verifier of {owner} must be an object of a Verifier class, got ")
        assert str(error.value).endswith(HINT)


MODULE = """
def correct(prompts, completions, answer, **kwargs):
    return [float(text == right) for text, right in zip(completions, answer)]

def graded(completions, **kwargs):
    return [0.5]
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Arguments for `check` in a folder with `own_rewards.py` and rows."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return ["--data.train=JsonLines", "--data.train.path=rows.jsonl"]


def checked(quickstart, config, *more) -> int:
    return main(["check", *quickstart[1:], *config, *(f"--data.train.verifier{argument}" for argument in more)])


def test_a_function_is_named_in_a_config(quickstart, config, capsys):
    named = ["=FunctionVerifier", ".function=own_rewards.correct"]
    assert checked(quickstart, config, *named) == 0
    capsys.readouterr()
    graded = ["=FunctionVerifier", ".function=own_rewards.graded"]
    assert checked(quickstart, config, *graded) == 2
    assert f"rows.jsonl, line 1: FunctionVerifier cannot judge this row: graded: {GRADED}.\n" in capsys.readouterr().err
    assert checked(quickstart, config, *graded, ".threshold=0.5") == 0


ELSEWHERE = {
    "a function": ("--data.train.verifier=own_rewards.correct", "data.train.verifier must name a class of the kind"),
    "two functions": (
        "--data.train.verifier=[own_rewards.correct, own_rewards.graded]",
        "data.train.verifier must name",
    ),
    "reward_funcs": ("--data.train.reward_funcs=[own_rewards.correct]", "data.train has no option reward_funcs, got"),
    "reward_weights": ("--model.reward_weights=[0.5, 0.5]", "--model.reward_weights is no option"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_rewards_of_other_programs_get_a_hint(name, quickstart, config, capsys):
    argument, told = ELSEWHERE[name]
    assert main(["check", *quickstart[1:], *config, argument]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"asymgrpo: error: {told}")
    assert said.endswith(f"{HINT}\n")
