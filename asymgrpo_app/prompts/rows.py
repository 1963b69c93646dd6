"""Prompts made of rows: the fields of the problem and of the answer, and the order of the rows."""

import json
import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow, Prompt, PromptSource
from asymgrpo_app.prompts.order import shuffled
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.exact import ExactMatch
from asymgrpo_app.rewards.functions import checked_verifier

_SHOWN_CHARS = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        uid: Stable name of the row, e.g. `mine.jsonl/17`.
        place: Its file and line or row, for messages, e.g. `data/mine.jsonl, line 17`.
        fields: Values by the name of the field.
    """

    uid: str
    place: str
    fields: Mapping[str, Any]


def is_finite(value: int | float) -> bool:
    """Whether a number is finite, also of an integer that no float can hold."""
    return isinstance(value, int) or math.isfinite(value)


class RowSource(PromptSource):
    """Prompts from a table. Rows are read and checked when they are asked for, one at a time, in any order.

    The verifier finds all fields of the row, and the answer as a string under `answer`.

    Args:
        size: Number of rows.
        prompt_field: The field of the problem; for a field within a field, names joined by dots, e.g. `extra.question`.
            Its value is a string that is not empty, or a list with one chat message of the role `user`.
        answer_field: The field of the right answer, named likewise; a string that is not empty or a number.
        verifier: The verifier that judges the completions; exact match if left out.

    Raises:
        UserError: There is no row, a field has no name, or the verifier is none.
    """

    def __init__(self, size: int, prompt_field: str, answer_field: str, verifier: Verifier | None) -> None:
        for argument, field in (("prompt_field", prompt_field), ("answer_field", answer_field)):
            if not field:
                raise UserError(f"{argument} is empty: name a field of the rows.")
        if not size:
            raise UserError(f"{self} holds no prompts: there is no row in it.")
        self.size: int = size
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.verifier = ExactMatch() if verifier is None else checked_verifier(verifier, type(self).__name__)

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row `index`, from 0.

        Raises:
            BadRow: The row cannot be read.
        """

    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position`: every epoch is one pass over all rows in an order drawn from (seed, epoch)."""
        epoch, index = divmod(position, self.size)
        return self.nth(shuffled(index, self.size, seed, epoch))

    def nth(self, index: int) -> Prompt:
        """The prompt of row `index`, from 0, in the order of the table."""
        row = self.row(index)
        text = self._prompt_text(row)
        return Prompt(row.uid, text, {**row.fields, "answer": self._answer_text(row)}, self.verifier, row.place)

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts in the order of the table; all of them for None or if there are fewer.

        Raises:
            UserError: One of the rows cannot be used.
        """
        count = self.size if limit is None else min(limit, self.size)
        return [self.nth(index) for index in range(count)]

    def _prompt_text(self, row: Row) -> str:
        text = value = _field(row, self.prompt_field)
        match value:
            case [{"role": "user", "content": content}]:
                text = content
        if _is_text(text):
            return text
        raise BadRow(
            f"{row.place}: {self.prompt_field!r} must be a string (valid Unicode, not empty) or a chat of a single "
            f"message of the role 'user' (the system prompt belongs to the template), not {shown_value(value)}."
        )

    def _answer_text(self, row: Row) -> str:
        value = _field(row, self.answer_field)
        if isinstance(value, list) and len(value) == 1:  # some data sets keep a list of answers
            value = value[0]
        if _is_text(value):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value):
            return str(value)
        raise BadRow(
            f"{row.place}: {self.answer_field!r} must be a string (valid Unicode, not empty) or a number, not "
            f"{shown_value(value)}."
        )


def shown_value(value: object) -> str:
    """The value as text for an error message: one short line of printable characters."""
    if isinstance(value, str | bytes):
        text = ascii(value[: _SHOWN_CHARS + 1])
    else:
        try:
            text = json.dumps(value, default=repr)
        except (RecursionError, ValueError, TypeError):  # deeply nested, or keys that are no strings
            text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _field(row: Row, field: str) -> object:
    """The value of a field, or of a field within a field."""
    if field in row.fields:  # a name with a dot in it goes before a field within a field
        return row.fields[field]
    value: object = row.fields
    holder = "the row"
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            seen = f"has {shown_value(list(value))}" if isinstance(value, Mapping) else f"is {shown_value(value)}"
            raise BadRow(f"{row.place}: the field {field!r} is missing, {holder} {seen}.")
        value = value[name]
        holder = repr(name)
    return value


def _is_text(value: object) -> TypeGuard[str]:
    """Whether the value is a string that is not blank and has no half of a surrogate pair, which cannot be encoded."""
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)
