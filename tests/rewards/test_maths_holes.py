r"""Kinds of verdicts that a policy could win by, and ordinary spellings that must be right."""

import pytest

from asymgrpo_app.rewards import MathVerifier, Status

WRONG = [
    (r"2^{200}-1", r"2^{200}"),
    (r"3^{150}+1", r"3^{150}"),
    (r"200!", r"200!+1"),
    (r"e^{-200}", r"e^{-201}"),
    (r"\frac{e^{-120}}{3}", r"\frac{e^{-120}}{2}"),
    (r"\binom{200}{100}", r"\binom{200}{100}+1"),
    (r"\sqrt{3^{400}+1}", r"3^{200}"),
    (r"\pi+10^{-60}", r"\pi"),
    (r"x+10^{-80}", r"x"),
    (r"n2^{300}+1", r"n2^{300}"),
    (r"\frac{\pi}{10^{60}}", r"\frac{e}{10^{60}}"),
    (r"\frac13", r"E_3-\frac13"),
    (r"\frac{3}{4}", r"i_1+\frac34"),
    (r"\frac{2}{7}", r"\cos^3(x)+\frac{2}{7}"),
    (r"\frac{2}{7}", r"[\frac{2}{7}"),
    (r"3", r"√13"),
    (r"\cos 20^\circ", r"\cos 20"),
    (r"\tan 15°", r"\tan 15"),
    (r"3", r"3x=3"),
    (r"3", r"x-1=3"),
    (r"3", r"x^3=3"),
    (r"3", r"2=3"),
    (r"3", r"\sqrt{x+1}=3"),
    (r"3", r"e^x=3"),
    (r"3", r"\sin x=3"),
    (r"x^2+1=0", r"x^2+2=0"),
    (r"x^2+x+5=0", r"x^2+x+7=0"),
    (r"x^4+1=0", r"x^4+3=0"),
    (r"a+b=2i", r"a+b=3i"),
    (r"z^2=i, z=1", r"z^2=-i, z=1"),
    (r"3\text{ thousand}", r"3\text{ million}"),
    (r"60\text{ km/h}", r"60\text{ m/s}"),
    (r"60\text{ mph}", r"60\text{ km/h}"),
    (r"7", r"7\text{ is not correct}"),
    (r"7", r"7\text{ or so}"),
    (r"7", r"7 or 8"),
    (r"7", r"7\text{ thousand}"),
    (r"7", r"7 million"),
    (r"0.3", r"0.3\%"),
    (r"0.12", r"0.12 percent"),
    (r"5 \text{ apples}", r"5\text{ oranges}"),
    (r"\$5", r"€5"),
    (r"5\text{ kg}", r"5\text{ g}"),
    (r"9", r"3:9"),
    (r"i_2", r"i_3"),
    (r"\pi(R^2-r^2)", r"0"),
    (r"R-r", r"0"),
    (r"\gamma", r"0.5772156649015329"),
    (r"f'", r"f"),
    (r"y'", r"y"),
    (r"2\cos(\pi t+\pi/0)", r"1"),
    (r"1", r"2\cos(\pi t+\pi/0)"),
    (r"5", r"\frac{5}{0}\cdot 0"),
    (r"(1,2)", r"1,2,3"),
    (r"(1,2]", r"(1,2)"),
    (r"x<3", r"x\le 3"),
    (r"x<3", r"x<3,x>5"),
    (r"\{1,2\}", r"\{1,2,2,3\}"),
    (r"1,1,2", r"1,2"),
    (r"x\equiv 3\pmod 5", r"x\equiv 4\pmod 5"),
    (r"x\equiv 3\pmod 5", r"x\equiv 3\pmod 7"),
    (r"k\pi, k\in\mathbb{Z}", r"2k\pi, k\in\mathbb{Z}"),
    (r"|x|", r"x"),
    (r"\ln|x|", r"\ln x"),
    (r"\frac{1}{2}x", r"\frac12"),
    (r"-5", r"5"),
    (r"\pm 3", r"3"),
    (r"3", r"\pm 3"),
    (r"2\frac13", r"\frac23"),
    (r"AB", r"AC"),
    (r"HHT", r"THH"),
    (r"1,2", r"1,2,\ldots"),
    (r"7", r"7\text{ is one of them}"),
    (r"7", r"7\text{ (mod }12)"),
    (r"12", r"12 \text{ minus } 3"),
    (r"12", r"12 \text{ plus something}"),
    (r"12", r"12\text{ roughly}"),
    (r"5", r"5!"),
    (r"5", r"5i"),
    (r"5", r"5e"),
    (r"5", r"5x"),
    (r"5", r"x5"),
    (r"12", r"1 2"),
    (r"12", r"1\,2"),
    (r"5", r"5.0.1"),
    (r"8", r"8>7"),
    (r"8", r"8\ne 9"),
    (r"0", r"\emptyset"),
    (r"\mathbb{R}", r"(0,\infty)"),
    (r"\mathbb{R}\setminus\{0\}", r"\mathbb{R}\setminus\{1\}"),
    (r"10^{1000}", r"10^{1001}"),
    (r"\frac{7}{10^{400}}", r"\frac{8}{10^{400}}"),
    (r"\text{Yes}", r"\text{Yes or no}"),
    (r"\text{yes}", r"\text{not yes}"),
    (r"30^\circ", r"30\text{ radians}"),
    (r"5", r"5\text{ squared}"),
    (r"5", r"5\text{ half}"),
    (r"5", r"5\text{ pi}"),
    (r"5", r"5\text{ e}"),
    (r"5", r"5\text{ x}"),
    (r"5", r"5 \text{ negative}"),
]

EQUAL = [
    (r"2^{200}-1", r"1606938044258990275541962092341162602522202993782792835301375"),
    (r"20!", r"2432902008176640000"),
    (r"e^{-10t}", r"e^{-5t}e^{-5t}"),
    (r"e^{-k x^2}", r"\exp(-kx^2)"),
    (r"\mathrm{e}^{2}", r"e^2"),
    (r"\sin^3(x)", r"\sin^3 x"),
    (r"\frac{\Omega}{2}", r"0.5\Omega"),
    (r"\eta\zeta", r"\zeta\eta"),
    (r"x = k\pi, k \in \mathbb{Z}", r"k\pi"),
    (r"x\equiv 3\pmod 5", r"x\equiv 8 \pmod{5}"),
    (r"f'(x)=2x", r"2x"),
    (r"\text{Area}=9\pi", r"9\pi"),
    (r"\angle ABC=45^\circ", r"45"),
    (r"0.\dot3", r"\frac13"),
    (r"0.333...", r"1/3"),
    (r"2:3", r"10:15"),
    (r"1:2:3", r"2:4:6"),
    (r"a \cdot b", r"ab"),
    (r"ab", r"b\cdot a"),
    (r"3 1/4", r"13/4"),
    (r"\frac12", r"{1 \over 2}"),
    (r"\frac12", r"1\over2"),
    (r"\frac{x+1}{2}", r"{x+1\over 2}"),
    (r"10", r"\binom52"),
    (r"RC", r"C\cdot R"),
    (r"\frac{\pi}{2}", r"pi/2"),
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"\mathbb{R}-\{2\}", r"x\neq 2"),
    (r"\{x \mid x>3\}", r"(3,\infty)"),
    (r"5\text{ yuan}", r"5元"),
    (r"$125$ miles", r"125"),
    (r"$125$ miles", r"125 \text{ miles}"),
    (r"9 (apples)", r"9"),
    (r"9 (apples)", r"9 apples"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]"),
    (r"(0.333333,1)", r"(\frac13,1)"),
    (r"60\text{ km/h}", r"60\text{ kilometers per hour}"),
    (r"9.8\text{ m/s}^2", r"9.8\,\text{m}/\text{s}^2"),
    (r"10^8", r"10⁸"),
    ("\uff081\uff0c2\uff09", r"(1,2)"),
    (r"x^2+y^2=25", r"y^2=25-x^2"),
    (r"2x-y=3", r"y=2x-3"),
    (r"\sqrt{5}+1", r"1+√5"),
    (r"28\%", r"28 percent"),
    (r"5", r"5\;\text{cm}"),
    (r"5\text{ cm}", r"5"),
    (r"120", r"120 \text{ square units}"),
    (r"12", r"12\text{ different ways}"),
    (r"\frac{3}{2}\pi", r"1.5π"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"A\cup B", r"B \cup A"),
    (r"-1 <x \leq 4", r"(-1,4]"),
    (r"\tan 45°", r"1"),
    (r"x=2\text{ or }x=3", r"\{2,3\}"),
    (r"x=1,y=2", r"(1,2)"),
    (r"(x,y)=(1,2)", r"(1,2)"),
    (r"\{(1,2),(2,1)\}", r"(1,2),(2,1)"),
    (r"\frac{x^2+1}{x}", r"x+\frac1x"),
    (r"n!", r"n\cdot(n-1)!"),
    (r"32 \text{ inches}", r"32 in"),
    (r"3\times 10^{8}\text{ m/s}", r"3e8"),
    (r"y=x^{2}", r"x^2"),
    (r"\text{June 5}", r"June 5"),
    (r"\text{(B)}", r"B"),
    (r"a_{n}=2^{n-1}", r"2^{n}/2"),
    (r"\ln 2", r"\log_e 2"),
    (r"\frac{\sqrt{2}}{2}", r"\sin 45^\circ"),
    (r"12 + 5i", r"5i+12"),
    (r"C", r"\text{(C) }12"),
    (r"\text{even}", r"Even"),
    (r"(3,\frac{\pi}{2})", r"(3, \pi/2)"),
    (r"-\frac{7}{2}", r"-3.5"),
    (r"\frac{1}{3}E_1", r"E_1/3"),
    (r"[2,5)", r"2\le x<5"),
    (r"100!", r"100\cdot 99!"),
    (r"3x^2-2x+C", r"C+3x^2-2x"),
    (r"\cos^2\theta", r"1-\sin^2\theta"),
]


@pytest.mark.parametrize(("reference", "given"), WRONG)
def test_an_answer_that_only_looks_like_the_reference_is_wrong(reference: str, given: str) -> None:
    assert not MathVerifier().verify(rf"So it is \boxed{{ {given} }}.", {"answer": reference}).correct


@pytest.mark.parametrize(("reference", "given"), EQUAL)
def test_an_ordinary_spelling_is_right(reference: str, given: str) -> None:
    MathVerifier().check_row({"answer": reference})
    for answer in (given, reference):
        assert MathVerifier().verify(rf"So it is $\boxed{{ {answer} }}$.", {"answer": reference}).correct


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"$\boxed{5} \quad \text{or} \quad \boxed{6}$", "6"),
        (r"\(\boxed{5}\) and \(\boxed{6}\)", "5"),
        (r"$x_1=\boxed{5}, x_2=\boxed{6}$", "6"),
        (r"I get \boxed{7}. No: it is \boxed{8}", "7"),
        ("It is 2^{10}.", "10"),
        ("It is \\sqrt{2}.", "2"),
        ("It is 3 + 5.", "5"),
        ("It takes 11 5/6 litres.", "5/6"),
        ("at 10:30", "30"),
    ],
)
def test_a_part_of_an_answer_is_wrong(completion: str, answer: str) -> None:
    assert not MathVerifier().verify(completion, {"answer": answer}).correct


@pytest.mark.parametrize("ending", [r"recomputing gives \boxed{", r"But that is wrong. \boxed{}", r"so \boxed{8"])
def test_a_last_box_that_is_empty_or_not_closed_is_no_answer(ending: str) -> None:
    verdict = MathVerifier().verify(rf"I get \boxed{{7}}. {ending}", {"answer": "7"})
    assert (verdict.status, verdict.correct) == (Status.NO_ANSWER, False)


@pytest.mark.parametrize(
    "given", [r"9^{9^{9}}", r"((100!)!)!", r"\sin(10^{-900})^{9}", r"10^{-9999999}", r"(x+1)^{9999}-1"]
)
def test_what_is_too_large_to_work_out_is_wrong(given: str) -> None:
    for reference in ("0", "1", "x", r"\frac{1}{2}+\sqrt{2}"):
        assert not MathVerifier().equal_answers(reference, given)
        assert not MathVerifier().equal_answers(reference, f"{reference}+{given}")


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("56211", r"What is $123 \cdot 457$?", False),
        ("56211", "What is 123*457?", False),
        ("5", "Is it $5$?", False),
        ("5", "Is it $4$? No, it is $5$.", True),
        ("5", "So $x=5$. Does it hold?", True),
    ],
)
def test_what_stands_in_a_question_is_no_answer(answer: str, completion: str, right: bool) -> None:
    """A completion that repeats its problem would be right where the problem is to work something out."""
    assert MathVerifier().verify(completion, {"answer": answer}).correct is right
