r"""The reference inside a solution: its last box, what stands after `####`, or what a pattern finds."""

import re

from asymgrpo_app.rewards import ExactMatch, MathVerifier, MultipleChoice, NumericMatch, RegexMatch
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.extraction import TAIL_CHARS, last_boxed
from asymgrpo_app.rewards.numbers import last_match

EXTRACTIONS = ("box", "hashes", "pattern")

_COMPARE_WITH_ANSWER = (ExactMatch, MathVerifier, MultipleChoice, NumericMatch, RegexMatch)
_OPEN_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*(?P<brace>\{)?")
_END_OF_OPEN_BOX = re.compile(r"\$|\\\)|\\\]|\n")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_ENDS_IN_HASHES = re.compile(r"(?:^|\n)[ \t]*####[ \t]*\S[^\n]*\s*\Z")
_THOUSANDS = re.compile(r"[-+]?\$?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?%?")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def last_box(solution: str) -> str | None:
    r"""The content of the last box of a solution, or None; `\boxed 5` without braces goes as far as its formula."""
    text = solution[-TAIL_CHARS:]
    found = list(_OPEN_BOX.finditer(text))
    if found and found[-1]["brace"] is None:
        rest = text[found[-1].end() :]
        end = _END_OF_OPEN_BOX.search(rest)
        return rest[: end.start() if end else None].strip().rstrip(".,;").strip() or None
    return last_boxed(text)


def after_hashes(solution: str) -> str | None:
    """What stands after the last `####` of a solution (GSM8K), or None; a number loses its thousands separators."""
    found = _HASHES.findall(solution[-TAIL_CHARS:])
    if not found or not found[-1].strip():
        return None
    text: str = found[-1].strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def by_pattern(pattern: re.Pattern[str], solution: str) -> str | None:
    """What the last match of a pattern holds in the end of a solution, or None.

    That is its group `answer`, or its first group, or all of it if it has none.
    """
    last = last_match(pattern, solution[-TAIL_CHARS:])
    if last is None:
        return None
    group: str | int = "answer" if "answer" in pattern.groupindex else min(1, pattern.groups)
    return (last[group] or "").strip() or None


def unread_solution(answer: str, verifier: Verifier) -> str | None:
    """The `solution_kind` of an answer that a verifier compares as a whole, so that no answer is right; or None.

    A class derived from one of this program's may read solutions, and is trusted.
    """
    return solution_kind(answer) if type(verifier) in _COMPARE_WITH_ANSWER else None


def solution_kind(answer: str) -> str | None:
    r"""`hashes` or `box` for an answer that is a whole solution with the answer at such a place; None for others.

    An answer with nothing but signs around its box is none: `$\boxed{5}$.`
    """
    text = answer[-TAIL_CHARS:]
    if _ENDS_IN_HASHES.search(text):
        return "hashes"
    found = list(_OPEN_BOX.finditer(text))
    if not found or not last_box(text):
        return None
    return "box" if _WORD.search(text[: found[0].start()]) else None
