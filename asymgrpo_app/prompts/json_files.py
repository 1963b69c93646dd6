"""Problems from JSON files: one array of objects, or one object per line."""

import re
from array import array
from collections.abc import Iterator
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.files import FileSource, FileTable, SourceFile
from asymgrpo_app.prompts.indexed import CHUNK, IndexedTable, start_of_text
from asymgrpo_app.prompts.jsonl import JsonTable, json_object
from asymgrpo_app.prompts.packed import unpacked

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_AMONG_ELEMENTS = re.compile(rb'["\[\]{},]')
_IN_ELEMENT = re.compile(rb'["\[\]{}]')
_IN_STRING = re.compile(rb'["\\]')
_FIRST_BYTES = 2**16
_OPEN_OBJECT = re.compile(
    rb'\{[ \t]*(?:"[^"\\\n]*"[ \t]*:[ \t]*[\[{]?[ \t]*)?\r?\n'
)  # a line that ends before any value


class JsonArrayTable(IndexedTable):
    """The elements of the array that a file is."""

    index_kind = "array1"
    one_row = "one JSON array of objects"

    def named(self, index: int, line: int) -> tuple[int, str]:
        return index + 1, f"line {line}, object {index + 1}"  # all may stand on one line

    def positions(self) -> "Iterator[array[int]]":
        file = self.file
        position, number = start_of_text(file), 1
        scan = _Scan()
        while position < file.size:
            chunk = file.read(position, min(CHUNK, file.size - position))
            pairs, counted = array("Q"), 0
            for start in scan.starts(chunk):
                number += chunk.count(b"\n", counted, start)
                counted = start
                if scan.ended:
                    raise UserError(f"{file.shown}, line {number}: something follows the JSON array.")
                pairs.extend((position + start, number))
            number += chunk.count(b"\n", counted)
            position += len(chunk)
            yield pairs
        if not scan.ended:
            raise UserError(f"{file.shown}, line {number}: the JSON array does not end, so the file is cut off.")
        yield array("Q", (file.size, 0))

    def parsed(self, text: str, place: str) -> dict[str, Any]:
        text = text.rstrip()
        return json_object(text[:-1].rstrip() if text.endswith((",", "]")) else text, place)


class _Scan:
    """Finds the elements of an array in chunks of a file, without parsing them; their brackets are only counted."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._awaited = False  # an element
        self._skipped = 0  # bytes at the start of the next chunk: what a backslash escapes

    def starts(self, chunk: bytes) -> Iterator[int]:
        """Yield the place in a chunk of the first byte of each element; and of what follows the array."""
        at, self._skipped = self._skipped, 0
        while at < len(chunk):
            if self._in_string:
                at = self._through_string(chunk, at)
                continue
            if self.ended or self._awaited:
                if not (found := _NOT_SPACE.search(chunk, at)):
                    return
                at = found.start()
                self._awaited = False
                if self.ended or found[0] != b"]":
                    yield at
            token = (_AMONG_ELEMENTS if self._depth == 1 else _IN_ELEMENT).search(chunk, at)
            if token is None:
                return
            at = token.end()
            self._take(token[0])

    def _through_string(self, chunk: bytes, at: int) -> int:
        found = _IN_STRING.search(chunk, at)
        if found is None:
            return len(chunk)
        if found[0] == b'"':
            self._in_string = False
            return found.end()
        self._skipped = max(0, found.end() + 1 - len(chunk))
        return found.end() + 1

    def _take(self, token: bytes) -> None:
        if token == b'"':
            self._in_string = True
        elif token == b",":
            self._awaited = True
        elif token in b"[{":
            self._depth += 1
            self._awaited = self._depth == 1
        else:
            self._depth -= 1
            self.ended = self._depth == 0


class JsonFiles(FileSource):
    """Problems from UTF-8 files with one JSON array of objects, e.g. `[{"prompt": "2 + 2 =", "answer": "4"}]`.

    A file that does not begin with a bracket is read as JSON Lines. The verifier finds every field of the object, and
    the answer as a string under `answer`. The uid is `<file name>/<number of the object from 1>` (of the line in JSON
    Lines); of several files with the same name, with the folders in which they differ.

    No file is held in memory: objects are found through an index, as in JsonLines. Files whose names end in .gz, .bz2,
    .xz or .zst are unpacked once into the cache.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.json`, or a list of both.
        prompt_field: The field of the prompt, a string that is not empty, or a chat, whose last message of the user
            is the problem; for a field within it, names joined by dots: `extra_info.question`, `messages.0.content`.
        answer_field: The field of the right answer, a string that is not empty, a number or a date; named likewise.
            Null: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these fields do not say it all: chats and choices, references
            inside solutions, JSON in texts.

    Raises:
        UserError: A file cannot be read, is cut off, is one object over several lines, or there is no object.
    """

    table_class = JsonArrayTable

    def _table(self, path: str, name: str) -> FileTable:
        file = unpacked(SourceFile.find(path))
        start = file.read(0, min(_FIRST_BYTES, file.size))[start_of_text(file) :].lstrip()
        if start.startswith(b"["):
            return JsonArrayTable(path, name)
        if _OPEN_OBJECT.match(start):
            raise UserError(
                f"{file.shown} is one JSON object over several lines, and JsonFiles reads an array of objects, or one "
                "object per line: write the list of rows that it holds to a file of its own."
            )
        return JsonTable(path, name)
