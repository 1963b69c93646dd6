"""The second verifier is called before a run."""

import json

import pytest

from asymgrpo_app import PromptDataModule, VLLMRolloutCallback
from asymgrpo_app.checks import second_opinion
from asymgrpo_app.checks.second_opinion import check_second_opinion
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import JsonLines
from asymgrpo_app.rewards import ExactMatch, NumericMatch, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPoolConfig
from asymgrpo_app.rollout.second_opinion import SecondOpinion
from tests.support.paths import POLICY
from tests.support.refusals import refusal
from tests.support.trial_verifiers import Lenient, ReturnsHere


class GivenTrainer:
    def __init__(self, *callbacks):
        self.callbacks = list(callbacks)


@pytest.fixture
def check(tmp_path):
    """The notes on a second verifier, for a source with these answers."""
    modules = []

    def run(first, second, *answers) -> list[str]:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps({"prompt": "2+2>", "answer": answer}) + "\n" for answer in answers or "4"))
        quick = VerifierPoolConfig(workers=1, timeout_s=1.0)
        modules.append(PromptDataModule(POLICY, JsonLines(str(path), verifier=first), 4, verifiers=quick))
        opinion = None if second is None else SecondOpinion(second)
        return check_second_opinion(modules[-1], GivenTrainer(VLLMRolloutCallback(second_opinion=opinion)))

    yield run
    for module in modules:
        module.close()


def test_two_that_go_together_say_nothing(check):
    assert check(NumericMatch(), NumericMatch(extract="boxed_or_last", rel_tolerance=0.1)) == []
    assert check(NumericMatch(), None) == []


def test_what_is_no_verdict_is_refused(check, tmp_path):
    with pytest.raises(UserError) as raised:
        check(ExactMatch(), ReturnsHere("none", boxed=False))
    assert str(raised.value) == (
        "rollout.second_opinion.verifier: the verifier ReturnsHere does not work: TypeError: verify returned None, not "
        f"a Verdict ({tmp_path}/mine.jsonl, line 1, completion ''); it must return a Verdict with True or False for "
        "any completion."
    )


def test_rows_that_it_cannot_judge_are_counted(check, tmp_path):
    place = f"the first: {tmp_path}/mine.jsonl, line "
    reads = "cannot judge 4 of 8 rows, whose answers get no second opinion, "
    assert check(NumericMatch(), NumericMatch(rel_tolerance=0.1), "4", "5") == []
    notes = check(ExactMatch(extract="boxed"), NumericMatch(), "4", "four", "5", "five")
    assert notes[0].startswith(f"rollout.second_opinion: NumericMatch {reads}{place}")
    with pytest.raises(UserError) as raised:
        check(ExactMatch(), NumericMatch(), "four")
    assert str(raised.value).startswith(
        f"rollout.second_opinion.verifier: NumericMatch cannot judge any of 8 rows of data.train, {place}1: "
    )


def test_a_right_answer_on_which_the_two_differ_is_a_warning(check, tmp_path):
    assert check(NumericMatch(), ExactMatch()) == [
        "WARNING: rollout.second_opinion: ExactMatch calls wrong what NumericMatch calls right, the reference itself "
        f"({tmp_path}/mine.jsonl, line 1), given back as '\\\\boxed{{4}}': such answers count as disagreement."
    ]


def test_the_same_verifier_once_more_is_a_warning(check):
    assert check(NumericMatch(), NumericMatch()) == [
        "WARNING: rollout.second_opinion: NumericMatch is the verifier of data.train itself, so it agrees with it "
        "always."
    ]


def test_an_empty_completion_that_is_right_is_a_warning(check, tmp_path):
    assert check(ExactMatch(), Lenient())[0] == (
        "WARNING: rollout.second_opinion.verifier: Lenient calls an empty completion right "
        f"({tmp_path}/mine.jsonl, line 1)."
    )


def test_one_that_takes_long_is_called_once(check, monkeypatch, tmp_path):
    monkeypatch.setattr(second_opinion, "LONG_S", 0.0)
    calls = []
    monkeypatch.setattr(NumericMatch, "verify", lambda *given: calls.append(given[1]) or Verdict(False))
    assert check(ExactMatch(), NumericMatch()) == []
    assert calls == [""]


@pytest.mark.parametrize("command", ["fit", "check"])
def test_the_commands_refuse(command, quickstart, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    second = {"class_path": "tests.support.trial_verifiers.ReturnsHere", "init_args": {"what": "number"}}
    given = f"--rollout.second_opinion={json.dumps({'verifier': second})}"
    assert refusal([command, *quickstart[1:], given], capsys).startswith(
        "asymgrpo: error: rollout.second_opinion.verifier: the verifier ReturnsHere does not work: TypeError: verify "
    )
    assert not (tmp_path / "runs").exists()
