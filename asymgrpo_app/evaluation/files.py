"""Files of evaluations: written whole or not at all, and read into dataclasses whose types are checked."""

import contextlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.runtime.whole_files import written_whole

_FORMAT = 1

T = TypeVar("T")

_adapter: Callable[[Any], TypeAdapter[Any]] = lru_cache(TypeAdapter)  # once per line of a prediction file


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
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{where} exists already: remove it, or choose another name.")


@contextlib.contextmanager
def writing(where: object) -> Iterator[None]:
    """Report a file that cannot be written as a `RunError`."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{where} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def whole_file(path: Path, *, overwrite: bool = False, option: str = "") -> Iterator[BinaryIO]:
    """Open a file under a temporary name, and rename it once it is whole; otherwise nothing of it is left behind.

    Args:
        path: Path of the file; its folder is made.
        overwrite: Whether another file may be replaced.
        option: The option that named the path; for messages.

    Raises:
        UserError: The file exists, and `overwrite` is not set.
        RunError: It cannot be written.
    """
    refuse_existing(path, overwrite=overwrite, option=option)
    with writing(f"{option} {path}".strip()), written_whole(path) as file:
        yield file
        refuse_existing(path, overwrite=overwrite, option=option)  # hours may lie between


def write_record(path: Path, content: object, *, overwrite: bool = False) -> None:
    """Write a dataclass as a JSON file, whole or not at all; infinite numbers become null.

    Raises:
        UserError: The file exists, and `overwrite` is not set.
        RunError: It cannot be written.
    """
    data = _adapter(type(content)).dump_python(content, mode="json")
    with whole_file(path, overwrite=overwrite) as file:
        file.write(f"{_readable({'format': _FORMAT, **data})}\n".encode())


def _readable(value: Any, indent: str = "") -> str:
    """JSON with one line per field, but lists of plain values on one line, since they have an entry per problem."""
    if isinstance(value, dict) and value:
        inner = f"{indent}  "
        lines = [f"{inner}{json.dumps(key)}: {_readable(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value, allow_nan=False)


def read_record(kind: type[T], path: Path) -> T:
    """Read a dataclass that `write_record` wrote.

    Raises:
        UserError: The file cannot be read, or it is no such file.
    """
    try:
        data = parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
        raise UserError(
            f"{path} was not written by asymgrpo, or by another version (it has no 'format': {_FORMAT}): evaluate "
            "again, or read it with that version."
        )
    return checked(kind, data, str(path))


def parsed(text: bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: It is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON in UTF-8: {error}.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def checked(kind: type[T], data: Any, where: str) -> T:
    """Convert the content of a JSON file to a dataclass of exactly these fields and types.

    Args:
        kind: The dataclass.
        data: Output of `json.loads`.
        where: Name of the data, for messages.

    Raises:
        UserError: Something is missing, unknown, or of another type.
    """
    try:
        return cast(T, _adapter(kind).validate_python(data, extra="forbid"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the content"
        raise UserError(f"{where}: {key}: {first['msg']}, got {reprlib.repr(first['input'])}.") from error
