import os
import pickle

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import MathVerifier, Status, Verdict
from asymgrpo_app.rewards.latex import MAX_ANSWER_CHARS

RIGHT, WRONG = Verdict(correct=True), Verdict(correct=False)
NO_ANSWER = Verdict(correct=False, status=Status.NO_ANSWER)

# A reference and another way to write the same answer. The references are forms that data sets of problems hold.
EQUAL = [
    (r"\frac 59", "5/9"),
    (r"\frac{5}{9}", r"\dfrac{10}{18}"),
    (r"\frac34", "0.75"),
    ("0.5", r"\frac12"),
    (r"2\frac{1}{3}", r"\frac73"),
    (r"-2\frac{1}{3}", r"-\frac73"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"\frac{1}{3}", "0.333333"),
    (r"\sqrt{2}", "1.41421356"),
    ("3.14159265", r"\pi"),
    (r"5\%", "5"),
    (r"5\%", "0.05"),
    ("0.05", r"5\%"),
    (r"90^\circ", "90"),
    ("90", r"90^{\circ}"),
    (r"\$32,\!348", "32348"),
    (r"11,\! 111,\! 111,\! 100", "11,111,111,100"),
    (r"1\,234", "1234"),
    ("025", "25"),
    ("-5", "\u22125"),
    (r"1.5\times 10^{-3}", "0.0015"),
    ("2^{10}", "1024"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"2(3)", "6"),
    (r"\log_2 8", "3"),
    (r"\sqrt[3]{8}", "2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
    (r"\frac\pi 2", r"\frac{1}{2}\pi"),
    (r"1.5\pi", r"\frac{3\pi}{2}"),
    (r"\frac{1}{13} - \frac{5}{13}i", r"\frac{1-5i}{13}"),
    ("(1+i)^2", "2i"),
    (r"\text{Monday}", "monday"),
    ("(A)", r"\text{A}"),
    (r"\textbf{(C)}", "C"),
    (r"\text{A, D}", "D and A"),
    (r"\text{two lines}", "two lines"),
    ("2:30", r"2:30 \text{ p.m.}"),
    (r"4\!:\!51\!:\!06 \text{ p.m.}", "4:51:06 PM"),
    (r"05\!:\!00", "5:00"),
    ("3:1", "3/1"),
    ("4210_{5}", "4210_5"),
    (r"\text{A5}_{11}", "A5_{11}"),
    (r"10\text{ cm}", "10"),
    ("10", r"10\text{ inches}"),
    (r"2400 \mbox{ cm}^2", r"2400\text{ square centimeters}"),
    (r"240\text{ ways.}", "240"),
    (r"\approx 8.24 \text{ mph}", "8.24"),
    (r"x \in [-2,7]", "[-2, 7]"),
    ("[-2,7]", r"x\in\left[-2,7\right]"),
    ("[-2,7]", r"-2\leq x\leq 7"),
    (r"(-\infty,3)\cup(3,\infty)", r"\left(-\infty, 3\right) \cup (3,\infty)"),
    (r"\left( \frac{3}{2}, 4 \right)", "(1.5,4)"),
    ("1,2", r"\{2, 1\}"),
    (r"-12 \text{ or } -30", "-30, -12"),
    (r"2, 3, \text{ and } 4", "4,3,2"),
    (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    (r"\begin{pmatrix} -1/2 \\ 5/2 \end{pmatrix}", r"\begin{bmatrix} -0.5 \\ 2.5 \end{bmatrix}"),
    (r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}", r"\begin{pmatrix}1&-1\\1&1\end{pmatrix}"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("y = 2x+3", "y=3+2x"),
    ("y = 2x+3", "2x+3"),
    ("f(x)=x+1", "f(x) = 1+x"),
    ("x + y - z + 1 = 0", "z - x - y = 1"),
    ("AB=9, CD=4", "CD = 4, AB = 9"),
    (r"(x+1)^2", "x^2+2x+1"),
    (r"\sin^2 x+\cos^2 x", "1"),
    ("x>3", "3<x"),
]

DIFFERENT = [
    ("1", "2"),
    ("4210_5", "4210_6"),
    ("4210_5", "4210"),
    ("4210", "4210_5"),
    ("12_5", "7"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("[1,2)", "(1,2]"),
    ("(3,4)", r"\{3,4\}"),
    ("1,234", "1, 234"),
    ("1,2", "1,2,3"),
    ("0.0000001", "0.0000002"),
    (r"\frac13", "0.333"),
    (r"\frac{\pi}{10^9}", "0.0"),
    (r"\frac{\sqrt2}{10^{20}}", r"\frac{\sqrt3}{10^{20}}"),
    ("2:30", "1:15"),
    (r"8:34\text{ p.m.}", r"8:34\text{ a.m.}"),
    ("3", "3m"),
    ("2t", "2"),
    (r"10\text{ cm}", r"10\text{ inches}"),
    (r"\text{Monday}", r"\text{Tuesday}"),
    (r"\text{Softball, Kickball}", r"\text{Kickball, Softball}"),
    ("A", "B"),
    ("LQSX", "QLSX"),
    (r"5\%", "500"),
    (r"5\%", r"500\%"),
    ("x=5", "y=5"),
    ("2(3)", "5"),
    (r"2\frac{7}{3}", r"\frac{13}{3}"),
    (r"\frac 123", "1/23"),
    (r"1\,234", "235"),
    ("11", "5 6"),
    (r"\sqrt2", "1.414"),
    (r"\sqrt{2}", r"\sqrt{3}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\infty", r"-\infty"),
    (r"\cos 2x", r"\cos 2"),
    (r"x\le 3", "x<3"),
    (r"\frac{1}{7}x", r"\frac{1}{7}"),
    ("y=2x+3", "y=2x-3"),
]


def boxed(answer: str) -> str:
    return rf"Since $6 \cdot 7 = 42$, the answer is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(("reference", "given"), EQUAL)
def test_another_spelling_of_the_same_value_is_right(reference: str, given: str) -> None:
    row = {"answer": reference}
    MathVerifier().check_row(row)
    assert MathVerifier().verify(boxed(given), row) == RIGHT
    assert MathVerifier().verify(boxed(reference), row) == RIGHT


@pytest.mark.parametrize(("reference", "given"), DIFFERENT)
def test_another_value_is_wrong(reference: str, given: str) -> None:
    assert MathVerifier().verify(boxed(given), {"answer": reference}) == WRONG


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The total is 1,234 apples.", "1234"),
        ("so $x = 2\\sqrt{3}$.", r"2\sqrt{3}"),
        (r"Hence the answer is \(\pi\).", r"\pi"),
        ("#### 42", "42"),
        (r"Not \boxed{1} but \boxed{2}", "2"),
        (r"\boxed{1}, \boxed{2}", "1,2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\fbox{6}", "6"),
    ],
)
def test_the_answer_is_found(completion: str, answer: str) -> None:
    assert MathVerifier().verify(completion, {"answer": answer}) == RIGHT


@pytest.mark.parametrize("completion", ["", "no idea", r"\boxed{}", r"\boxed{ }", "\u0663", "nan"])
def test_without_an_answer(completion: str) -> None:
    assert MathVerifier().verify(completion, {"answer": "3"}) == NO_ANSWER


def test_a_number_outside_a_box_does_not_count_where_a_box_is_asked_for() -> None:
    assert MathVerifier(extract="boxed").verify("It is 3.", {"answer": "3"}) == NO_ANSWER
    assert MathVerifier(extract="boxed").verify(r"\boxed{3}, not 4.", {"answer": "3"}) == RIGHT


HOSTILE = [
    "9^{9^{9^{9}}}",
    "9**9**9",
    "(9^9)^{9^9}",
    "((9!)!)!",
    "999999!",
    "2^{999999999}",
    "2^{99999}",
    r"\binom{999999999}{499999999}",
    r"\binom{9^9}{9^8}",
    r"\sqrt[9^9]{2}",
    r"e^{e^{e^{9}}}",
    r"\exp(\exp(\exp(9)))",
    "(x+y+z+w)^{40}",
    "(x+1)^{99999}",
    "9" * 1_000_000,
    "1e999999999",
    "{" * 400 + "}" * 400,
    "(" * 400 + "1" + ")" * 400,
    r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\frac{" * 150,
    "-" * 900 + "1",
    "1" + "+1" * 400,
    r"\{" + "1," * 300 + r"1\}",
    "x=" * 300 + "1",
    r"\cup".join(["(1,2)"] * 120),
    r"\begin{pmatrix}" + "&".join("1" * 300) + r"\end{pmatrix}",
    r"\operatorname{eye}(99999)",
    r"\operatorname{zeros}(99999,99999)",
    r"\sum_{n=0}^{\infty}\frac{1}{n!}",
    r"\prod_{n=1}^{999999999} n",
    r"\int_0^1 x^{x^x} dx",
    "4\x002",
    "4\ud8002",
    "\uff14\uff12",
    "\u0664\u0662",
    "\\",
    "^",
    "}{",
    r"\frac{}{}",
    r"\frac{1}{0}",
    r"\infty-\infty",
    r"(x^2+1)^{30}=(y+1)^{30}",
    r"\phantom" * 100,
    r"\left" * 190,
]


@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("reference", ["41", r"\frac{\sqrt{2}}{2}", "y=2x+3", "(1,3)"])
def test_hostile_answers_are_wrong(answer: str, reference: str) -> None:
    assert not MathVerifier().verify(rf"\boxed{{{answer}}}", {"answer": reference}).correct
    assert not MathVerifier().verify(answer, {"answer": reference}).correct


def test_nothing_is_executed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch = "__import__(chr(111)+chr(115)).system(chr(62)+chr(120))"  # os.system(">x")
    for form in ("{}", r"\text{{{}}}", r"\variable{{{}}}", r"\overline{{{}}}", r"\operatorname{{{}}}(1)"):
        attack = form.format(touch)
        for answer in (attack, rf"\sum_{{n=0}}^{{\infty}}\frac{{{attack}^n}}{{n!}}", f"{attack}+1", f"1+{attack}"):
            assert MathVerifier().verify(rf"\boxed{{{answer}}}", {"answer": "1"}) == WRONG
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, '"answer" must be a string with at least one visible character'),
        ({"answer": " \n"}, '"answer" must be a string with at least one visible character'),
        ({"answer": 42}, '"answer" must be a string with at least one visible character'),
        ({"answer": "1" * (MAX_ANSWER_CHARS + 1)}, '"answer" has 1,001 characters, more than 1,000'),
        ({"answer": "4\x00"}, '"answer" holds control characters or broken Unicode'),
        ({"answer": "$$"}, "\"answer\" is '$$', which holds no answer"),
        ({"answer": "3 +"}, "\"answer\" is '3 +', which cannot be read as mathematics or as words"),
        (
            {"answer": r"\frac{1}{2"},
            "\"answer\" is '\\\\frac{1}{2', which cannot be read as mathematics or as words: "
            "its braces are not balanced",
        ),
        (
            {"answer": r"\mho ABC = 90"},
            "\"answer\" is '\\\\mho ABC = 90', which cannot be read as mathematics or as words: "
            "it holds \\mho, which is not read",
        ),
    ],
)
def test_check_row_refuses(row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        MathVerifier().check_row(row)
    assert str(error.value) == message


def test_a_reference_that_check_row_refuses_is_still_right_when_spelled_the_same() -> None:
    answer = r"\frac{1}{7}\triangle ABC"
    assert MathVerifier().verify(rf"\boxed{{{answer}}}", {"answer": answer}) == RIGHT


def test_runs_in_a_worker() -> None:
    assert MathVerifier.isolated
    assert pickle.loads(pickle.dumps(MathVerifier(extract="boxed"))).extract == "boxed"  # noqa: S301 (our own bytes)


def test_bad_option() -> None:
    with pytest.raises(UserError, match='extract must be "boxed" or "boxed_or_last", not \'last\''):
        MathVerifier(extract="last")  # type: ignore[arg-type]
