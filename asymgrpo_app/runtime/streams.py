"""Standard streams that may be lost: closed from the start, a pipe nobody reads, a terminal that is gone, a full disk.

A run goes on without its output; nothing of it is in the output alone.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO

_UNREAD = (errno.EPIPE, errno.EIO)  # the reader, or the terminal, has gone
_failures: list[OSError] = []


def keep_streams() -> None:
    """Have writing to stdout and stderr never fail, and neither of them be closed. For a program's entry point.

    Characters that a stream's encoding lacks are written as escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _kept(sys.stdout, 1)
    sys.stderr = _kept(sys.stderr, 2)


def write_failure() -> OSError | None:
    """The first error of writing to stdout or stderr while somebody was reading, such as a full disk; None if none."""
    return next((failure for failure in _failures if failure.errno not in _UNREAD), None)


class _Kept(io.RawIOBase):
    """The bytes of a file descriptor; after the first error they are dropped."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__()
        self.name = name
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int | None:
        try:
            return os.write(self._number, data)
        except BlockingIOError:
            return None
        except OSError as error:
            _failures.append(error)
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (before anything is imported)
                os.dup2(nowhere.fileno(), self._number)
            return len(data)


def _kept(stream: TextIO | None, number: int) -> TextIO:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw = _Kept(number, f"<{('stdin', 'stdout', 'stderr')[number]}>")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)
