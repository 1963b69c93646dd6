import ast
import time
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards import CountdownVerifier, Status, Verdict
from asymgrpo_app.rewards.countdown import MAX_EXPRESSION_CHARS, parse_expression

ROW = {"numbers": [3, 5, 2, 7], "target": 17, "answer": "3*5-2+7"}
RIGHT, WRONG = Verdict(correct=True), Verdict(correct=False)
NO_ANSWER = Verdict(correct=False, status=Status.NO_ANSWER)


def ast_value(node: ast.expr) -> int | None:
    """The value by Python's own precedence, or None for what is outside the grammar."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if not isinstance(node, ast.BinOp):
        return None
    left, right = ast_value(node.left), ast_value(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    return left * right if isinstance(node.op, ast.Mult) else None


def oracle(text: str) -> int | None:
    try:
        return ast_value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("numbers", [(3, 5, 2, 7), (1, 1, 9, 9), (2, 2, 2, 3), (9, 9, 9, 9), (1, 4, 6, 8)])
def test_agrees_with_brute_force_over_the_whole_grammar(numbers: tuple[int, ...]) -> None:
    verifier = CountdownVerifier()
    values = {}
    for order, operators in product(permutations(numbers), product("+-*", repeat=3)):
        text = str(order[0]) + "".join(f"{op}{n}" for op, n in zip(operators, order[1:], strict=True))
        values[text] = oracle(text)
    for target in (*range(0, 100, 7), 17, min(values.values()), max(values.values())):
        row = {"numbers": list(numbers), "target": target, "answer": ""}
        assert {text for text in values if verifier.verify(text, row) == RIGHT} == {
            text for text, value in values.items() if value == target
        }
        assert all(verifier.verify(text, row).status == Status.OK for text in values)


@pytest.mark.parametrize("text", ["3*5-5+7-3", "3*5+2", "3*5+7-2+0", "17", "3+5+2+7-0", "3*5*2*7", "35-2*7", "3*5-2+8"])
def test_an_expression_with_other_numbers_or_another_value_is_wrong(text: str) -> None:
    assert CountdownVerifier().verify(text, ROW) == WRONG


@pytest.mark.parametrize("text", ["3+5+2+7", "7+5+3+2", "2+3*5*1"])
def test_many_solutions_are_right_but_each_number_must_be_used_once(text: str) -> None:
    # 3+5+2+7 = 17 in any order; 2+3*5*1 = 17 uses a 1 that is not there
    assert CountdownVerifier().verify(text, ROW).correct == (sorted(text[::2]) == ["2", "3", "5", "7"])


@pytest.mark.parametrize("text", [" 3 + 5 +2+ 7\n", "\t3+5+2+7\r\n"])
def test_spaces_are_allowed(text: str) -> None:
    assert CountdownVerifier().verify(text, ROW) == RIGHT


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "3+",
        "+3+5+2+7",
        "-3+5+2+7",
        "3+-5+2+7",
        "3++5+2+7",
        "3 5+2+7",
        "(3+5)+2+7",
        "3+5+2+7=17",
        "3+5+2+7>",
        "3+5+2+7 3+5+2+7",
        "3+5\n+2+7",
        "3+5+2+7\n3",
        "03+5+2+7",
        "3+5+2+7.0",
        "3+5+2+0x7",
        "1_0+7",
        "1e1+7",
        "3**5",
        "3/5+2+7",
        "3//5",
        "3+5+2+7#",
        "3+5+2+7\0",
        "٣+5+2+7",  # Arabic-Indic three
        "３+5+2+7",  # noqa: RUF001  full-width three
        "3+5²+2+7",
        "3＋5+2+7",  # noqa: RUF001  full-width plus
        "3−5+2+7",  # the sign of mathematics, no hyphen
        "3×5+2+7",
        "3\u00a0+5+2+7",
        "3+5+2+7\u2028",
        "\ud800",
        "__import__('os').system('false')",
        "<eos>",
    ],
)
def test_what_is_no_expression_is_no_answer(text: str) -> None:
    assert CountdownVerifier().verify(text, ROW) == NO_ANSWER


@pytest.mark.parametrize(
    "text",
    ["9" * 1_000_000, "3+" * 500_000, " " * 1_000_000, "3" + " " * 1_000_000 + "x", "9*" * 500_000 + "9"],
    ids=["numeral", "operators", "spaces", "gap", "product"],
)
def test_work_on_hostile_text_is_bounded(text: str) -> None:
    started = time.process_time()
    assert CountdownVerifier().verify(text, ROW) == NO_ANSWER
    assert time.process_time() - started < 0.05


def test_the_longest_texts_that_are_read_are_handled() -> None:
    assert parse_expression("9" * MAX_EXPRESSION_CHARS).value == 10**MAX_EXPRESSION_CHARS - 1
    assert parse_expression("9" * (MAX_EXPRESSION_CHARS + 1)) is None
    row = {"numbers": [9_999] * 16, "target": 16 * 9_999}
    assert CountdownVerifier().verify(" + ".join(["9999"] * 16), row) == RIGHT


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-* \n", max_size=20))
def test_agrees_with_pythons_own_parser(text: str) -> None:
    if any(len(word) > 1 and word.startswith("0") for word in text.translate(str.maketrans("+-*\n", "    ")).split()):
        assert parse_expression(text) is None  # Python reads 00, we do not
    else:
        parsed = parse_expression(text)
        assert (parsed.value if parsed else None) == oracle(text)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_never_raises(text: str) -> None:
    assert isinstance(CountdownVerifier().verify(text, ROW), Verdict)


def test_check_row_accepts_what_can_be_judged() -> None:
    CountdownVerifier().check_row(ROW)
    CountdownVerifier().check_row({"numbers": (0, 9_999), "target": -9_999})


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"target": 17}, "numbers"),
        ({"numbers": [], "target": 17}, "numbers"),
        ({"numbers": "3527", "target": 17}, "numbers"),
        ({"numbers": [1] * 17, "target": 17}, "numbers"),
        ({"numbers": [3, "5"], "target": 17}, "numbers"),
        ({"numbers": [3, True], "target": 4}, "numbers"),
        ({"numbers": [3, -5], "target": 4}, "numbers"),
        ({"numbers": [3, 10_000], "target": 4}, "numbers"),
        ({"numbers": [3, 5.0], "target": 8}, "numbers"),
        ({"numbers": [3, 5]}, "target"),
        ({"numbers": [3, 5], "target": "8"}, "target"),
        ({"numbers": [3, 5], "target": True}, "target"),
        ({"numbers": [3, 5], "target": 8.0}, "target"),
    ],
)
def test_check_row_names_the_field_at_fault(row: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f'"{field}"'):
        CountdownVerifier().check_row(row)


@pytest.mark.parametrize(
    "text",
    [
        "3+5+2+7",
        "3+5+2+7 = 17",
        "(3+5)+[2+7]",
        "<think>3</think> <answer>3 + 5 + 2 + 7</answer>",
        r"So \boxed{3+5+2+7}.",
        r"$3 \times 5 + {7} − 2 = 20$",
    ],
)
def test_usual_forms(text: str) -> None:
    verdict = CountdownVerifier(forms="usual").verify(text, ROW | {"target": 20 if "times" in text else 17})
    assert verdict == RIGHT


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("3+5+2+7 = 18", NO_ANSWER),  # its result is wrong
        ("17 = 3+5+2+7", NO_ANSWER),
        ("3+5+2+7 = 17 = 17", NO_ANSWER),
        ("3+5+9", WRONG),
        ("3/0+5+2+7", NO_ANSWER),
        ("<answer>3+5+9</answer>", WRONG),
        ("3**5+2+7", NO_ANSWER),
        ("(" * 300, NO_ANSWER),
    ],
)
def test_usual_forms_that_are_not_right(text: str, verdict: Verdict) -> None:
    assert CountdownVerifier(forms="usual").verify(text, ROW) == verdict


def test_unknown_forms() -> None:
    with pytest.raises(UserError, match='forms must be "exact" or "usual", not \'any\''):
        CountdownVerifier(forms="any")  # type: ignore[arg-type]
