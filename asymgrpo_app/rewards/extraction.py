r"""Finding the answer in a completion, in time linear in its length: boxes, the last number, answer phrases."""

import re

from asymgrpo_app.rewards.numbers import NUMBER, is_asked, last_match

TAIL_CHARS = 20_000
"""Number of last characters that are searched: an answer stands at the end."""

FORMULA_TAIL_CHARS = 2_000
"""As `TAIL_CHARS`, for completions without a box."""

_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ANSWER_IS = re.compile(r"answer[^$\n]{0,30}$", re.IGNORECASE)
_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox|framebox)\s*\{)|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;:! \\]|\\q?quad|\\text\{\s*,?(?:and|or)\s*,?\s*\}|\b(?:and|or)\b"
    r"|(?<![A-Za-z])[A-Za-z](?:_\{?[0-9A-Za-z]\}?)?\s*=)*"
)
_MAX_GAP = 60


def after_thinking(text: str) -> str:
    """What follows the thinking of a completion: a box or a letter in it is not the answer.

    Thinking ends at the last `</think>`; its `<think>` may stand in the prompt. What an unclosed `<think>` begins is
    thinking to the end.
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (or `\fbox{...}`) in the tail, or None.

    One completion gives one answer. Boxes with only punctuation, `and`, `or`, names (`x_2 =`) and delimiters of
    formulas between them are one list: `\boxed{1}` and `\boxed{2}` give `1, 2`. Otherwise the last box is the answer,
    what stands in earlier ones was replaced. If the last box is never closed, the completion was cut off in its
    answer, and an earlier box is none.
    """
    text = _searched(text)
    boxes, unclosed = _outer_boxes(text)
    if not boxes or unclosed > boxes[-1][0]:
        return None
    answer = [boxes.pop()]
    for box in reversed(boxes):
        gap = text[box[2] + 1 : answer[-1][0]]
        if not 1 <= len(gap) <= _MAX_GAP or not _BETWEEN_BOXES.fullmatch(gap):
            break
        answer.append(box)
    return ", ".join(dict.fromkeys(text[start:end].strip() for _, start, end in reversed(answer)))


def has_box(text: str) -> bool:
    r"""Whether a completion puts something into a box, or begins to; an empty `\boxed{}` in a sentence is a mention."""
    boxes, unclosed = _outer_boxes(text := _searched(text))
    return unclosed >= 0 or any(text[start:end].strip() for _, start, end in boxes)


def _searched(text: str) -> str:
    r"""The tail behind the thinking; `\\boxed`, as in a string of JSON, is `\boxed`."""
    return _DOUBLED.sub("", after_thinking(text)[-TAIL_CHARS:])


_DOUBLED = re.compile(r"(?<!\\)\\(?=\\(?:boxed|fbox|framebox)\s*\{)")
_MENTION = re.compile(r"\\(?:boxed|fbox)\s*(?:\{\s*\}|(?![\s{]*\{))")


def _outer_boxes(text: str) -> tuple[list[tuple[int, int, int]], int]:
    """The closed boxes, and where the last box begins that is not closed.

    Returns:
        Start of the command, and start and end of the content, of every closed box that is in no other closed box; and
        the start of the last unclosed one, -1 if there is none.
    """
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
    return boxes, max((brace.start() for brace in open_braces if brace["box"]), default=-1)


# What a formula in running text may consist of; a word, a full stop before a space or a line break ends it.
_IN_FORMULA = re.compile(
    r"\\(?:text|mathrm)\{[^{}]{0,40}\}|\\[A-Za-z]+|\\[%$,;:! ]|[0-9]+(?:[.,][0-9]+)*|[-+*/^_=(){}\[\]|!<>%:]"
    r"|[°√π×÷·−½¼¾∞≤≥±²³$€£]"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|,(?=\s?[-0-9(\\])|[ \t]"
)


def last_expression(text: str) -> str | None:
    """The formula in running text that the last number in the tail stands in, whole: 2^10, 3 + 5, 11 5/6, x = -3."""
    text = _MENTION.sub(" ", after_thinking(text)[-FORMULA_TAIL_CHARS:])
    run, found, end, found_end = "", None, -1, 0
    for token in _IN_FORMULA.finditer(text):
        if token.start() != end:
            run = ""
        run, end = run + token[0], token.end()
        if any(character in _DIGITS for character in run) or "\\" in run:
            found, found_end = run, end
    return None if found is None or is_asked(text, found_end) else _trimmed(found)


_DIGITS = "0123456789½¼¾π∞"


def _trimmed(run: str) -> str | None:
    """A run without marks of emphasis and signs that join it to the words beside it."""
    before = None
    while before != run:
        before = run
        run = run.strip(" \t*,:=/_<>").removeprefix("-" if run.startswith("- ") else "\0").rstrip("-+^(<$")
        run = run.removeprefix("$") if run.count("$") % 2 and not run.startswith("$-") else run
        if run.count("(") != run.count(")"):
            run = run.strip("()") if "(" not in run[1:] and ")" not in run[:-1] else run
    # a letter before or behind the number is a word (a, I) or a label
    run = re.sub(r"^(?:[aAI]\s+)+(?=[-0-9\\($])|(?<=[0-9)}])\s+[aAI]$", "", run)
    return run or None


def last_formula(text: str) -> str | None:
    r"""The last formula in the tail: between dollars, `\(` or `\[`, or in running text; None if there is none.

    A formula between delimiters without digits after the last number is taken only if the word "answer" stands shortly
    before it.
    """
    tail = after_thinking(text)[-FORMULA_TAIL_CHARS:]
    number, formula = last_match(NUMBER, tail), last_match(_FORMULA, tail)
    if formula is not None:
        holds_number = number is not None and formula.start() <= number.start() < formula.end()
        after_number = number is None or number.start() < formula.start()
        if is_asked(tail, formula.end()) and (holds_number or after_number):
            return None
        if holds_number or (after_number and _ANSWER_IS.search(tail[max(0, formula.start() - 60) : formula.start()])):
            return next(group for group in formula.groups() if group is not None)
    return last_expression(text)
