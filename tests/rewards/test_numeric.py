import pickle
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import NumericMatch, Status, Verdict
from asymgrpo_app.rewards.numbers import parse_number

RIGHT, WRONG = Verdict(correct=True), Verdict(correct=False)
NO_ANSWER = Verdict(correct=False, status=Status.NO_ANSWER)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so 5", "5"),
        ("first 4, then 5.", "5"),
        ("$1,000 in total", "1000"),
        (r"\boxed{1,234.50}", "1234.5"),
        (r"\boxed{1,\!234}", "1234"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{\$5}", "5"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{5 square cm}", "5"),
        (r"\boxed{-5^\circ}", "-5"),
        (r"\boxed{\frac{1}{3}} and 7 more", "1/3"),
        ("-3/4", r"-\frac{3}{4}"),
        (r"2\frac{1}{2}", "2.5"),
        ("1e3", "1000"),
        (r"1.5 \times 10^{-3}", "0.0015"),
        ("50%", "0.5"),
        ("50", "50%"),
        ("\u22127", "-7"),
        ("2^3", "8"),
        (r"\boxed{2^{3}}", "8"),
        ("1 234 567", "1234567"),
        ("3½", "3.5"),
        ("x = - 2", "-2"),
        ("it is -2", "-2"),
    ],
)
def test_the_same_number_is_right(completion: str, answer: str) -> None:
    row = {"answer": answer}
    NumericMatch().check_row(row)
    assert NumericMatch().verify(completion, row) == RIGHT


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("6", "5"),
        ("-5", "5"),
        ("5.000001", "5"),
        ("50%", "5"),
        ("500%", "50%"),
        ("0.333", "1/3"),
        ("0.05%", "0.05"),
        ("2^5", "5"),
    ],
)
def test_another_number_is_wrong(completion: str, answer: str) -> None:
    assert NumericMatch().verify(completion, {"answer": answer}) == WRONG


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "none",
        "nan",
        "inf",
        "-Infinity",
        "\u0663",
        "x2",
        r"\boxed{}",
        r"\boxed{2x} 5",
        r"\boxed{2\sqrt{3}}",
        r"\boxed{3, 4}",
        r"\boxed{5 5}",
        r"\boxed{five} 5",
        "7 - 5",
        "2^3 + 5",
        "10:5",
        r"\sqrt{5}",
        "\u0665",
    ],
)
def test_without_a_number(completion: str) -> None:
    assert NumericMatch().verify(completion, {"answer": "5"}) == NO_ANSWER


@pytest.mark.parametrize(
    ("tolerances", "answer", "right", "wrong"),
    [
        ({"abs_tolerance": 0.5}, "10", "10.5", "10.51"),
        ({"rel_tolerance": 0.01}, "200", "198", "197.9"),
        ({"rel_tolerance": 0.01}, "-200", "-202", "202"),
        ({"rel_tolerance": 0.125, "abs_tolerance": 2.0}, "8", "10", "10.1"),
        ({"rel_tolerance": 0.5}, "0", "0.0", "1e-1000"),
    ],
)
def test_tolerance(tolerances: dict[str, float], answer: str, right: str, wrong: str) -> None:
    verifier = NumericMatch(**tolerances)
    assert verifier.verify(right, {"answer": answer}) == RIGHT
    assert verifier.verify(wrong, {"answer": answer}) == WRONG


def test_extract() -> None:
    completion = r"\boxed{5}, that is 6"
    for extract, answer in (("boxed", "5"), ("boxed_or_last", "5"), ("last", "6")):
        assert NumericMatch(extract=extract).verify(completion, {"answer": answer}) == RIGHT
    assert NumericMatch(extract="boxed").verify("5", {"answer": "5"}) == NO_ANSWER


@pytest.mark.parametrize(
    "number", ["1e999999999", "1e-999999999", "1e1001", "9" * 1_000_000, "1/0", "0." + "0" * 2_000 + "1"]
)
def test_numbers_beyond_the_limits_are_wrong(number: str) -> None:
    assert NumericMatch(rel_tolerance=1.0).verify(f"it is {number}", {"answer": "5"}) == WRONG


@pytest.mark.parametrize(
    "completion",
    [
        "1," * 500_000,
        "1/" * 500_000,
        "1e" * 500_000,
        "-" * 1_000_000,
        r"\boxed{" * 100_000,
        "{" * 1_000_000,
        r"\boxed{" + "9" * 1_000_000 + "}",
        "\x00",
        "\ud800",
        r"\frac{" * 100_000,
        "9**9**9**9",
    ],
)
def test_hostile_completions_are_not_right(completion: str) -> None:
    assert not NumericMatch().verify(completion, {"answer": "5"}).correct


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_decimals(number: Decimal) -> None:
    text = str(number)
    assert parse_number(text) is not None or abs(number.adjusted()) > 900
    if parse_number(text) is not None:
        assert parse_number(text).value == number  # type: ignore[union-attr]
        assert NumericMatch().verify(rf"The answer is \boxed{{{text}}}.", {"answer": text}) == RIGHT


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_integers_and_fractions(top: int, bottom: int) -> None:
    verifier = NumericMatch()
    assert verifier.verify(f"so it is {top:,} in all", {"answer": str(top)}) == RIGHT
    assert verifier.verify(f"so it is {top}/{bottom}", {"answer": rf"\frac{{{3 * top}}}{{{3 * bottom}}}"}) == RIGHT
    assert verifier.verify(f"so it is {top + 1}", {"answer": str(top)}) == WRONG


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_verdict(text: str) -> None:
    verdict = NumericMatch().verify(text, {"answer": "123456789.5"})
    assert not verdict.correct or "123456789.5" in text.replace(",", "")


@pytest.mark.parametrize("answer", [None, 5, "", "five", "nan", "inf", "3, 4", "1/0", "1e9999", "9" * 3_000])
def test_check_row_refuses_what_is_no_number(answer: object) -> None:
    with pytest.raises(ValueError, match=r'^"answer" must be a string that holds one number, not '):
        NumericMatch().check_row({"answer": answer})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rel_tolerance": -0.1}, "rel_tolerance must be a finite number of 0 or above, not -0.1"),
        ({"abs_tolerance": float("nan")}, "abs_tolerance must be a finite number of 0 or above, not nan"),
        ({"extract": "first"}, 'extract must be "boxed_or_last", "boxed" or "last", not \'first\''),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        NumericMatch(**options)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_runs_in_the_training_process_and_travels() -> None:
    assert not NumericMatch.isolated
    assert pickle.loads(pickle.dumps(NumericMatch(abs_tolerance=0.5))).abs_tolerance == 0.5  # noqa: S301 (our own bytes)


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("135", r"\boxed{\text{135}}", True),
        ("135", r"\boxed{\displaystyle 135}", True),
        ("135", r"\boxed{\text{135 cm}}", True),
        ("135", r"\boxed{\text{about 135}}", False),
        ("10098", "It is 10{,}098", True),
        ("10098", r"It is 10\,098.", True),
        ("62", "It is 61 or 62", False),
        ("62", "It is 61, or **62**.", False),
        ("62", "What is half of 124, is it 62?", False),
        ("4", "What is 2 + 2? It is 4.", True),
        ("7", "Is it 6? No, it is 7. Sure?", True),
    ],
)
def test_upright_numbers_thousands_of_latex_hedging_and_questions(answer: str, completion: str, right: bool) -> None:
    assert NumericMatch().verify(completion, {"answer": answer}).correct is right


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("42", r"It is \boxed{42}.", True),
        ("42", r"It is \text{42}", True),
        ("2", r"It is \sqrt{2}", False),
        ("2", r"It is \sqrt 2", False),
        ("2", r"It is \binom{5}{2}", False),
        ("2", r"It is x^{2}", False),
        ("2", r"It is x_2", False),
    ],
)
def test_the_last_number_in_a_box_is_one_and_in_an_expression_is_none(
    answer: str, completion: str, right: bool
) -> None:
    assert NumericMatch(extract="last").verify(completion, {"answer": answer}).correct is right
