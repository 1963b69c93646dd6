"""Text files in which a row is found through an index of their rows."""

import struct
from abc import abstractmethod
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import FileTable, SourceFile
from asymgrpo_app.prompts.packed import unpacked
from asymgrpo_app.prompts.values import Row

LONGEST_ROW = 2**26
"""Most bytes of a row."""

CHUNK = 2**21
"""Bytes that are read at a time to make an index."""

_INDEXED_FROM = 2**20
"""Size in bytes from which a file's index is kept on disk; below, it is made anew each time and stays in memory."""

_TWO_PAIRS = struct.Struct("=4Q")
_PAIR = 16  # bytes


class IndexedTable(FileTable):
    """The rows of a text file; one that is packed is unpacked into the cache.

    Their index is pairs (first byte, line number from 1), the last of them (size of the file, 0): in memory, or in a
    file that is read pair by pair. A mapped file would be simpler, but all of its pages would soon count as this
    process's memory.
    """

    index_kind: str
    """Ending of an index's name in the cache; another one for each way to find rows."""

    one_row: ClassVar[str]
    """What a row is, for messages: `one JSON object per line`."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        self.file = unpacked(self.file)
        self._index: bytes | SourceFile
        if self.file.size < _INDEXED_FROM:
            self._index = b"".join(self.positions())
            size = len(self._index)
        else:
            self._index = SourceFile.find(str(cached(self.file, self.index_kind, self._write_index)))
            size = self._index.size
        self.length = size // _PAIR - 1

    def row(self, index: int) -> Row:
        """Row `index`, from 0, blank lines left out.

        Raises:
            BadRow: It cannot be read.
        """
        first = index * _PAIR
        if isinstance(self._index, SourceFile):
            pairs = self._index.read(first, _TWO_PAIRS.size)
        else:
            pairs = self._index[first : first + _TWO_PAIRS.size]
        start, number, end, _ = _TWO_PAIRS.unpack(pairs)  # white space and blank lines may follow before the end
        own, there = self.named(index, number)
        place = f"{self.file.shown}, {there}"
        if end - start > LONGEST_ROW:
            limit = f"more than {LONGEST_ROW:,}: write {self.one_row}"
            raise BadRow(f"{place}: the line has {end - start:,} bytes, {limit}.")
        content = self.file.read(start, end - start)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise BadRow(f"{place}: not UTF-8 text, seen the bytes {content[error.start : error.end]!r}.") from error
        return Row(uid=f"{self.name}/{own}", place=place, fields=self.parsed(text, place))

    def named(self, index: int, line: int) -> tuple[int, str]:
        """The number of a row in its uid, and where it is.

        Args:
            index: Its index, from 0.
            line: The line where it begins, from 1.
        """
        return line, f"line {line}"

    @abstractmethod
    def positions(self) -> "Iterator[array[int]]":
        """Yield the pairs of the file's index, without parsing the rows."""

    @abstractmethod
    def parsed(self, text: str, place: str) -> dict[str, Any]:
        """The fields of a row, from its text and what follows before the next one.

        Raises:
            BadRow: It cannot be read.
        """

    def _write_index(self, path: Path) -> None:
        with path.open("wb") as index:
            index.writelines(self.positions())


def start_of_text(file: SourceFile) -> int:
    """Number of the first byte after the byte order mark, if there is one."""
    return len(BOM_UTF8) if file.read(0, min(len(BOM_UTF8), file.size)) == BOM_UTF8 else 0
