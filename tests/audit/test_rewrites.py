"""What each rewrite makes of references of each kind."""

from dataclasses import replace

import pytest

from asymgrpo_app.audit.audit import BUILT_IN
from asymgrpo_app.audit.near_misses import wrong_answers
from asymgrpo_app.audit.problems import AnswerKind, Problem, kind_of, other_answers
from asymgrpo_app.audit.rewrites import RewriteKind
from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.rewards import CountdownVerifier, ExactMatch
from asymgrpo_app.rewards.numbers import parse_number

BY_NAME = {rewrite.name: rewrite for rewrite in BUILT_IN}
COUNTDOWN = {"numbers": [2, 5, 3], "target": 13}


def _problem(answer, form="{answer}", other="", **row):
    row = {"answer": answer, **row}
    prompt = Prompt("here/1", "What is it?", row, ExactMatch())
    problem = Problem(prompt, answer, kind_of(answer, row), form, accepted=True, other=other)
    return replace(problem, wrong=wrong_answers(problem))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("61", AnswerKind.NUMBER),
        ("-1,234.5", AnswerKind.NUMBER),
        (r"\frac{3}{4}", AnswerKind.NUMBER),
        ("3/4", AnswerKind.NUMBER),
        (r"15\%", AnswerKind.NUMBER),
        ("C", AnswerKind.CHOICE),
        ("(C)", AnswerKind.CHOICE),
        ("C.", AnswerKind.CHOICE),
        ("x", AnswerKind.FORMULA),
        ("-29i", AnswerKind.FORMULA),
        ("75 cm", AnswerKind.TEXT),
        ("x^2+1", AnswerKind.FORMULA),
        (r"2\sqrt{3}", AnswerKind.FORMULA),
        ("(1,2)", AnswerKind.FORMULA),
        ("3+5*2", AnswerKind.FORMULA),
        ("Buenos Aires", AnswerKind.TEXT),
    ],
)
def test_the_kind_of_a_reference(answer, kind):
    assert kind_of(answer, {}) is kind


def test_an_expression_is_one_of_a_row_with_numbers_and_a_target():
    assert kind_of("3+5*2", COUNTDOWN) is AnswerKind.EXPRESSION
    assert kind_of("no", COUNTDOWN) is AnswerKind.TEXT


@pytest.mark.parametrize(
    ("name", "answer", "texts"),
    [
        ("spaces around", "61", ["  61 ", "\n61\n"]),
        ("full stop after", "61", ["61."]),
        ("full stop after", "C", []),
        ("between dollars", "61", ["$61$"]),
        (r"\displaystyle", "61", [r"\displaystyle 61"]),
        (r"in \text", "61", [r"\text{61}"]),
        (r"in \text", r"\frac{1}{2}", []),
        ("leading plus", "61", ["+61"]),
        ("leading plus", "-61", []),
        ("trailing zeros", "61", ["61.0", "61.00"]),
        ("trailing zeros", "0.5", ["0.50", "0.500"]),
        ("trailing zeros", "3/4", []),
        ("leading zero", "0.5", [".5"]),
        ("leading zero", "-.5", ["-0.5"]),
        ("leading zero", "10.5", []),
        ("thousands separators", "-12345.5", ["-12,345.5"]),
        ("thousands separators", "999", []),
        ("thousands separators", "1,234", []),
        ("thousands separators of LaTeX", "1,234", ["1{,}234"]),
        ("thin spaces for thousands", "1234567", [r"1\,234\,567"]),
        ("no thousands separators", "1,234", ["1234"]),
        ("no thousands separators", "1234", []),
        ("minus signs", "-5", ["−5", "- 5"]),
        ("minus signs", "5", []),
        ("exact decimal", r"\frac{3}{4}", ["0.75"]),
        ("exact decimal", "-1/8", ["-0.125"]),
        ("exact decimal", r"2\frac{1}{20}", ["2.05"]),
        ("exact decimal", "1/3", []),
        ("exact decimal", "61", []),
        (r"as \frac", "-0.75", [r"-\frac{3}{4}"]),
        (r"as \frac", r"\frac{3}{4}", []),
        ("fraction with a slash", r"\frac{3}{4}", ["3/4"]),
        ("unreduced fraction", "3/4", [r"\frac{6}{8}"]),
        (r"\dfrac and \tfrac", r"\frac{3}{4}", [r"\dfrac{3}{4}", r"\tfrac{3}{4}"]),
        (r"\dfrac and \tfrac", r"\dfrac{x}{4}", [r"\frac{x}{4}"]),
        (r"\left and \right", "(1,2)", [r"\left(1,2\right)"]),
        (r"\left and \right", r"\left(1,2\right)", ["(1,2)"]),
        (r"\left and \right", "(0,1]", []),
        ("spaces in a formula", "x^2+1", ["x^2 + 1"]),
        ("unit as plain text", r"75\text{ cm}", ["75 cm"]),
        ("unit as plain text", "x^2", []),
        (r"unit in \text", "75 cm", [r"75\text{ cm}"]),
        ("letter in brackets", "C", ["(C)", "C.", "C)"]),
        ("letter in brackets", "(C)", ["C", "C.", "C)"]),
        (r"letter in \text", "C", [r"\text{C}", r"\textbf{(C)}"]),
        ("other case", "Oslo", ["OSLO", "oslo"]),
        ("1 more", "61", ["62"]),
        ("1 more", "-0.05", ["0.95"]),
        ("1 more", r"\frac{3}{4}", ["7/4"]),
        ("1 more", "5%", []),
        ("1 less", "0.05", ["-0.95"]),
        ("1 less", "1,234.50", ["1233.50"]),
        ("opposite sign", "61", ["-61"]),
        ("opposite sign", "-61", ["61"]),
        ("opposite sign", "0", []),
        ("ten times", "61", ["610"]),
        ("ten times", "0", []),
        ("ten times", "6.1", []),
        ("another letter", "(C)", ["(A)", "(B)", "(D)"]),
        ("another last digit", "x^2", []),
        ("another last digit", r"75\text{ cm}", []),
        ("a word left out", "Buenos Aires", ["Buenos"]),
        ("a word left out", "Oslo", []),
        ("another row's answer", "61", []),
        ("nothing", "61", [""]),
    ],
)
def test_texts(name, answer, texts):
    assert BY_NAME[name].texts(_problem(answer)) == texts


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("spaces in an expression", ["3 + 5 * 2"]),
        ("terms swapped", ["5*2+3"]),
        ("another operator", ["3+5+2"]),
        ("a number left out", ["3+5"]),
        ("a number used again", ["3+5*2+2-2"]),
        ("the target alone", ["13"]),
    ],
)
def test_texts_of_expressions(name, texts):
    problem = _problem("3+5*2", **COUNTDOWN)
    assert BY_NAME[name].texts(problem) == texts
    right = BY_NAME[name].kind is RewriteKind.EQUAL
    assert [CountdownVerifier().verify(text, problem.row).correct for text in texts] == [right] * len(texts)


def test_the_last_digit_is_another_one_and_depends_on_the_seed():
    def changed(answer, seed=0):
        return BY_NAME["another last digit"].texts(replace(_problem(answer), seed=seed))[0]

    assert len({changed("132", seed) for seed in range(100)}) == 9
    assert all(changed("132", seed)[:2] == "13" and changed("132", seed) != "132" for seed in range(100))
    assert changed("132", 5) == changed("132", 5)
    assert changed("x^2+1")[:4] == "x^2+"


NUMBERS = ["61", "-7", "0", "100", "0.5", "-0.25", ".75", "1,234.5", "12345", "-987654", "3/4", r"\frac{1}{8}", "5%"]
NUMBERS += [r"-\frac{22}{7}", r"2\frac{1}{3}", "1.5e3", "0.333333"]


@pytest.mark.parametrize("answer", NUMBERS)
def test_spellings_keep_the_value_and_near_misses_do_not(answer):
    problem = _problem(answer, other="17")
    value = parse_number(answer).value
    read = [(rewrite, text) for rewrite in BUILT_IN if rewrite.in_form for text in rewrite.texts(problem)]
    values = [(rewrite, number.value) for rewrite, text in read if (number := parse_number(text)) is not None]
    assert {rewrite.kind for rewrite, _ in values} == {RewriteKind.EQUAL, RewriteKind.NEAR_MISS}
    assert [
        rewrite.name for rewrite, number in values if (number == value) != (rewrite.kind is RewriteKind.EQUAL)
    ] == []


@pytest.mark.parametrize(
    ("name", "completions"),
    [
        ("several answers", ["<61 or 62>", "<61> or <62>", "<62 or 61>", "<62> or <61>"]),
        ("a right answer that is taken back", ["<61>\nNo, that is wrong.\n<62>"]),
        ("two wrong boxes", [r"\boxed{62} \boxed{17}"]),
        ("a right box before a wrong one", [r"\boxed{61}. No, it is \boxed{62}."]),
        ("a right box in thoughts alone", ["<think>\\boxed{61}?</think>\nI do not know."]),
        ("a box in a box", [r"\boxed{62, \boxed{61}}", r"\boxed{\boxed{61}, 62}"]),
        ("the prompt again", ["What is it?"]),
        ("the prompt as the answer", ["<What is it?>"]),
        ("no answer", ["I do not know.", "<>"]),
        ("all letters", []),
        ("white space", [" \n\t\n "]),
    ],
)
def test_hacks(name, completions):
    assert BY_NAME[name].completions(_problem("61", "<{answer}>", other="17")) == completions


def test_hacks_that_are_long():
    problem = _problem("61", "<{answer}>")
    wrong, right_first = BY_NAME["thousands of boxes"].completions(problem)
    assert wrong.count(r"\boxed{62}") == 3000
    assert (right_first.count(r"\boxed{61}"), right_first.endswith(r"\boxed{62}")) == (3000, True)
    _, opened = BY_NAME["boxes that are not closed"].completions(problem)
    assert opened == r"\boxed{" * 3000
    assert len(BY_NAME["a very long text"].completions(problem)[0].split()) == 40_000


def test_lists_begin_with_the_right_answer_and_end_with_a_wrong_one():
    assert BY_NAME["all letters"].completions(_problem("(E)", "<{answer}>"))[0] == "<(E), A, B, C, D>"
    for answer, last in (("61", "100"), ("100", "99")):
        together, boxed = BY_NAME["the numbers 0 to 100"].completions(_problem(answer, "<{answer}>"))
        assert together.startswith(f"<{answer}, 0, 1, ")
        assert together.endswith(f", {last}>")
        assert boxed.count(r"\boxed{") == 101


def test_wrong_answers_are_a_near_one_and_another_rows():
    assert wrong_answers(_problem("61", other="17")) == ["62", "17"]
    assert wrong_answers(_problem("61")) == ["62", "60"]
    assert wrong_answers(_problem("61", other="62")) == ["62"]
    assert wrong_answers(_problem("")) == []


def test_another_rows_answer_is_no_other_spelling_of_ones_own():
    answers = [r"\frac{1}{2}", "0.5", "1/2", "C", "(C)", "x + 1", "$x+1$", "Oslo"]
    others = other_answers(answers, [{}] * len(answers), seed=0)
    values = [0, 0, 0, 1, 1, 2, 2, 3]
    assert all(values[answers.index(other)] != value for other, value in zip(others, values, strict=True))
    assert other_answers(["0.5", "1/2"], [{}, {}], seed=0) == ["", ""]
    row = {"numbers": [1, 2], "target": 3}
    assert other_answers(["1+2", "2+1"], [row, row], seed=0) == ["", ""]


def test_every_name_is_another_one():
    assert len(BY_NAME) == len(BUILT_IN)
