import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import ExactMatch, Status, Verdict


@pytest.mark.parametrize(
    ("completion", "answer", "correct"),
    [
        ("42", "42", True),
        (" 42\n", "42", True),
        ("42", "\t42 ", True),
        ("42.", "42", False),
        ("4 2", "42", False),
        ("The answer is 42", "42", False),
        ("paris", "Paris", False),
        ("٤٢", "42", False),
    ],
)
def test_equal_up_to_white_space_around(completion: str, answer: str, correct: bool) -> None:
    assert ExactMatch().verify(completion, {"answer": answer}) == Verdict(correct=correct, status=Status.OK)


def test_case_is_ignored_on_request() -> None:
    loose = ExactMatch(case_sensitive=False)
    assert loose.verify("PARIS", {"answer": "Paris"}) == Verdict(correct=True)
    assert loose.verify("STRASSE", {"answer": "Straße"}) == Verdict(correct=True)
    assert loose.verify("London", {"answer": "Paris"}) == Verdict(correct=False)


@pytest.mark.parametrize("completion", ["", " ", "\n\t"])
@pytest.mark.parametrize("case_sensitive", [True, False])
def test_an_empty_completion_is_no_answer(completion: str, case_sensitive: bool) -> None:
    verdict = ExactMatch(case_sensitive=case_sensitive).verify(completion, {"answer": "42"})
    assert verdict == Verdict(correct=False, status=Status.NO_ANSWER)


def test_check_row_accepts_a_string() -> None:
    ExactMatch().check_row({"answer": "42"})


@pytest.mark.parametrize("row", [{}, {"answer": ""}, {"answer": " \n"}, {"answer": 42}, {"answer": None}])
def test_check_row_refuses_what_no_completion_can_equal(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match='"answer" must be a string'):
        ExactMatch().check_row(row)


def test_what_a_box_holds() -> None:
    verifier = ExactMatch(extract="boxed")
    assert verifier.verify(r"It is \boxed{ Paris }.", {"answer": "Paris"}) == Verdict(correct=True)
    assert verifier.verify(r"It is \boxed{Rome}.", {"answer": "Paris"}) == Verdict(correct=False)
    assert verifier.verify("Paris", {"answer": "Paris"}) == Verdict(correct=False, status=Status.NO_ANSWER)
    with pytest.raises(UserError, match='extract must be "whole" or "boxed", not \'last\''):
        ExactMatch(extract="last")  # type: ignore[arg-type]
