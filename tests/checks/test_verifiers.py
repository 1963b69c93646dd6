"""Verifiers are called before a run: what they return, raise and call right."""

import json
import time

import pytest

from asymgrpo_app import PromptDataModule
from asymgrpo_app.checks.data import check_data
from asymgrpo_app.datamodule import EvaluationSet
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Countdown, JsonLines, Mixture
from asymgrpo_app.prompts.mixture import WeightedSource
from asymgrpo_app.rewards import ExactMatch, MathVerifier, MultipleChoice, NumericMatch, RegexMatch, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPoolConfig
from tests.support.paths import POLICY
from tests.support.refusals import refusal
from tests.support.trial_verifiers import (
    Hangs,
    HangsHere,
    LastLine,
    Lenient,
    LoopsHere,
    NeedsColumn,
    OfNumPy,
    OwnForm,
    Returns,
    ReturnsHere,
)

MUST = "; it must return a Verdict with True or False for any completion."
QUICK = VerifierPoolConfig(workers=1, timeout_s=1.0)


@pytest.fixture
def source(tmp_path):
    """A source of one row, with an answer and a verifier."""

    def make(verifier, answer="4", **more) -> JsonLines:
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps({"prompt": "2+2>", "answer": answer, **more}) + "\n")
        return JsonLines(str(path), verifier=verifier)

    return make


@pytest.fixture
def check():
    modules = []

    def run(train, **settings) -> list[str]:
        given = {"prompts_per_step": 1, "verifiers": QUICK, **settings}
        modules.append(PromptDataModule(POLICY, train, max_prompt_tokens=20, **given))
        return check_data(modules[-1], training=train is not None)

    yield run
    for module in modules:
        module.close()


def refused(check, *arguments, **settings) -> str:
    with pytest.raises(UserError) as raised:
        check(*arguments, **settings)
    return str(raised.value)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("none", "None, not a Verdict"),
        ("bool", "True (bool), not a Verdict"),
        ("number", "0.5 (float), not a Verdict"),
        ("text", "'correct' (str), not a Verdict"),
        ("class", "an object of the type type, not a Verdict"),
        ("graded", "a Verdict whose correct is 0.5 (float), not True or False"),
        ("integer", "a Verdict whose correct is 1 (int), not True or False"),
        ("nothing", "a Verdict whose correct is None, not True or False"),
    ],
)
@pytest.mark.parametrize("kind", [Returns, ReturnsHere])
def test_what_is_no_verdict_is_refused(kind, what, said, source, check, tmp_path):
    assert refused(check, source(kind(what))) == (
        f"data.train: the verifier {kind.__name__} does not work: TypeError: verify returned {said} "
        f"({tmp_path}/mine.jsonl, line 1, completion '\\\\boxed{{4}}'){MUST}"
    )


def test_a_wrong_answer_is_tried_too(source, check):
    said = refused(check, source(Returns("none", boxed=False)))
    assert "verify returned None, not a Verdict" in said
    assert "completion '4')" in said


def test_truth_values_of_numpy_are_truth_values(source, check):
    assert check(source(OfNumPy())) == []


def test_an_empty_completion_is_tried_too(source, check, tmp_path):
    assert refused(check, source(LastLine())) == (
        "data.train: the verifier LastLine does not work: IndexError: list index out of range "
        f"({tmp_path}/mine.jsonl, line 1, completion ''){MUST}"
    )


def test_a_column_that_is_not_there(source, check, tmp_path):
    assert refused(check, source(NeedsColumn())) == (
        'data.train: the verifier NeedsColumn does not work: KeyError: \'tests\', the row has ["prompt", "answer"] '
        f"({tmp_path}/mine.jsonl, line 1, completion '\\\\boxed{{4}}'){MUST}"
    )
    assert check(source(NeedsColumn(), tests=["4"])) == []


@pytest.mark.parametrize(
    ("kind", "late"),
    [
        (Hangs, "took longer than 2 s, 5 times its 0.4 CPU seconds"),
        (HangsHere, "took longer than 2 s, 5 times its 0.4 CPU seconds"),
        (LoopsHere, "ran longer than 0.4 CPU seconds"),
    ],
)
def test_a_verifier_that_hangs_is_waited_for_once(kind, late, source, check):
    began = time.monotonic()
    hasty = VerifierPoolConfig(workers=1, timeout_s=0.4)
    assert f"the verifier {kind.__name__} does not work: {late} " in refused(check, source(kind()), verifiers=hasty)
    assert time.monotonic() - began < 5


def test_a_verifier_that_takes_long_is_called_twice(source, check, monkeypatch, tmp_path):
    monkeypatch.setattr("asymgrpo_app.checks.verifiers.LONG_S", 0.0)
    calls = tmp_path / "calls"
    monkeypatch.setattr(ExactMatch, "verify", lambda *given: calls.open("a").write(f"{given[1]!r} ") and Verdict(False))
    assert check(source(ExactMatch())) == []
    assert calls.read_text() == r"'\\boxed{4}' '' "


def test_every_evaluation_set_and_every_part_of_a_mixture(source, check):
    sets = {"mine": EvaluationSet(source(Returns("none")))}
    assert refused(check, None, validation=sets).startswith("data.validation.mine: the verifier Returns does not work")
    rare = Mixture(
        [WeightedSource(Countdown(), 1000), WeightedSource(Mixture([WeightedSource(source(NeedsColumn()))]), 1)]
    )
    assert refused(check, rare).startswith("data.train: the verifier NeedsColumn does not work: KeyError: 'tests'")


def test_an_empty_completion_that_is_right_is_a_warning(source, check, tmp_path):
    assert check(source(Lenient())) == [
        f"WARNING: data.train: Lenient calls an empty completion right ({tmp_path}/mine.jsonl, line 1)."
    ]


def test_a_verifier_with_a_form_of_its_own_is_left_alone(source, check):
    assert check(source(OwnForm())) == []


@pytest.mark.parametrize(
    ("verifier", "answer"),
    [
        (ExactMatch(), "some text"),
        (ExactMatch(extract="boxed"), "4"),
        (MathVerifier(), r"\frac{1}{2}"),
        (MultipleChoice(), "B"),
        (NumericMatch(), "1,234.5"),
        (RegexMatch(r"#### (\d+)"), "4"),
    ],
)
def test_verifiers_of_the_package_take_their_references(verifier, answer, source, check):
    assert check(source(verifier, answer)) == []


def test_countdown_takes_numbers_and_target(check):
    assert check(Countdown()) == []


def test_a_reference_that_no_answer_meets_is_a_warning(source, check, tmp_path, monkeypatch):
    monkeypatch.setattr(ExactMatch, "judge", lambda *_: Verdict(correct=False))
    assert check(source(ExactMatch(), "5 apples")) == [
        "WARNING: data.train: ExactMatch does not take the reference itself for a right answer, neither as it is nor "
        f"in \\boxed{{}} ({tmp_path}/mine.jsonl, line 1): '5 apples'."
    ]


@pytest.mark.parametrize("command", ["fit", "check", "validate"])
def test_the_commands_refuse(command, source, quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source(None)
    own = {"class_path": "tests.support.trial_verifiers.Returns", "init_args": {"what": "number"}}
    chosen = {"class_path": "JsonLines", "init_args": {"path": "mine.jsonl", "verifier": own}}
    given = json.dumps({"mine": {"source": chosen}}) if command == "validate" else "{}"
    data = [f"--data.validation={given}"] + ([] if command == "validate" else [f"--data.train={json.dumps(chosen)}"])
    key = "data.validation.mine" if command == "validate" else "data.train"
    assert refusal([command, *quickstart[1:], *data], capsys).startswith(
        f"asymgrpo: error: {key}: the verifier Returns does not work: TypeError: verify returned 0.5 (float), not a "
    )
    assert not (tmp_path / "runs").exists()
