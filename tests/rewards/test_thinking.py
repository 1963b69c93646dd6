import pytest

from asymgrpo_app.rewards import CountdownVerifier, ExactMatch, MathVerifier, MultipleChoice, NumericMatch, Status
from asymgrpo_app.rewards.base import Verifier

VERIFIERS = [
    MathVerifier(),
    MathVerifier(extract="boxed"),
    NumericMatch(),
    NumericMatch(extract="boxed"),
    ExactMatch(extract="boxed"),
]


@pytest.mark.parametrize("verifier", VERIFIERS, ids=lambda verifier: f"{type(verifier).__name__}-{verifier.extract}")
@pytest.mark.parametrize(
    ("completion", "status", "correct"),
    [
        (r"<think>\boxed{7}</think> \boxed{5}", Status.OK, True),
        (r"<think>\boxed{5}</think> \boxed{7}", Status.OK, False),
        (r"\boxed{7}</think> \boxed{5}", Status.OK, True),
        (r"<think>\boxed{5}</think> That is all.", Status.NO_ANSWER, False),
        (r"<think>it may be \boxed{5}", Status.NO_ANSWER, False),
        (r"</think> \boxed{5} <think> or \boxed{7}", Status.OK, True),
        (r"<think>a</think> b <think>\boxed{5}</think> c", Status.NO_ANSWER, False),
    ],
)
def test_thinking_is_not_the_answer(verifier: Verifier, completion: str, status: Status, correct: bool) -> None:
    verdict = verifier.verify(completion, {"answer": "5"})
    assert (verdict.status, verdict.correct) == (status, correct)


@pytest.mark.parametrize("verifier", [MathVerifier(), NumericMatch(), NumericMatch(extract="last")])
def test_numbers_without_a_box_are_no_answer_in_thinking(verifier: Verifier) -> None:
    assert verifier.verify("<think>so it is 5", {"answer": "5"}).status is Status.NO_ANSWER
    assert verifier.verify("<think>so it is 7</think> 5", {"answer": "5"}).correct
    assert not verifier.verify("<think>so it is 5</think> 7", {"answer": "5"}).correct


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        (r"<think>The answer is B.</think> The answer is C.", "C"),
        (r"<think>\boxed{B}</think> C", "C"),
        ("<think>The answer is C.", None),
        ("<think>(C)</think> I do not know.", None),
    ],
)
def test_letters_in_thinking_are_not_chosen(completion: str, letter: str | None) -> None:
    assert MultipleChoice().find_answer(completion, {"answer": "C"}) == letter


def test_countdown_takes_no_thinking() -> None:
    verdict = CountdownVerifier().verify("<think>1+2</think>1+2", {"numbers": [1, 2], "target": 3})
    assert verdict.status is Status.NO_ANSWER
