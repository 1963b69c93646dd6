"""The worker process: judges the items it is sent, one at a time.

Requests are pickled by the trusted side, each behind its length.
"""

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
from typing import Any

from asymgrpo_app.rewards.answers import answer_classes
from asymgrpo_app.rewards.base import Verifier
from asymgrpo_app.rewards.pool.limits import adopt_orphans, has_children, limit_resources
from asymgrpo_app.rewards.pool.messages import Reply, checked_verdict, described, encoded, failure, one_line
from asymgrpo_app.rewards.pool.sandbox import enter
from asymgrpo_app.runtime.stopping import end_with_parent

LENGTH = struct.Struct("!Q")
"""The length of a request, which stands before it."""

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
    os.dup2(1, 2)  # what a verifier prints is discarded: the launcher's standard output is the null device
    if private := confinement.private(os.getpid()):
        Path(private).mkdir(mode=0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = private
        enter(confinement.readable, private)


def serve(connection: socket.socket, confinement: Confinement) -> None:
    """Answer requests until the other side closes the connection or this process should be replaced."""
    verifiers: dict[bytes, Verifier] = {}
    private = confinement.private(os.getpid())
    stream = connection.makefile("rb")
    empty = _changed(private)
    leave = False
    while not leave and (length := stream.read(LENGTH.size)):
        number, kind, key, payload = pickle.loads(stream.read(*LENGTH.unpack(length)))  # noqa: S301 (trusted side)
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
            leave = leave or has_children() or _changed(private) > empty  # what was left ends with this worker
        connection.sendall(encoded(number, reply, leave))


def _changed(folder: str) -> int:
    """When a name in a folder last came or went, in nanoseconds; much cheaper than to list it."""
    return os.stat(folder).st_mtime_ns if folder else 0  # noqa: PTH116 (a path object costs more than the call)


def _was_denied(error: BaseException) -> bool:
    """Whether the operating system denied something, which libraries report by errors of their own."""
    # EXDEV is how Landlock denies a link or a new name in another folder.
    return any(
        isinstance(one, OSError) and one.errno in (errno.EPERM, errno.EACCES, errno.EXDEV) for one in _causes(error)
    )


def _causes(error: BaseException | None, most: int = 10) -> Iterator[BaseException]:
    while error is not None and most:
        yield error
        error, most = error.__cause__ or error.__context__, most - 1
