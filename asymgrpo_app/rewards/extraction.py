r"""Finding the answer in a completion, in time linear in its length: boxes, the last number, answer phrases."""

import re

from asymgrpo_app.rewards.numbers import NUMBER

TAIL_CHARS = 20_000
"""Number of last characters that are searched: an answer stands at the end."""

FORMULA_TAIL_CHARS = 2_000
"""As `TAIL_CHARS`, for completions without a box."""

_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ANSWER_IS = re.compile(r"answer[^$\n]{0,30}$", re.IGNORECASE)
_TOKEN = re.compile(r"\\boxed|\\fbox|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:and|or)?[\s$,;]*")
_MAX_GAP = 20


def tail(text: str, limit: int = TAIL_CHARS) -> str:
    """The last `limit` characters."""
    return text[-limit:]


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (or `\fbox{...}`) in the tail, or None.

    Boxes with only white space, commas, `and` or `or` between them are one answer, joined by commas: `\boxed{1}` and
    `\boxed{2}` give `1, 2`. A box that never closes is not an answer.
    """
    text = tail(text)
    boxes = _outer_boxes(text)
    if not boxes:
        return None
    contents = [text[slice(*boxes[-1][1:])]]
    for earlier, later in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        gap = text[earlier[2] + 1 : later[0]]
        if not gap or len(gap) > _MAX_GAP or not _BETWEEN_BOXES.fullmatch(gap):
            break
        contents.append(text[earlier[1] : earlier[2]])
    contents = [content.strip() for content in reversed(contents)]
    return ", ".join(dict.fromkeys(contents))


def _outer_boxes(text: str) -> list[tuple[int, int, int]]:
    """Start of the command, and start and end of the content, of every closed box that is in no other closed box."""
    boxes: list[tuple[int, int, int]] = []
    open_braces: list[int | None] = []  # for each open brace the start of its box command, None for other braces
    pending: tuple[int, int] | None = None  # a box command whose brace must come next, white space aside
    for token in _TOKEN.finditer(text):
        if token[0] in (r"\boxed", r"\fbox"):
            pending = token.span()
        elif token[0] == "{":
            is_box = pending is not None and not text[pending[1] : token.start()].strip()
            open_braces.append(pending[0] if is_box and pending is not None else None)
            if is_box and pending is not None:
                boxes.append((pending[0], token.end(), -1))
            pending = None
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                _close(boxes, start, token.start())
    return [box for box in boxes if box[2] >= 0]


def _close(boxes: list[tuple[int, int, int]], start: int, end: int) -> None:
    """Set the end of the box that began at `start`, and remove the boxes inside it."""
    while boxes[-1][0] != start:
        boxes.pop()
    boxes[-1] = (start, boxes[-1][1], end)


def last_formula(text: str) -> str | None:
    r"""The last number in the tail, together with the formula between dollars, `\(` or `\[` that it stands in, or None.

    A formula without digits after the last number is taken only if the word "answer" stands shortly before it.
    """
    text = tail(text, FORMULA_TAIL_CHARS)
    number = formula = None
    for number in NUMBER.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    for formula in _FORMULA.finditer(text):  # noqa: B007
        pass
    if formula is not None:
        holds_number = number is not None and formula.start() <= number.start() < formula.end()
        after_number = number is None or number.start() < formula.start()
        if holds_number or (after_number and _ANSWER_IS.search(text[max(0, formula.start() - 60) : formula.start()])):
            return next(group for group in formula.groups() if group is not None)
    return None if number is None else number[0]
