r"""Finding the answer in a completion, in time linear in its length: boxes, the last number, answer phrases."""

import re

from asymgrpo_app.rewards.numbers import NUMBER, last_match

TAIL_CHARS = 20_000
"""Number of last characters that are searched: an answer stands at the end."""

FORMULA_TAIL_CHARS = 2_000
"""As `TAIL_CHARS`, for completions without a box."""

_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ANSWER_IS = re.compile(r"answer[^$\n]{0,30}$", re.IGNORECASE)
_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:and|or)?[\s$,;]*")
_MAX_GAP = 20


def after_thinking(text: str) -> str:
    """What follows the thinking of a completion: a box or a letter in it is not the answer.

    Thinking ends at the last `</think>`; its `<think>` may stand in the prompt. What an unclosed `<think>` begins is
    thinking to the end.
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (or `\fbox{...}`) in the tail, or None.

    Boxes with only white space, commas, `and` or `or` between them are one answer, joined by commas: `\boxed{1}` and
    `\boxed{2}` give `1, 2`. A box that never closes is not an answer.
    """
    text = after_thinking(text)[-TAIL_CHARS:]
    boxes = _outer_boxes(text)
    if not boxes:
        return None
    answer = [boxes.pop()]
    for box in reversed(boxes):
        gap = text[box[2] + 1 : answer[-1][0]]
        if not 1 <= len(gap) <= _MAX_GAP or not _BETWEEN_BOXES.fullmatch(gap):
            break
        answer.append(box)
    return ", ".join(dict.fromkeys(text[start:end].strip() for _, start, end in reversed(answer)))


def _outer_boxes(text: str) -> list[tuple[int, int, int]]:
    """Start of the command, and start and end of the content, of every closed box that is in no other closed box."""
    boxes: list[tuple[int, int, int]] = []
    open_braces: list[re.Match[str]] = []
    for token in _BRACE.finditer(text):
        if token[0] == "{" or token["box"]:
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            opening = open_braces.pop()
            if opening["box"]:
                while boxes and boxes[-1][0] > opening.start():
                    boxes.pop()  # it stands in the box that closes here
                boxes.append((opening.start(), opening.end(), token.start()))
    return boxes


def last_formula(text: str) -> str | None:
    r"""The last number in the tail, together with the formula between dollars, `\(` or `\[` that it stands in, or None.

    A formula without digits after the last number is taken only if the word "answer" stands shortly before it.
    """
    text = after_thinking(text)[-FORMULA_TAIL_CHARS:]
    number, formula = last_match(NUMBER, text), last_match(_FORMULA, text)
    if formula is not None:
        holds_number = number is not None and formula.start() <= number.start() < formula.end()
        after_number = number is None or number.start() < formula.start()
        if holds_number or (after_number and _ANSWER_IS.search(text[max(0, formula.start() - 60) : formula.start()])):
            return next(group for group in formula.groups() if group is not None)
    return None if number is None else number[0]
