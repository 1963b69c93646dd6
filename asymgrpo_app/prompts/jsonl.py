"""Problems from JSON Lines: one JSON object with a prompt and an answer per line."""

import json
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import SourceFile, expand, shown, unique_names
from asymgrpo_app.prompts.rows import Row, RowSource, shown_value
from asymgrpo_app.rewards.base import Verifier

MEGABYTE = 2**20

_INDEXED_FROM = MEGABYTE
"""Size in bytes from which a file's index is kept on disk; below, it is made anew each time and stays in memory."""

_LONGEST_LINE = 64 * MEGABYTE
_CHUNK = 2 * MEGABYTE

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEWLINE = ord("\n")
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))

_ENTRY = struct.Struct("<2Q")
_TWO_ENTRIES = struct.Struct("<4Q")
_INDEX_KIND = "lines1"

Entries = npt.NDArray[np.uint64]


class JsonLines(RowSource):
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

    def __init__(
        self,
        path: str | list[str],
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        verifier: Verifier | None = None,
    ) -> None:
        self.path = path
        table = JsonTable(expand(path))
        if not len(table):
            raise UserError(f"{shown(path)} holds no prompts: write one JSON object per line.")
        super().__init__(table, prompt_field, answer_field, verifier)

    def __str__(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path)


@dataclass(frozen=True)
class LineIndex:
    """The positions of the lines of a file that are not blank.

    The entries are pairs (first byte, line number from 1), and at last (size of the file, number of lines + 1): in
    memory, or in a file that is read entry by entry. A mapped file would be simpler, but all of its pages would soon
    count as this process's memory.
    """

    entries: "Entries | SourceFile"

    def __len__(self) -> int:
        if isinstance(self.entries, SourceFile):
            return self.entries.size // _ENTRY.size - 1
        return len(self.entries) - 1

    def line(self, index: int) -> tuple[int, int, int]:
        """First byte, end (white space and blank lines may follow the line within it) and number of a line."""
        if isinstance(self.entries, SourceFile):
            content = self.entries.read(index * _ENTRY.size, _TWO_ENTRIES.size)
            start, number, end, _ = _TWO_ENTRIES.unpack(content)
        else:
            (start, number), (end, _) = self.entries[index : index + 2].tolist()
        return start, end, number


class JsonTable:
    """The lines of several files, one file after the other.

    Args:
        paths: The files.

    Raises:
        UserError: A file cannot be read.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        for path in paths:
            if path.endswith((".gz", ".bz2", ".xz", ".zst")):
                raise UserError(f"{path} is compressed, and lines can be found in plain text only: unpack it first.")
        self._names = unique_names(paths)
        self._files = [SourceFile.find(path) for path in paths]
        self._indexes = [index_lines(file) for file in self._files]
        self._ends = list(accumulate(map(len, self._indexes)))

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        """The object of line `index`, from 0, blank lines left out.

        Raises:
            BadRow: The line is no JSON object.
        """
        which = bisect_right(self._ends, index)
        file = self._files[which]
        first_of_file = self._ends[which] - len(self._indexes[which])
        start, end, number = self._indexes[which].line(index - first_of_file)
        place = f"{file.shown}, line {number}"
        if end - start > _LONGEST_LINE:
            raise BadRow(
                f"{place}: the line has {end - start:,} bytes, more than {_LONGEST_LINE:,}: write one JSON object per "
                "line."
            )
        value = _parse_json(_decoded(file.read(start, end - start), place), place)
        return Row(uid=f"{self._names[which]}/{number}", place=place, fields=value)


def index_lines(file: SourceFile) -> LineIndex:
    """Find the lines of a file, or take them from the cache."""
    if file.size < _INDEXED_FROM:
        return LineIndex(np.concatenate(list(_entries(file))))

    def build(path: Path) -> None:
        with path.open("wb") as index:
            for entries in _entries(file):
                index.write(entries.astype("<u8").data)

    return LineIndex(SourceFile.find(str(cached(file, _INDEX_KIND, build))))


def _entries(file: SourceFile) -> Iterator[Entries]:
    """Yield the entries of a file's index as arrays of shape (lines, 2), without parsing the lines."""
    position = len(_BYTE_ORDER_MARK) if _starts_with_mark(file) else 0
    number = 1
    line_begins = True  # at `position`
    while position < file.size:
        chunk = np.frombuffer(file.read(position, min(_CHUNK, file.size - position)), np.uint8)
        starts = np.flatnonzero(chunk == _NEWLINE) + 1
        if line_begins:
            starts = np.insert(starts, 0, 0)
        line_begins = bool(len(starts)) and starts[-1] == len(chunk)
        if line_begins:
            starts = starts[:-1]
        numbers = np.arange(number, number + len(starts))
        number += len(starts)
        first_bytes = chunk[starts]
        kept = first_bytes != _NEWLINE
        for suspect in np.flatnonzero(kept & _IS_SPACE[first_bytes]):
            kept[suspect] = not _is_blank(file, position + int(starts[suspect]))
        yield np.stack([starts[kept] + position, numbers[kept]], axis=1).astype(np.uint64)
        position += len(chunk)
    yield np.array([[file.size, number]], np.uint64)


def _starts_with_mark(file: SourceFile) -> bool:
    return file.read(0, min(len(_BYTE_ORDER_MARK), file.size)) == _BYTE_ORDER_MARK


def _is_blank(file: SourceFile, start: int) -> bool:
    """Whether the line that begins at `start` holds only white space."""
    length = 64
    while start < file.size:
        piece, newline, _ = file.read(start, min(length, file.size - start)).partition(b"\n")
        if piece.strip():
            return False
        if newline:
            break
        start += length
        length = _CHUNK
    return True


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode().rstrip()
    except UnicodeDecodeError as error:
        seen = shown_value(line[error.start : error.end])
        raise BadRow(f"{place}: not UTF-8 text, seen the bytes {seen}.") from error


def _parse_json(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # NaN and the like, numerals of thousands of digits, deep nesting
        reason = str(error).lower()
    else:
        if isinstance(value, dict):
            return value
        raise BadRow(f"{place}: expected a JSON object, not {shown_value(line)}.")
    raise BadRow(f"{place}: not JSON ({reason}), seen {shown_value(line)}.")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
