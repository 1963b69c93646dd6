"""Problems from CSV files."""

import csv
import io
from array import array
from collections.abc import Iterator
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.files import FileSource, FileTable
from asymgrpo_app.prompts.indexed import CHUNK, LONGEST_ROW, IndexedTable, start_of_text
from asymgrpo_app.prompts.reading import Reading
from asymgrpo_app.prompts.values import Row, shown_value
from asymgrpo_app.rewards.base import Verifier

csv.field_size_limit(LONGEST_ROW)  # of the process; 128 KiB unless set


class CsvTable(IndexedTable):
    """The records of a file after its header; their cells are texts.

    Args:
        path: The file.
        name: Its name in uids.
        delimiter: What stands between cells.

    Raises:
        UserError: It cannot be read, or its header does not name every column once.
    """

    one_row = "one record per line"

    def __init__(self, path: str, name: str, delimiter: str) -> None:
        self.delimiter = delimiter
        self.index_kind = f"csv1-{ord(delimiter)}"
        self._header: list[str] | None = None
        super().__init__(path, name)
        if self.length:
            header = super().row(0)
            self._header = list(header.fields)
            self.length -= 1

    def row(self, index: int) -> Row:
        """Record `index`, from 0, the header left out.

        Raises:
            BadRow: It cannot be read.
        """
        return super().row(index + 1)

    def positions(self) -> "Iterator[array[int]]":
        lines = _Lines(self)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        pairs = array("Q")
        while True:
            start = lines.position, lines.number
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error:  # told of when the record is read
                cells = [""]
            if cells:
                pairs.extend(start)
            if len(pairs) >= CHUNK:
                yield pairs
                pairs = array("Q")
        yield pairs
        yield array("Q", (self.file.size, 0))

    def parsed(self, text: str, place: str) -> dict[str, Any]:
        try:
            records = [cells for cells in self._records(text) if cells]
        except csv.Error as error:
            raise BadRow(f"{place}: no record of a CSV file ({error}), seen {shown_value(text.rstrip())}.") from error
        cells = records[0]
        if self._header is None:
            return _columns(cells, place)
        if len(cells) != len(self._header):
            raise BadRow(
                f"{place}: {len(cells)} cells, but the header names {len(self._header)} columns: "
                f"{shown_value(text.rstrip())}."
            )
        return dict(zip(self._header, cells, strict=True))

    def _records(self, text: str) -> Iterator[list[str]]:
        return csv.reader(io.StringIO(text, newline="\n"), delimiter=self.delimiter, strict=True)


def _columns(cells: list[str], place: str) -> dict[str, Any]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{place}: the header must give every column a name of its own, not {shown_value(names)}.")
    return dict.fromkeys(names)


class _Lines:
    """The lines of a table's file, for a reader of CSV; knows where the next one begins.

    They are read as Latin-1: what matters to the reader has the same bytes in UTF-8.
    """

    def __init__(self, table: CsvTable) -> None:
        self._file = table.file
        self.position = start_of_text(table.file)
        self.number = 1
        self._read = self.position
        self._lines: list[bytes] = []  # the next one last

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._next()
        self.position += len(line)
        self.number += 1
        return line.decode("latin-1")

    def _next(self) -> bytes:
        while len(self._lines) < 2 and self._read < self._file.size:  # the last one may go on
            chunk = self._file.read(self._read, min(CHUNK, self._file.size - self._read))
            self._read += len(chunk)
            rest = self._lines.pop() if self._lines else b""
            self._lines = [*reversed((rest + chunk).splitlines(keepends=True)), *self._lines]
        if not self._lines:
            raise StopIteration
        return self._lines.pop()


class CsvFiles(FileSource):
    r"""Problems from UTF-8 files of comma-separated values, whose first record names the columns.

    All cells are texts; what is JSON, such as a list of numbers, goes into `reading.json_fields`. Cells in quotes may
    go over several lines, and quotes within them are doubled (RFC 4180). The verifier finds every column of the record,
    and the answer under `answer`. The uid is `<file name>/<number of the line where the record begins>`; of several
    files with the same name, with the folders in which they differ.

    No file is held in memory: records are found through an index, as in JsonLines. Files whose names end in .gz, .bz2,
    .xz or .zst are unpacked once into the cache.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.csv`, or a list of both.
        prompt_field: The column of the prompt, a string that is not empty, or a chat, whose last message of the user
            is the problem; for a field within it, names joined by dots: `extra_info.question`, `messages.0.content`.
        answer_field: The column of the right answer, a string that is not empty, a number or a date; named likewise.
            Null: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these fields do not say it all: chats and choices, references
            inside solutions, JSON in texts.
        delimiter: The character between cells: `","`, `";"`, or `"\t"` in TSV files.

    Raises:
        UserError: A file cannot be read, has no header, or there is no record.
    """

    table_class = CsvTable

    def __init__(
        self,
        path: str | list[str],
        prompt_field: str = "prompt",
        answer_field: str | None = "answer",
        verifier: Verifier | None = None,
        reading: Reading | None = None,
        delimiter: str = ",",
    ) -> None:
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
            raise UserError(f"delimiter must be one ASCII character and no quote, got {delimiter!r}.")
        self.delimiter = delimiter
        super().__init__(path, prompt_field, answer_field, verifier, reading)

    def _table(self, path: str, name: str) -> FileTable:
        return CsvTable(path, name, self.delimiter)
