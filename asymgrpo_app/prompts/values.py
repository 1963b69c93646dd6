"""Rows of tables: the values of their fields by name, and values as text."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeGuard

from asymgrpo_app.prompts.base import BadRow

_SHOWN_CHARS = 60
_SURROGATE = re.compile("[\ud800-\udfff]")
_POSITION = re.compile(r"-?[0-9]{1,9}")
_LARGEST_EXPONENT = 100  # of a decimal that is written in full


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


def is_text(value: object) -> TypeGuard[str]:
    """Whether the value is a string that is not blank and has no half of a surrogate pair, which cannot be encoded."""
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


def only_element(value: Any) -> Any:
    """The element of a list of one, as some data sets keep their answers; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def as_text(value: object) -> str | None:
    """A string that is not blank, a number, a decimal, a date or a time as text; None for anything else.

    Decimals are written in full with the digits that they have. A point of time without a zone at midnight is a date:
    the libraries of the hub make it of one.
    """
    match value:
        case str():
            return value if is_text(value) else None
        case bool():
            return None
        case int() | float():
            return str(value) if is_finite(value) else None
        case Decimal():
            if not value.is_finite():
                return None
            return format(value, "f") if abs(value.adjusted()) <= _LARGEST_EXPONENT else str(value)
        case datetime():
            is_date = value.time() == time() and value.tzinfo is None
            return value.date().isoformat() if is_date else value.isoformat(sep=" ")
        case date() | time():
            return value.isoformat()
    return None


def field_value(row: Row, field: str) -> Any:
    """The value of a field, or of a field within a field: names joined by dots.

    In a list a number is a place, from 0 or from the end (-1), and a name is taken from each of its objects.

    Raises:
        BadRow: It is missing.
    """
    if field in row.fields:  # a name with a dot in it goes before a field within a field
        return row.fields[field]
    value: Any = row.fields
    holder = "the row"
    for name in field.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif (within := _within(value, name)) is not None:
            value = within[0]
        else:
            raise BadRow(f"{row.place}: the field {field!r} is missing, {holder} {_seen(value)}.")
        holder = repr(name)
    return value


def _within(value: object, name: str) -> tuple[Any] | None:
    """What a name means in a list, or None."""
    if not isinstance(value, list):
        return None
    if _POSITION.fullmatch(name):
        place = int(name)
        return (value[place],) if -len(value) <= place < len(value) else None
    if value and all(isinstance(element, Mapping) and name in element for element in value):
        return ([element[name] for element in value],)
    return None


def _seen(value: object) -> str:
    if isinstance(value, Mapping):
        return f"has {shown_value(list(value))}"
    if isinstance(value, list):
        return f"is a list of {len(value)}: {shown_value(value)}"
    return f"is {shown_value(value)}"


def with_value(fields: Any, names: Sequence[str], value: object) -> Any:
    """A copy of a row's fields in which the field at a path of names, which must be there, has another value."""
    if not names:
        return value
    if isinstance(fields, list):
        place = int(names[0])
        return [with_value(old, names[1:], value) if i == place % len(fields) else old for i, old in enumerate(fields)]
    return {**fields, names[0]: with_value(fields[names[0]], names[1:], value)}
