"""Prompts made of rows: the fields of the problem and of the answer, and the order of the rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow, Prompt, PromptSource
from asymgrpo_app.prompts.order import shuffled
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.exact import ExactMatch

_SHOWN_CHARS = 60


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


class Table(Protocol):
    """Rows that can be read in any order."""

    def __len__(self) -> int:
        """Number of rows."""

    def row(self, index: int) -> Row:
        """The row `index`, from 0.

        Raises:
            BadRow: The row cannot be read.
        """


class RowSource(PromptSource):
    """Prompts from a finite table. Rows are read and checked when they are asked for, one at a time.

    The verifier finds all fields of the row, and the answer as a string under `answer`.

    Args:
        table: The rows.
        prompt_field: The field of the problem; for a field within a field, names joined by dots, e.g. `extra.question`.
            Its value is a string that is not empty, or a list with one chat message of the role `user`.
        answer_field: The field of the right answer, named likewise; a string that is not empty or a number.
        verifier: The verifier that judges the completions; exact match if left out.

    Raises:
        UserError: A field has no name.
    """

    def __init__(
        self,
        table: Table,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        verifier: Verifier | None = None,
    ) -> None:
        for argument, field in (("prompt_field", prompt_field), ("answer_field", answer_field)):
            if not field:
                raise UserError(f"{argument} is empty: name a field of the rows.")
        self.table = table
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.verifier = ExactMatch() if verifier is None else verifier
        self._length = len(table)
        self.size = self._length

    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position`: every epoch is one pass over all rows in an order drawn from (seed, epoch)."""
        epoch, index = divmod(position, self._length)
        return self.nth(shuffled(index, self._length, seed, epoch))

    def nth(self, index: int) -> Prompt:
        """The prompt of row `index`, from 0, in the order of the table."""
        row = self.table.row(index)
        text = self._prompt_text(self._field(row, self.prompt_field), row.place)
        answer = self._answer_text(self._field(row, self.answer_field), row.place)
        return Prompt(
            uid=row.uid,
            text=text,
            row={**row.fields, "answer": answer},
            verifier=self.verifier,
            place=row.place,
        )

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts in the order of the table; all of them for None or if there are fewer.

        Raises:
            UserError: `limit` is not positive, or one of the rows cannot be used.
        """
        if limit is not None and limit < 1:
            raise UserError(f"A limit of {limit} leaves no prompts, use a positive one.")
        count = self._length if limit is None else min(limit, self._length)
        return [self.nth(index) for index in range(count)]

    def _field(self, row: Row, field: str) -> object:
        if field in row.fields:  # a name with a dot in it goes before a field within a field
            return row.fields[field]
        value: object = row.fields
        holder = "the row"
        for name in field.split("."):
            if not isinstance(value, Mapping):
                raise BadRow(f"{row.place}: the field {field!r} is missing, {holder} is {shown_value(value)}.")
            if name not in value:
                raise BadRow(f"{row.place}: the field {field!r} is missing, {holder} has {shown_value(list(value))}.")
            value = value[name]
            holder = repr(name)
        return value

    def _prompt_text(self, value: object, place: str) -> str:
        text = value
        if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
            text = _only_message(value)
            if text is None:
                roles = shown_value([message.get("role") for message in value])
                raise BadRow(
                    f"{place}: {self.prompt_field!r} is a chat of the roles {roles}; only a single message of the role "
                    "'user' can be used, since the system prompt belongs to the template."
                )
        if not isinstance(text, str) or not text.strip():
            raise BadRow(
                f"{place}: {self.prompt_field!r} must be a string that is not empty, not {shown_value(value)}."
            )
        _check_unicode(text, self.prompt_field, place)
        return text

    def _answer_text(self, value: object, place: str) -> str:
        if isinstance(value, list) and len(value) == 1:  # some data sets keep a list of answers
            value = value[0]
        if isinstance(value, str) and value.strip():
            _check_unicode(value, self.answer_field, place)
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        raise BadRow(
            f"{place}: {self.answer_field!r} must be a string that is not empty or a number, not {shown_value(value)}."
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


def _only_message(messages: Sequence[Mapping[str, Any]]) -> object:
    """The text of a chat that is a single message of the user, else None."""
    if len(messages) == 1 and messages[0].get("role") == "user":
        return messages[0].get("content")
    return None


def _check_unicode(text: str, field: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            f"{place}: {field!r} holds half a surrogate pair, which is no text: {shown_value(text)}."
        ) from error
