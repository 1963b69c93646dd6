"""JSON files: written whole or not at all, and read into dataclasses with an error message for what does not fit."""

import contextlib
import dataclasses
import json
import os
import types
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from asymgrpo_app.errors import RunError, UserError

T = TypeVar("T")


def refuse_existing(path: Path, *, overwrite: bool = False, option: str = "") -> None:
    """Raise `UserError` if a file cannot be made at `path`; called before the work whose result it will hold.

    Args:
        path: Path of the file.
        overwrite: Whether another file may be replaced.
        option: The option that named the path, e.g. `--output`; for messages.
    """
    where = f"{option} {path}".strip()
    if path.is_dir():
        raise UserError(f"{where} is a folder: give the name of a file.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{where} cannot be made: {nearest} is no folder.")
    if path.exists() and not overwrite:
        raise UserError(f"{where} exists already: remove it, choose another name, or pass --overwrite.")


def write_whole(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a file under a temporary name, and rename it once it is whole.

    Raises:
        UserError: The file exists, and `overwrite` is not set.
        RunError: It cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: It cannot be read, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8: {error}.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def to_plain(value: Any) -> Any:
    """Convert dataclasses and named tuples to dictionaries, also those that are nested."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [to_plain(entry) for entry in value]
    return value


def from_plain(kind: type[T], data: Any, where: str) -> T:
    """Convert dictionaries to a dataclass (or named tuple) of exactly these fields and types, also nested ones.

    Args:
        kind: The type; its fields may be such types, str, int, float, bool, `list[X]`, `dict[str, X]` and `X | None`.
        data: Output of `json.loads`.
        where: Name of the data, for messages.

    Raises:
        UserError: Something is missing, unknown, or of another type.
    """
    return cast(T, _convert(kind, data, where))


def _convert(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return None if data is None else _convert(inner, data, where)
    if origin is list:
        _expect(isinstance(data, list), where, "a list", data)
        return [_convert(arguments[0], entry, f"{where}[{number}]") for number, entry in enumerate(data)]
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in data.items()}
    if kind in (str, int, float, bool):
        return _convert_scalar(kind, data, where)
    _expect(isinstance(data, dict), where, "an object", data)
    hints = _hints(kind)
    if missing := [name for name in hints if name not in data]:
        raise UserError(f"{where} has no field {missing[0]!r}.")
    if unknown := [name for name in data if name not in hints]:
        raise UserError(f"{where} has a field that is not known here, {unknown[0]!r}.")
    return kind(**{name: _convert(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


_hints = lru_cache(maxsize=64)(get_type_hints)  # once per line of a prediction file


def _convert_scalar(kind: type, data: Any, where: str) -> Any:
    name = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    fits = isinstance(data, int | float if kind is float else kind) and (kind is bool or not isinstance(data, bool))
    _expect(fits, where, name, data)
    return float(data) if kind is float else data


def _expect(fits: bool, where: str, wanted: str, data: Any) -> None:
    if not fits:
        shown = json.dumps(data)
        raise UserError(f"{where} must be {wanted}, got {shown if len(shown) <= 60 else f'{shown[:60]} ...'}.")


def readable_json(value: Any, indent: str = "") -> str:
    """JSON with one line per field, but lists of plain values on one line, since they have an entry per problem."""
    if isinstance(value, dict) and value:
        inner = f"{indent}  "
        lines = [f"{inner}{json.dumps(key)}: {readable_json(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value, allow_nan=False)
