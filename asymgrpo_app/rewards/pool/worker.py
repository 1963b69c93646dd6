"""The worker process: judges the items it is sent, one at a time.

Requests come from the trusted side: a head, and then what was pickled there.
"""

import contextlib
import errno
import os
import pickle
import resource
import signal
import socket
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from asymgrpo_app.rewards.answers import answer_classes
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.pool.limits import adopt_orphans, children, has_children, limit_resources
from asymgrpo_app.rewards.pool.messages import Reply, checked_verdict, described, encoded, failure, one_line
from asymgrpo_app.rewards.pool.sandbox import enter
from asymgrpo_app.runtime.stopping import end_with_parent

HEAD = struct.Struct("!16s8s32sQ")
"""What stands before a request: its number, its kind, the key of its verifier, and the length of what follows."""

_MAX_VERIFIERS = 256
_DENIED = (
    "; verifiers run in a sandbox without network, and without files but those of modules and a temporary folder "
    "(`sandbox: false` of the verifiers' pool turns it off)"
)


@dataclass(frozen=True)
class Confinement:
    """What workers may do.

    Attributes:
        memory_bytes: Address space that each may use.
        folder: Folder that each has a private folder in; "": there is no sandbox.
        readable: What they may read in the sandbox (see `sandbox.enter`).
    """

    memory_bytes: int
    folder: str = ""
    readable: Sequence[str] = ()

    def private(self, worker: int) -> str:
        """The private folder of a worker, which has it while it lives; "" without a sandbox."""
        return str(Path(self.folder, str(worker))) if self.folder else ""


def reply_to(kind: str, verifier: Verifier, given: Any, row: Mapping[str, Any]) -> Reply:
    """Judge an item.

    Args:
        kind: `verify` (a completion), `check` (only the row) or `classes` (of equal answers among the completions of
            one problem).
        verifier: The judge.
        given: The completion or completions.
        row: The row they answer.
    """
    if kind == "check":
        try:
            verifier.check_row(row)
        except ValueError as error:
            return {"reason": one_line(str(error)) or type(error).__name__}
        return {"reason": None}
    if kind == "classes":
        answers = [verifier.find_answer(completion, row) for completion in given]
        return {"classes": answer_classes(answers, verifier.equal_answers)}
    return vars(checked_verdict(verifier.verify(given, row)))


def confine(launcher: int, confinement: Confinement) -> None:
    """Limit what this process may do, and let it end with the launcher that forked it."""
    os.setpgid(0, 0)  # so that what a verifier starts can be ended with it
    end_with_parent(launcher)
    adopt_orphans()  # so that those show as children of this process
    limit_resources(confinement.memory_bytes)
    if private := confinement.private(os.getpid()):
        Path(confinement.folder).mkdir(mode=0o700, exist_ok=True)  # old temporary files may have been cleared away
        Path(private).mkdir(mode=0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = private
        enter(confinement.readable, private)
    os.dup2(1, 2)  # what a verifier prints is discarded: the launcher's standard output is the null device


def serve(connection: socket.socket, confinement: Confinement) -> None:
    """Answer requests until the other side closes the connection or this process should be replaced."""
    verifiers: dict[bytes, Verifier] = {}
    private = confinement.private(os.getpid())
    stream = os.fdopen(connection.fileno(), "rb", closefd=False)  # `makefile` reads by Python code, and takes longer
    before = _Left.now(private)
    leave = False
    while not leave and (head := stream.read(HEAD.size)):
        number, kind, key, length = HEAD.unpack(head)
        number, kind, payload = number.decode(), kind.rstrip(b"\0").decode(), stream.read(length)
        reply: Reply = {}
        # The answer is a line and a flag, whatever the verifier raised, even what is meant to end a process.
        try:
            content = pickle.loads(payload)  # noqa: S301 (from the trusted side)
            if kind == "load":
                verifiers[key] = content
                content.prepare()
            else:
                reply = reply_to(kind, verifiers[key], *content)
        except BaseException as error:
            reply = failure(described(error) + (_DENIED if private and _was_denied(error) else ""))
            leave = isinstance(error, MemoryError)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a library left behind
        # Libraries keep what they computed; a worker that has become large makes room for a fresh one.
        if kind != "load":  # which is followed by an item
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            leave = leave or len(verifiers) > _MAX_VERIFIERS or peak_bytes > confinement.memory_bytes / 2
            leave = leave or not before.is_all(private)  # what was left ends with this worker
        else:
            before = _Left.now(private)  # a verifier may keep what it made as it was loaded
        connection.sendall(encoded(number, reply, leave))


@dataclass
class _Left:
    """What there is beside the worker itself.

    Attributes:
        changed_ns: When a name in the private folder last came or went; much cheaper to ask for than the names.
        names: The names in it.
        children: Processes.
    """

    changed_ns: int
    names: set[str]
    children: set[int]

    @classmethod
    def now(cls, private: str) -> Self:
        return cls(_changed_ns(private), _names(private), children() if has_children() else set())

    def is_all(self, private: str) -> bool:
        """Whether nothing has come on top."""
        if has_children() and not children() <= self.children:
            return False
        if (changed := _changed_ns(private)) == self.changed_ns:
            return True
        self.changed_ns = changed
        return changed != 0 and _names(private) <= self.names


def _changed_ns(folder: str) -> int:
    try:
        # A program cannot set this time. A path object would take more time than the call.
        return os.stat(folder).st_ctime_ns if folder else 0  # noqa: PTH116
    except OSError:  # it was cleared away
        return 0


def _names(folder: str) -> set[str]:
    with contextlib.suppress(OSError):
        return set(os.listdir(folder)) if folder else set()  # noqa: PTH208
    return set()


def _was_denied(error: BaseException) -> bool:
    """Whether the operating system denied something, which libraries report by errors of their own."""
    # EXDEV is how Landlock denies a link or a new name in another folder; names of hosts are asked for through sockets.
    return any(
        isinstance(one, socket.gaierror)
        or (isinstance(one, OSError) and one.errno in (errno.EPERM, errno.EACCES, errno.EXDEV))
        or (isinstance(one, ImportError) and "Permission denied" in str(one))
        for one in _causes(error)
    )


def _causes(error: BaseException | None, most: int = 10) -> Iterator[BaseException]:
    while error is not None and most:
        yield error
        error, most = error.__cause__ or error.__context__, most - 1
