"""Files of rows: finding the ones a user names, reading parts of them, and their rows as one table."""

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Self

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.reading import Reading
from asymgrpo_app.prompts.rows import RowSource
from asymgrpo_app.prompts.values import Row
from asymgrpo_app.rewards.base import Verifier

_KEPT_OPEN = 128
"""Most files that a process keeps open: far below the usual limit of 1,024, for sources with thousands of files."""


class FileSource(RowSource):
    """Prompts from files of rows, named in a config.

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
        UserError: A file cannot be read, or there is no row.
    """

    table_class: ClassVar[type["FileTable"]]

    def __init__(
        self,
        path: str | list[str],
        prompt_field: str = "prompt",
        answer_field: str | None = "answer",
        verifier: Verifier | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.path = path
        paths = expand(path)
        self._tables = [self._table(file, name) for file, name in zip(paths, _unique_names(paths), strict=True)]
        self._ends = list(accumulate(map(len, self._tables)))
        super().__init__(self._ends[-1], prompt_field, answer_field, verifier, reading)

    def _table(self, path: str, name: str) -> "FileTable":
        return self.table_class(path, name)

    def row(self, index: int) -> Row:
        """The row `index`, from 0, of the files one after the other."""
        number = bisect_right(self._ends, index)
        return self._tables[number].row(index - (self._ends[number - 1] if number else 0))

    def __str__(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path)


class FileTable(ABC):
    """The rows of one file; a subclass counts them when it is made.

    Args:
        path: The file.
        name: Its name in uids.

    Raises:
        UserError: It cannot be read.
    """

    def __init__(self, path: str, name: str) -> None:
        self.file = SourceFile.find(path)
        self.name = name
        self.length = 0

    def __len__(self) -> int:
        return self.length

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row `index`, from 0.

        Raises:
            BadRow: The row cannot be read.
        """


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was found. A plain value: it can be pickled, forked and shared by threads.

    Attributes:
        path: Absolute path.
        shown: The path as the user wrote it, for messages.
        size: Bytes.
        mtime_ns: Time of the last change.
    """

    path: str
    shown: str
    size: int
    mtime_ns: int

    @classmethod
    def find(cls, path: str) -> Self:
        """Find a file, and note its size and time of change.

        Raises:
            UserError: The file does not exist, is not a regular file, or may not be read.
        """
        absolute = Path(path).absolute()
        try:
            status = absolute.stat()
            if not absolute.is_file():  # a pipe would wait for its writer
                raise OSError(0, "Not a regular file")
            found = cls(str(absolute), path, status.st_size, status.st_mtime_ns)
            _opened(found)
        except OSError as error:
            raise _unreadable(path, error) from error
        return found

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on.

        Raises:
            UserError: The file cannot be read or is no longer what it was.
        """
        try:
            file = _opened(self)
            content = os.pread(file.fileno(), length, start)
            status = os.fstat(file.fileno())
        except OSError as error:
            raise _unreadable(self.shown, error) from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns) or len(content) != length:
            raise UserError(
                f"{self.shown} changed while it was in use: start again, or use a copy that stays as it is."
            )
        return content


# Opened by each process for itself, when first needed. Who reads holds a reference, so a file that falls out of the
# cache is not closed under a reading thread; and pread has no position that threads or forks could share.
@lru_cache(maxsize=_KEPT_OPEN)
def _opened(file: SourceFile) -> FileIO:
    return FileIO(file.path)


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"Cannot read the prompt file {path!r}: {error.strerror or error}.")


def expand(path: str | Sequence[str]) -> list[str]:
    """The files meant by a path, a pattern such as `data/*.jsonl`, or a list of both.

    The matches of a pattern are sorted; a list keeps its order. A name that exists is taken as it is, even if it looks
    like a pattern.

    Raises:
        UserError: The list is empty, a pattern matches no file, or a file is named twice.
    """
    files: list[str] = []
    for pattern in [path] if isinstance(path, str) else path:
        matches = [pattern]
        if has_magic(pattern) and not Path(pattern).exists():
            found = glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
            matches = sorted(match for match in found if Path(match).is_file())
        if not matches:
            raise UserError(f"No file matches {pattern!r}.")
        files += matches
    if not files:
        raise UserError("The list of prompt files is empty: name at least one file.")
    for file, times in Counter(Path(file).absolute() for file in files).items():
        if times > 1:
            raise UserError(f"The prompt file {str(file)!r} is named twice.")
    return files


def _unique_names(paths: Sequence[str]) -> list[str]:
    """A short name for each of several files: the file name, or the path below their common folder if names repeat."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    absolute = [Path(path).absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(shared).as_posix() for path in absolute]
