import pickle

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import RegexMatch, Status, Verdict

TAGGED = r"<answer>(.*?)</answer>"
NO_ANSWER = Verdict(correct=False, status=Status.NO_ANSWER)


@pytest.mark.parametrize(
    ("options", "completion", "answer", "correct"),
    [
        ({"pattern": TAGGED}, "<answer> Paris </answer>", "Paris", True),
        ({"pattern": TAGGED}, "<answer>Rome</answer> no, <answer>Paris</answer>", "Paris", True),
        ({"pattern": TAGGED}, "<answer>Paris</answer> no, <answer>Rome</answer>", "Paris", False),
        ({"pattern": TAGGED}, "<answer>paris</answer>", "Paris", False),
        ({"pattern": TAGGED, "case_sensitive": False}, "<ANSWER>PARIS</ANSWER>", "Paris", True),
        ({"pattern": r"#### (-?[0-9]+)"}, "#### -7", "-7", True),
        ({"pattern": r"[0-9]+", "group": 0}, "1 2 3", "3", True),
        ({"pattern": r"(?P<key>\w+)=(?P<value>\w+)", "group": "value"}, "a=b", "b", True),
        ({"pattern": TAGGED}, "<answer>4\x00\ud8002</answer>", "42", False),
        ({"pattern": TAGGED}, "<answer>__import__('os').getpid()</answer>", "1", False),
        ({"pattern": TAGGED}, "<answer>" + "9" * 1_000_000 + "</answer>", "9", False),
        ({"pattern": r"([0-9]+)"}, "\u0664\u0662", "42", False),
    ],
)
def test_the_last_match_decides(options: dict[str, object], completion: str, answer: str, correct: bool) -> None:
    verdict = RegexMatch(**options).verify(completion, {"answer": answer})  # type: ignore[arg-type]
    assert verdict.correct is correct


@pytest.mark.parametrize(
    "completion", ["", "Paris", "<answer></answer>", "<answer> </answer>", "<answer>a\nb</answer>"]
)
def test_without_a_match(completion: str) -> None:
    assert RegexMatch(TAGGED).verify(completion, {"answer": "Paris"}) == NO_ANSWER


def test_a_group_that_took_no_part_is_no_answer() -> None:
    assert RegexMatch(r"x|(y)").verify("y x", {"answer": "y"}) == NO_ANSWER


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pattern": "(a"},
            r"pattern '(a' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ({"pattern": "a"}, "pattern 'a' has no group 1"),
        ({"pattern": "(a)", "group": 2}, "pattern '(a)' has no group 2"),
        ({"pattern": "(a)", "group": -1}, "pattern '(a)' has no group -1"),
        ({"pattern": "(?P<x>a)", "group": "y"}, "pattern '(?P<x>a)' has no group 'y'"),
    ],
)
def test_bad_patterns(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        RegexMatch(**options)  # type: ignore[arg-type]
    assert str(error.value) == message


@pytest.mark.parametrize("row", [{}, {"answer": ""}, {"answer": " "}, {"answer": 42}])
def test_check_row_refuses_what_no_completion_can_equal(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r'^"answer" must be a string with at least one visible character$'):
        RegexMatch(TAGGED).check_row(row)


def test_runs_in_a_worker() -> None:
    assert RegexMatch.isolated
    assert pickle.loads(pickle.dumps(RegexMatch(TAGGED))).pattern == TAGGED  # noqa: S301 (our own bytes)
