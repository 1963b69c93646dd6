import pickle

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import MultipleChoice, Status, Verdict

RIGHT, WRONG = Verdict(correct=True), Verdict(correct=False)
NO_ANSWER = Verdict(correct=False, status=Status.NO_ANSWER)


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{C}",
        r"\boxed{(c)}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{(C)}}",
        r"\boxed{C. Paris}",
        r"A is tempting, but \boxed{C}. The answer is B",  # the box comes first
        "The answer is (C).",
        "Answer: C",
        "**Answer: C**",
        "**Answer:** C",
        "Answer: C. Because A is too small.",
        "The answer is A? No, the answer is C",
        "The correct answer is $C$",
        "The correct choice is **C**",
        "Option C is right\nA is wrong.",  # the phrase comes before the last line
        "I think\n\nC\n",
        "First A, then B.\nSo C.",
        "(c)",
        "(C) Paris",
        "c",
        "c) Paris",
        "The correct answer is c.",
        "It is not hard to see that it is C",
        "C: Paris",
        "A cat would say C",  # A is a word here
    ],
)
def test_the_chosen_letter_is_right(completion: str) -> None:
    assert MultipleChoice().verify(completion, {"answer": "C"}) == RIGHT
    assert MultipleChoice().verify(completion, {"answer": "(D)"}) == WRONG


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n",
        "Canada",
        "none of them",
        "A or C",
        "both (A) and (C)",
        "the answer is C or D",
        "C, not D",
        "AC",
        r"\boxed{A, C} C",
        r"\boxed{AC}",
        r"\boxed{} C",
        r"\boxed{E}",
        "E",
        "A car is red",
        "The answer is a car",
        "\uff23",
        "\u0421",
        "x_C",
        "C3",
    ],
)
def test_no_or_several_letters_are_no_answer(completion: str) -> None:
    assert MultipleChoice().verify(completion, {"answer": "C"}) == NO_ANSWER


@pytest.mark.parametrize(
    "completion",
    [
        "9" * 1_000_000,
        "answer is " * 100_000,
        "A " * 500_000,
        "(" * 1_000_000,
        r"\boxed{" * 100_000,
        "\x00",
        "\ud800",
        r"\text{" * 100_000,
        r"\boxed{" + r"\text{" * 2_000 + "}",
        "__import__('os')",
        "B" * 1_000_000,
    ],
)
def test_hostile_completions_are_not_right(completion: str) -> None:
    assert not MultipleChoice().verify(completion, {"answer": "C"}).correct


def test_other_choices() -> None:
    verifier = MultipleChoice(choices="AI")
    assert verifier.verify("The answer is I", {"answer": "I"}) == RIGHT
    assert verifier.verify("The answer is C", {"answer": "I"}) == NO_ANSWER


def test_check_row() -> None:
    for answer in ("C", "(C)", "c", r"\text{C}"):
        MultipleChoice().check_row({"answer": answer})
    for answer in (None, 3, "", "E", "AB"):
        with pytest.raises(ValueError, match=r'^"answer" must be one of the letters ABCD, not '):
            MultipleChoice().check_row({"answer": answer})


@pytest.mark.parametrize("choices", ["", "A", "AA", "abc", "A1", "A B", "\u0410\u0412"])
def test_bad_choices(choices: str) -> None:
    with pytest.raises(UserError, match=r"^choices must be two or more different capital letters, not "):
        MultipleChoice(choices=choices)


def test_runs_in_the_training_process_and_travels() -> None:
    assert not MultipleChoice.isolated
    assert pickle.loads(pickle.dumps(MultipleChoice("AB"))).choices == "AB"  # noqa: S301 (our own bytes)


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is not C.",
        "The answer isn't C.",
        "It cannot be C",
        r"\boxed{\text{not C}}",
        "Neither C",
        "Not (C)",
        "C is wrong.",
        "C can't be it.",
    ],
)
def test_a_letter_that_is_ruled_out_is_not_chosen(completion: str) -> None:
    assert MultipleChoice().find_answer(completion, {"answer": "C"}) is None
