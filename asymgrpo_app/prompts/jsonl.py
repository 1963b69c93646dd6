"""Problems from JSON Lines: one JSON object with a prompt and an answer per line."""

import json
import struct
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import FileSource, FileTable, SourceFile
from asymgrpo_app.prompts.rows import Row, shown_value

_INDEXED_FROM = 2**20
"""Size in bytes from which a file's index is kept on disk; below, it is made anew each time and stays in memory."""

_LONGEST_LINE = 2**26
_CHUNK = 2**21
_TWO_PAIRS = struct.Struct("=4Q")
_PAIR = 16  # bytes
_INDEX_KIND = "lines1"


class JsonTable(FileTable):
    """The lines of a file that are not blank.

    Their index is pairs (first byte, line number from 1), the last of them (size of the file, 0): in memory, or in a
    file that is read pair by pair. A mapped file would be simpler, but all of its pages would soon count as this
    process's memory.
    """

    def __init__(self, path: str, name: str) -> None:
        if path.endswith((".gz", ".bz2", ".xz", ".zst")):
            raise UserError(f"{path} is compressed, and lines can be found in plain text only: unpack it first.")
        super().__init__(path, name)
        self._index: bytes | SourceFile
        if self.file.size < _INDEXED_FROM:
            self._index = b"".join(_positions(self.file))
            size = len(self._index)
        else:
            self._index = SourceFile.find(str(cached(self.file, _INDEX_KIND, self._write_index)))
            size = self._index.size
        self.length = size // _PAIR - 1

    def row(self, index: int) -> Row:
        """The object of line `index`, from 0, blank lines left out.

        Raises:
            BadRow: The line is no JSON object.
        """
        first = index * _PAIR
        if isinstance(self._index, SourceFile):
            pairs = self._index.read(first, _TWO_PAIRS.size)
        else:
            pairs = self._index[first : first + _TWO_PAIRS.size]
        start, number, end, _ = _TWO_PAIRS.unpack(pairs)  # white space and blank lines may follow before the end
        place = f"{self.file.shown}, line {number}"
        if end - start > _LONGEST_LINE:
            limit = f"more than {_LONGEST_LINE:,}: write one JSON object per line"
            raise BadRow(f"{place}: the line has {end - start:,} bytes, {limit}.")
        fields = _parsed(self.file.read(start, end - start), place)
        return Row(uid=f"{self.name}/{number}", place=place, fields=fields)

    def _write_index(self, path: Path) -> None:
        with path.open("wb") as index:
            index.writelines(_positions(self.file))


def _positions(file: SourceFile) -> "Iterator[array[int]]":
    """Yield the pairs of a file's index, without parsing the lines."""
    position = line = len(BOM_UTF8) if file.read(0, min(len(BOM_UTF8), file.size)) == BOM_UTF8 else 0
    number = 1
    blank = True  # the line so far
    while position < file.size:
        pairs = array("Q")
        *ended, rest = file.read(position, min(_CHUNK, file.size - position)).split(b"\n")
        for piece in ended:
            if not blank or (piece and not piece.isspace()):
                pairs.extend((line, number))
            position += len(piece) + 1
            line = position
            number += 1
            blank = True
        position += len(rest)
        blank = blank and (not rest or rest.isspace())
        yield pairs
    if not blank:
        yield array("Q", (line, number))
    yield array("Q", (file.size, 0))


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        text = line.decode().rstrip()
        value = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadRow(f"{place}: not UTF-8 text, seen the bytes {line[error.start : error.end]!r}.") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # NaN and the like, numerals of thousands of digits, deep nesting
        reason = str(error).lower()
    else:
        if isinstance(value, dict):
            return value
        raise BadRow(f"{place}: expected a JSON object, not {shown_value(text)}.")
    raise BadRow(f"{place}: not JSON ({reason}), seen {shown_value(text)}.")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


class JsonLines(FileSource):
    """Problems from UTF-8 files with one JSON object per line, e.g. `{"prompt": "2 + 2 =", "answer": "4"}`.

    Blank lines are skipped. The verifier finds every field of the line, and the answer as a string under `answer`. The
    uid is `<file name>/<line number>`; of several files with the same name, with the folders in which they differ.

    No file is held in memory: lines are found through an index, which is made in one pass and, for files of a megabyte
    or more, kept in the folder `$ASYMGRPO_CACHE` (default `~/.cache/asymgrpo`). Lines are parsed when they are needed.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.jsonl`, or a list of both.
        prompt_field: The field of the prompt, a string that is not empty (or a list with one chat message of the role
            `user`); for a field within a field, names joined by dots, e.g. `extra_info.question`.
        answer_field: The field of the right answer, a string that is not empty or a number; named likewise.
        verifier: The verifier that judges the completions; exact match if left out.

    Raises:
        UserError: A file cannot be read, or there is no line.
    """

    table_class = JsonTable
