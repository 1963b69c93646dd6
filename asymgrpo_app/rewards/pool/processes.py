"""The pool's side of its processes: the launcher and the connections to workers."""

import contextlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

START_S = 120.0
"""Seconds allowed for the start of an interpreter with its libraries or a worker, or for loading a verifier."""

_END_S = 10.0
# A worker is one of many, and the address space of a library's idle threads would count against its limit.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MAX_REPLY_BYTES = 65_536
_CODE = (
    "import json, sys; path, *arguments = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from asymgrpo_app.rewards.pool.launcher import main; main(*arguments)"
)


class LauncherDiedError(Exception):
    """The launcher has ended, and with it every worker."""


class Launcher:
    """Client of the process that forks workers; starts that process.

    Args:
        memory_bytes: Address space that a worker may use.
        prepared: Verifier classes as `module:name` that workers start with.

    Raises:
        LauncherDiedError: It did not start; the reason is on stderr.
    """

    def __init__(self, memory_bytes: int, prepared: Iterable[str]) -> None:
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_S)
        paths = [str(path) for path in sys.path]
        arguments = json.dumps([paths, theirs.fileno(), self._owner, memory_bytes, [*prepared]])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,  # signals of the terminal are for the training process
            )
        try:
            self._answer()
        except LauncherDiedError:
            self.close()
            raise

    def fork(self) -> "Worker":
        """Fork a new worker, which is not ready yet.

        Raises:
            LauncherDiedError: The launcher has ended.
        """
        ours, theirs = socket.socketpair()
        # A worker that is stopped (SIGSTOP) does not read: fail rather than wait for it.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_S), 0))
        with ours, theirs:
            with self._broken_means_died():
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            return Worker(int(self._answer()), Connection(ours.detach()))

    def end(self, worker: "Worker") -> None:
        """Kill a worker and all that it started.

        Raises:
            LauncherDiedError: The launcher has ended, and the worker with it.
        """
        worker.connection.close()
        with self._broken_means_died():
            self._control.send(b"end %d" % worker.pid)
        self._answer()

    def close(self) -> None:
        """End the launcher and all workers; in a fork of the owner, only close the connection."""
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # closing is not enough where a fork holds the socket, too
        self._control.close()
        try:
            self._process.wait(_END_S)  # returns at once in a process that is not its parent
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> bytes:
        with self._broken_means_died():
            if answer := self._control.recv(64):
                return answer
        raise LauncherDiedError

    @contextlib.contextmanager
    def _broken_means_died(self) -> Any:
        try:
            yield
        except OSError as error:  # also a time-out: one that does not answer is as good as dead
            self._process.kill()
            raise LauncherDiedError from error


@dataclass
class Job:
    """One item to judge.

    Attributes:
        position: Its index among the items.
        kind: `verify`, `check` or `classes`.
        token: Number of its verifier.
        payload: The pickled completion and row.
        deaths: Number of workers that died over it.
    """

    position: int
    kind: str
    token: int
    payload: bytes
    deaths: int = 0


@dataclass(eq=False)
class Worker:
    """A worker process with its current request and deadline.

    Attributes:
        pid: Process id.
        connection: The connection to it.
        stage: Its last request: to start, to load a verifier, or to judge; `idle` once it has answered.
        deadline: Time at which its answer is overdue, on the clock of `time.monotonic`.
        job: The item it judges, or will judge once it has loaded the verifier.
        known: The verifiers that it has loaded.
        large: Whether it asked to be replaced.
        overdue: Whether its deadline has passed without an answer.
    """

    pid: int
    connection: Connection
    stage: str = "start"
    deadline: float = field(default_factory=lambda: time.monotonic() + START_S)
    job: Job | None = None
    known: set[int] = field(default_factory=set)
    large: bool = False
    overdue: bool = False

    def load(self, token: int, pickled: bytes) -> None:
        """Send a verifier."""
        self._ask("load", token, pickled, START_S)
        self.known.add(token)

    def judge(self, job: Job, timeout_s: float) -> None:
        """Send an item."""
        self._ask(job.kind, job.token, job.payload, timeout_s)
        self.stage = "judge"

    def answer(self) -> dict[str, Any]:
        """The reply that has come.

        Raises:
            OSError: There is no valid reply: the worker is dying.
            EOFError: The worker died.
        """
        try:
            reply = json.loads(self.connection.recv_bytes(_MAX_REPLY_BYTES))
        except ValueError as error:
            raise OSError("the reply is no JSON") from error
        if not isinstance(reply, dict):
            raise OSError("the reply is no mapping")
        self.large = bool(reply.pop("leave", False))
        return reply

    def _ask(self, kind: str, token: int, payload: bytes, allowed_s: float) -> None:
        self.stage = kind
        request = pickle.dumps((kind, token, payload), protocol=pickle.HIGHEST_PROTOCOL)
        self.connection.send_bytes(request)
        self.deadline = time.monotonic() + allowed_s
