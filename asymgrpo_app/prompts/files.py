"""Files of rows: finding the ones a user names, and reading parts of them."""

import os
import stat
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Self

from asymgrpo_app.errors import UserError

_KEPT_OPEN = 128
"""Most files that a process keeps open: far below the usual limit of 1,024, for sources with thousands of files."""


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
        absolute = str(Path(path).absolute())
        try:
            status = os.stat(absolute)  # noqa: PTH116 (beside os.open and os.fstat)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(0, "Is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "Not a regular file")
            found = cls(absolute, path, status.st_size, status.st_mtime_ns)
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
            descriptor = _opened(self).descriptor
            content = os.pread(descriptor, length, start)
            status = os.fstat(descriptor)
        except OSError as error:
            raise _unreadable(self.shown, error) from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns) or len(content) != length:
            raise UserError(
                f"{self.shown} changed while it was in use: start again, or use a copy that stays as it is."
            )
        return content


class _Opened:
    """An open file, closed when the last reference to it is gone."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


# Opened by each process for itself, when first needed. Who reads holds a reference, so a file that falls out of the
# cache is not closed under a reading thread; and pread has no position that threads or forks could share.
@lru_cache(maxsize=_KEPT_OPEN)
def _opened(file: SourceFile) -> _Opened:
    return _Opened(file.path)


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
        if not has_magic(pattern) or Path(pattern).exists():
            files.append(pattern)
            continue
        found = glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        matches = sorted(match for match in found if Path(match).is_file())
        if not matches:
            raise UserError(f"No file matches {pattern!r}.")
        files += matches
    if not files:
        raise UserError("The list of prompt files is empty: name at least one file.")
    seen: set[Path] = set()
    for file in files:
        absolute = Path(file).absolute()
        if absolute in seen:
            raise UserError(f"The prompt file {file!r} is named twice.")
        seen.add(absolute)
    return files


def unique_names(paths: Sequence[str]) -> list[str]:
    """A short name for each of several files: the file name, or the path below their common folder if names repeat."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    absolute = [Path(path).absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(shared).as_posix() for path in absolute]


def shown(path: str | Sequence[str]) -> str:
    """The path or paths that the user named, short enough for a message."""
    if isinstance(path, str):
        return path
    return path[0] if len(path) == 1 else f"{path[0]} (and {len(path) - 1} more)"
