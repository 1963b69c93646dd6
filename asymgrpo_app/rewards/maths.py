"""The verifier for mathematical answers."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Verdict, visible_answer
from asymgrpo_app.rewards.extraction import has_box, last_boxed, last_formula
from asymgrpo_app.rewards.latex import MAX_ANSWER_CHARS, refusal
from asymgrpo_app.rewards.structure import (
    Answer,
    Congruence,
    Items,
    Leaf,
    Node,
    Operation,
    Relation,
    is_name,
    read_answer,
    read_choice,
    read_ratio,
)

_WHOLE_SETS = frozenset(rf"\mathbb{{{name}}}" for name in "NZQRC") | {r"\emptyset"}
_DIGITS = re.compile(r"[0-9]{1,100}")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class MathVerifier(AnswerVerifier):
    r"""Accepts an answer that equals `row["answer"]` in value, whatever its form; both may be LaTeX.

    Numbers, units, lists, intervals, equations, names and choices are compared by rules of our own, formulas by their
    values. The answer is looked for at the end of the completion; without one the status is `no_answer`. An answer that
    is too long, nested too deeply, too large to work out, or that holds anything but mathematics is right only if it is
    spelled like the reference, otherwise wrong, with the status `ok`.

    Args:
        extract: Where the answer stands: `boxed`, the last complete \boxed{}, the strict choice for training;
            `boxed_or_last`, or if there is none the last number or formula.
    """

    def __init__(self, extract: Literal["boxed", "boxed_or_last"] = "boxed_or_last") -> None:
        if extract not in ("boxed", "boxed_or_last"):
            raise UserError(f'extract must be "boxed" or "boxed_or_last", not {extract!r}')
        self.extract = extract

    @classmethod
    def prepare(cls) -> None:
        """Import the libraries."""
        cls().verify(r"\boxed{\sqrt{2}+x}", {"answer": r"\sqrt{3}+x"})

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge an answer. The row has `answer`, a string."""
        return Verdict(correct=self.equal_answers(row["answer"], answer))

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        given = last_boxed(completion)
        if not given and self.extract == "boxed_or_last" and not has_box(completion):
            given = last_formula(completion)
        return None if given is None else given.strip() or None

    def equal_answers(self, first: str, second: str) -> bool:
        """Whether `second` has the value of `first`, the reference."""
        if first.strip() == second.strip():
            return True
        if any(len(answer) > MAX_ANSWER_CHARS or _UNPRINTABLE.search(answer) for answer in (first, second)):
            return False
        reference, given = read_answer(first), read_answer(second)
        if (
            reference.kind == "words"
            and re.fullmatch("[a-z]", reference.text)
            and read_choice(second) == reference.text
        ):
            return True
        ratio = read_ratio(first) if ":" in first and reference.kind != "time" else None
        if ratio is not None:
            terms = read_ratio(second) or ()
            if len(ratio) == 2 and not terms:
                return bool(ratio[1]) and _equal(_formula_of(ratio[0] / ratio[1]), given)
            return len(terms) == len(ratio) and all(
                a * terms[0] == b * ratio[0] for a, b in zip(ratio, terms, strict=True)
            )
        return _equal(reference, given)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the reference can be read.

        Raises:
            ValueError: `answer` is missing, no string, empty or too long, or cannot be read as mathematics or as words.
        """
        answer = visible_answer(row)
        if len(answer) > MAX_ANSWER_CHARS:
            raise ValueError(f'"answer" has {len(answer):,} characters, more than {MAX_ANSWER_CHARS:,}')
        if _UNPRINTABLE.search(answer):
            raise ValueError('"answer" holds control characters or broken Unicode')
        read = read_answer(answer)
        if not read.text:
            raise ValueError(f'"answer" is {answer!r}, which holds no answer')
        if read.kind == "formula" and not read_ratio(answer) and (read.node is None or not _can_be_read(read.node)):
            why = f": {reason}" if (reason := refusal(read.text)) else ""
            raise ValueError(f'"answer" is {answer!r}, which cannot be read as mathematics or as words{why}')
        self._check_tells_apart(answer)

    def _check_tells_apart(self, answer: str) -> None:
        """Check that the reference is right when given back, written plainly and in a box, and others are not.

        Raises:
            ValueError: It is not, or the same answer with other numbers in it is right, too.
        """
        if not (self.equal_answers(answer, rf"\boxed{{{answer}}}") and self.equal_answers(answer, f"{answer}\n")):
            raise ValueError(f'"answer" is {answer!r}, which is not right when it is given back')
        misses = {answer[: n.start()] + str(int(n[0]) + 1) + answer[n.end() :] for n in _DIGITS.finditer(answer[:200])}
        if misses and all(self.equal_answers(answer, miss) for miss in sorted(misses)[:8]):
            raise ValueError(f'"answer" is {answer!r}, which is not told from {min(misses)!r}')


def _equal(reference: Answer, given: Answer) -> bool:
    if reference.condition and given.condition and reference.condition != given.condition:
        return False
    if reference.kind == "words" and reference.node is not None and len(set(reference.text)) == len(reference.text):
        return _equal_letters(reference, given)
    if reference.node is None or given.node is None or "words" in (reference.kind, given.kind):
        return _equal_spelled(reference, given)
    if reference.text == given.text:
        return True
    from asymgrpo_app.rewards.compare import equal_nodes  # sympy takes its time, and most verifiers do without it

    return equal_nodes(reference.node, given.node)


def _formula_of(value: Fraction) -> Answer:
    return read_answer(f"{value.numerator}/{value.denominator}")


def _equal_letters(reference: Answer, given: Answer) -> bool:
    r"""Whether the given answer is the product or the choices that two or three capital letters may be: RC, AC."""
    if given.kind == "words" and given.node is None and " " not in given.text:
        return given.text in (reference.text, ",".join(sorted(reference.text)))
    return sorted(reference.text) == sorted(given.text.casefold().replace(r"\cdot", "").replace(" ", ""))


def _equal_spelled(reference: Answer, given: Answer) -> bool:
    if "words" in (reference.kind, given.kind):
        return bool(given.text) and reference.text.casefold() == given.text.casefold()
    if reference.kind != given.kind:
        return False
    # 2:30 pm answers a question whose reference is 2:30, but not the other way round.
    return bool(given.text) and (
        given.text == reference.text or (given.kind == "time" and given.text[:-2] == reference.text)
    )


def _can_be_read(node: Node) -> bool:
    """Whether every formula in an answer can be worked with."""
    from asymgrpo_app.rewards.formulas import parse_formula

    if isinstance(node, Leaf):
        return node.number is not None or parse_formula(node.text) is not None or node.text in _WHOLE_SETS
    if isinstance(node, Congruence):
        return all(map(_can_be_read, node.residues))
    if isinstance(node, Relation):
        return all(_can_be_read(part) for part in node.parts if not (isinstance(part, Leaf) and is_name(part.text)))
    return not isinstance(node, Items | Operation) or all(map(_can_be_read, node.parts))
