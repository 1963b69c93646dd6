"""A user's own problems: one JSON object with a prompt and an answer per line."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.exact import ExactMatch

_SHOWN_CHARS = 60
_ORDERS_KEPT = 2  # a step may straddle two epochs


class JsonLines(PromptSource):
    """Problems from a UTF-8 file with one JSON object per line, e.g. `{"prompt": "2 + 2 =", "answer": "4"}`.

    The whole file is read and checked at construction. Blank lines are skipped, and of several lines with the same
    prompt text only the first is kept. A row is the line's object, with the answer as a string under `answer`; so a
    verifier finds every other field of the line too. The uid is `<file name>/<line number>`.

    Args:
        path: The file, relative to the working directory.
        prompt_field: The field of the prompt, a string that is not empty.
        answer_field: The field of the right answer, a string that is not empty or a number.
        verifier: What judges the completions; exact match if left out.

    Raises:
        UserError: The file cannot be read, holds no problem, or a line is broken or does not suit the verifier.
    """

    def __init__(
        self, path: str, prompt_field: str = "prompt", answer_field: str = "answer", verifier: Verifier | None = None
    ) -> None:
        self.path = path
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.verifier = ExactMatch() if verifier is None else verifier
        self._orders: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
        by_text: dict[str, Prompt] = {}
        for line_number, line in _numbered_lines(path):
            prompt = self._read_line(line, line_number)
            by_text.setdefault(prompt.text, prompt)
        if not by_text:
            raise UserError(f"{path} holds no prompts: write one JSON object per line.")
        self._prompts = list(by_text.values())
        self.size = len(self._prompts)

    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position`: every epoch is one pass over the file in an order drawn from (seed, epoch)."""
        epoch, place = divmod(position, len(self._prompts))
        return self._prompts[int(self._order(seed, epoch)[place])]

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts in the order of the file; all of them for None or if there are fewer.

        Raises:
            UserError: `limit` is not positive.
        """
        if limit is not None and limit < 1:
            raise UserError(f"{self.path}: a limit of {limit} leaves no prompts, use a positive one.")
        return self._prompts[:limit]

    def _order(self, seed: int, epoch: int) -> npt.NDArray[np.intp]:
        """The permutation of an epoch, a pure function of (seed, epoch) and the number of prompts."""
        order = self._orders.get((seed, epoch))
        if order is None:
            digest = blake2b(f"jsonl order {seed} {epoch}".encode(), digest_size=16).digest()
            # Raw bits and a stable sort: numpy promises the same PCG64 bits in every version, but not the same shuffle.
            keys = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(len(self._prompts))
            order = np.argsort(keys, kind="stable")
            while len(self._orders) >= _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            self._orders[seed, epoch] = order
        return order

    def _read_line(self, line: str, line_number: int) -> Prompt:
        place = f"{self.path}, line {line_number}"
        value = _parse_json(line, place)
        if not isinstance(value, dict):
            raise UserError(f"{place}: expected a JSON object with {self._fields()}, not {_shown(line)}.")
        text = self._field(value, self.prompt_field, place)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: {self.prompt_field!r} must be a string that is not empty, not {_shown(text)}.")
        answer = _answer_text(self._field(value, self.answer_field, place))
        if answer is None:
            seen = _shown(value[self.answer_field])
            raise UserError(
                f"{place}: {self.answer_field!r} must be a string that is not empty or a number, not {seen}."
            )
        row = {**value, "answer": answer}
        try:
            self.verifier.check_row(row)
        except ValueError as error:
            name = type(self.verifier).__name__
            raise UserError(f"{place}: {name} cannot judge this line: {error}, seen {_shown(value)}.") from error
        return Prompt(uid=f"{Path(self.path).name}/{line_number}", text=text, row=row)

    def _field(self, value: Mapping[str, Any], field: str, place: str) -> Any:
        if field not in value:
            raise UserError(f"{place}: the field {field!r} is missing, the line has {_shown(list(value))}.")
        if isinstance(value[field], str) and not _is_unicode(value[field]):
            raise UserError(
                f"{place}: {field!r} holds half a surrogate pair, which is no text: {_shown(value[field])}."
            )
        return value[field]

    def _fields(self) -> str:
        return f"the fields {self.prompt_field!r} and {self.answer_field!r}"


def _numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank with their numbers from 1."""
    try:
        with Path(path).open("rb") as file:
            # Bytes, since text mode would also end lines at a lone carriage return and decode beyond the line at fault.
            for line_number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if line_number == 1 else "utf-8").rstrip()
                except UnicodeDecodeError as error:
                    seen = _shown(line[error.start : error.end])
                    raise UserError(f"{path}, line {line_number}: not UTF-8 text, seen the bytes {seen}.") from error
                if text:
                    yield line_number, text
    except OSError as error:
        raise UserError(f"Cannot read the prompt file {path!r}: {error.strerror or error}.") from error


def _parse_json(line: str, place: str) -> object:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # NaN and the like, numerals of thousands of digits, deep nesting
        reason = str(error).lower()
    raise UserError(f"{place}: not JSON ({reason}), seen {_shown(line)}.")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _answer_text(answer: object) -> str | None:
    """The answer as a string, or None if it is none."""
    if isinstance(answer, str):
        return answer if answer.strip() else None
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        return None
    return str(answer)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """The value as it goes into an error message: one short line of printable characters."""
    text = ascii(value) if isinstance(value, str | bytes) else json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
