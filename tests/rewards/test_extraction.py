import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymgrpo_app.rewards.extraction import TAIL_CHARS, last_boxed, last_formula


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"a \boxed{5} b", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right.}", r"\left\{1,2\right."),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{5}. And \boxed{6} unfinished \boxed{7", None),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        ("}}}\\boxed{3}{", "3"),
        (r"\boxed{7" + " ", None),
        (r"\boxed 5", None),
        ("", None),
        (r"\boxed{5}" + "x" * TAIL_CHARS, None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@given(st.text(alphabet="ab{}", max_size=30), st.text(max_size=30))
def test_a_box_holds_what_was_put_in(inner: str, before: str) -> None:
    depth = 0
    for character in inner:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    if depth == 0 and "\\" not in before:
        assert last_boxed(rf"{before}\boxed{{{inner}}}") == inner.strip()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("there are 3 or 4.", "4"),
        ("so $x = 2\\sqrt{3}$ holds", "x = 2\\sqrt{3}"),
        ("the answer is $\\pi$", "\\pi"),
        ("3 apples, where $n$ counts", "3"),
        ("none", None),
    ],
)
def test_last_formula(text: str, found: str | None) -> None:
    assert last_formula(text) == found


def test_importing_the_verifiers_is_cheap() -> None:
    heavy = ("sympy", "latex2sympy2_extended", "torch")
    code = f"import asymgrpo_app.rewards, sys; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
