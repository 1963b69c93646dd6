"""Rows of Arrow tables as plain values, the same that a JSON file of these rows gives."""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.reading import parsed_json
from asymgrpo_app.prompts.values import shown_value

if TYPE_CHECKING:
    import pyarrow as pa


def plain_row(row: "pa.RecordBatch | pa.Table", place: str) -> dict[str, Any]:
    """The fields of a table of one row.

    Columns of mixed types, which the libraries of the hub keep as JSON, are decoded; numbers of less than 64 bits get
    the digits that they were written with, 0.1 and not 0.10000000149011612. Those libraries store a text as it is,
    without quotes, if it could be JSON (`1.50`, `007`, `NaN`): what no number is written as stays a text. A text that
    is the JSON of an array, an object, a truth value or null cannot be told from that.

    Args:
        row: The row.
        place: Where it is, for messages.

    Raises:
        BadRow: Its bytes are no valid text, or its JSON is nested too deeply.
    """
    try:
        fields: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as error:  # Parquet does not check that strings are UTF-8
        seen = error.object[error.start : error.end]
        raise BadRow(f"{place}: not UTF-8 text, seen the bytes {seen!r}.") from error
    for column in row.schema:
        if _changes(column.type):
            try:
                fields[column.name] = _plain(fields[column.name], column.type)
            except RecursionError as error:
                raise BadRow(
                    f"{place}: the JSON in {column.name!r} is nested too deeply, seen "
                    f"{shown_value(fields[column.name])}."
                ) from error
    return fields


@lru_cache(maxsize=1_024)
def _changes(kind: "pa.DataType") -> bool:
    """Whether values of a type are others as plain values."""
    import pyarrow as pa

    own = pa.types.is_float16(kind) or pa.types.is_float32(kind) or _is_json(kind)
    return own or any(_changes(kind.field(number).type) for number in range(kind.num_fields))


def _plain(value: Any, kind: "pa.DataType") -> Any:
    import numpy as np
    import pyarrow as pa

    if value is None or not _changes(kind):
        return value
    if _is_json(kind):
        return _decoded(value)
    if pa.types.is_float16(kind):
        return float(str(np.float16(value)))
    if pa.types.is_float32(kind):
        return float(str(np.float32(value)))
    if pa.types.is_struct(kind):
        return {name: _plain(element, kind.field(name).type) for name, element in value.items()}
    if pa.types.is_map(kind):
        return [(_plain(key, kind.key_type), _plain(element, kind.item_type)) for key, element in value]
    return [_plain(element, kind.value_type) for element in value]  # a list of any kind


def _decoded(text: str) -> Any:
    """What a cell of a column of mixed types holds."""
    try:
        value = parsed_json(text)
    except ValueError:
        return text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return text if is_number and json.dumps(value) != text else value


def _is_json(kind: "pa.DataType") -> bool:
    return getattr(kind, "extension_name", "") == "arrow.json"
