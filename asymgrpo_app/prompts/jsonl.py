"""Problems from JSON Lines: one JSON object with a prompt and an answer per line."""

import json
from array import array
from collections.abc import Iterator
from typing import Any, ClassVar

from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.files import FileSource
from asymgrpo_app.prompts.indexed import CHUNK, IndexedTable, start_of_text
from asymgrpo_app.prompts.reading import parsed_json
from asymgrpo_app.prompts.values import shown_value


class JsonTable(IndexedTable):
    """The lines of a file that are not blank."""

    index_kind = "lines1"
    one_row = "one JSON object per line"
    array_hint: ClassVar[str] = ""
    """What the message about a line that begins an array ends in."""

    def positions(self) -> "Iterator[array[int]]":
        file = self.file
        position = line = start_of_text(file)
        number = 1
        blank = True  # the line so far
        while position < file.size:
            pairs = array("Q")
            *ended, rest = file.read(position, min(CHUNK, file.size - position)).split(b"\n")
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

    def parsed(self, text: str, place: str) -> dict[str, Any]:
        return json_object(text.rstrip(), place, self.array_hint if text.startswith("[") else "")


def json_object(text: str, place: str, hint: str = "") -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        text: The text.
        place: Where it is, for messages.
        hint: What a message may end in.

    Raises:
        BadRow: It is none.
    """
    try:
        value = parsed_json(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # NaN and the like, numerals of thousands of digits, deep nesting
        reason = str(error).lower()
    else:
        if isinstance(value, dict):
            return value
        raise BadRow(f"{place}: expected a JSON object, not {shown_value(text)}{hint}.")
    raise BadRow(f"{place}: not JSON ({reason}), seen {shown_value(text)}{hint}.")


class _PromptTable(JsonTable):
    array_hint = " (JsonFiles reads files that are one JSON array)"


class JsonLines(FileSource):
    """Problems from UTF-8 files with one JSON object per line, e.g. `{"prompt": "2 + 2 =", "answer": "4"}`.

    Files whose names end in .gz, .bz2, .xz or .zst are unpacked once into the cache.

    Blank lines are skipped. The verifier finds every field of the line, and the answer as a string under `answer`. The
    uid is `<file name>/<line number>`; of several files with the same name, with the folders in which they differ.

    No file is held in memory: lines are found through an index, which is made in one pass and, for files of a megabyte
    or more, kept in the folder `$ASYMGRPO_CACHE` (default `~/.cache/asymgrpo`). Lines are parsed when they are needed.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.jsonl`, or a list of both.
        prompt_field: The field of the prompt, a string that is not empty, or a chat, whose last message of the user
            is the problem; for a field within it, names joined by dots: `extra_info.question`, `messages.0.content`.
        answer_field: The field of the right answer, a string that is not empty, a number or a date; named likewise.
            Null: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these fields do not say it all: chats and choices, references
            inside solutions, JSON in texts.

    Raises:
        UserError: A file cannot be read, or there is no line.
    """

    table_class = _PromptTable
