"""The pool's side of its processes: the launcher and the connections to workers."""

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from asymgrpo_app.rewards.pool import sandbox
from asymgrpo_app.rewards.pool.limits import allowed_variables
from asymgrpo_app.rewards.pool.messages import MAX_REPLY_BYTES, Reply, decoded
from asymgrpo_app.rewards.pool.readable import loaded_modules
from asymgrpo_app.rewards.pool.time_limit import TimeLimit, cpu_seconds
from asymgrpo_app.rewards.pool.worker import HEAD

START_S = 120.0
"""Seconds allowed for the start of an interpreter with its libraries or a worker, or for loading a verifier."""

_END_S = 10.0
_READ_BYTES = 8_192  # more than almost every reply
# A worker is one of many, and the address space of a library's idle threads would count against its limit.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
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
        sandboxed: Whether workers run in the sandbox; None: where this machine offers it. With False they have the
            whole environment, too.
        prepared: Verifier classes as `module:name` that workers start with.
    """

    def __init__(self, memory_bytes: int, sandboxed: bool | None, prepared: Iterable[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_S)
        confined = sandboxed is not False and sandbox.missing() is None
        folder = tempfile.mkdtemp(prefix="asymgrpo-verifiers-") if confined else ""
        given = (theirs.fileno(), os.getpid(), memory_bytes, folder, loaded_modules() if folder else [], [*prepared])
        arguments = json.dumps([[*map(str, sys.path)], *given])
        environment = dict(os.environ) if sandboxed is False else allowed_variables(os.environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment | _ONE_THREAD,
                start_new_session=True,  # signals of the terminal are for the training process
            )
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._control, self._process, folder)

    def fork(self) -> "Worker":
        """Fork a new worker, which is not ready yet.

        Raises:
            LauncherDiedError: The launcher has ended, or did not start; the reason is on stderr.
        """
        ours, theirs = socket.socketpair()
        # A worker that is stopped (SIGSTOP) does not read: fail rather than wait for it.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_S), 0))
        with ours, theirs:
            pid = int(self._ask(b"fork", [theirs.fileno()]))
            return Worker(pid, socket.socket(fileno=ours.detach()))

    def end(self, worker: "Worker") -> None:
        """Kill a worker and all that it started.

        Raises:
            LauncherDiedError: The launcher has ended, and the worker with it.
        """
        worker.connection.close()
        self._ask(b"end %d" % worker.pid)

    def close(self) -> None:
        """End the launcher and all workers; in a fork of the owner, only close the connection. Safe to call twice.

        A launcher that nobody closes ends with its last reference.
        """
        self._finalizer()

    def _ask(self, request: bytes, descriptors: Sequence[int] = ()) -> bytes:
        with contextlib.suppress(OSError):  # also a time-out: one that does not answer is as good as dead
            socket.send_fds(self._control, [request], list(descriptors))
            if answer := self._control.recv(64):
                return answer
        self._process.kill()
        self.close()
        raise LauncherDiedError


def _close(owner: int, control: socket.socket, process: subprocess.Popen[bytes], folder: str) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)  # closing is not enough where a fork holds the socket, too
    control.close()
    try:
        process.wait(_END_S)  # returns at once in a process that is not its parent
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if folder and os.getpid() == owner:  # a launcher that was killed has not removed it
        with contextlib.suppress(RecursionError):  # folders in folders
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Job:
    """One item to judge.

    Attributes:
        position: Its index among the items.
        kind: `verify`, `check` or `classes`.
        verifier: The pickled verifier.
        key: A short name of the pickled verifier.
        payload: The pickled completion and row.
        samples: Number of completions in it.
        deaths: Number of workers that died over it.
        launcher_deaths: Number of times that the launcher died while it was judged.
    """

    position: int
    kind: str
    verifier: bytes
    key: bytes
    payload: bytes
    samples: int = 1
    deaths: int = 0
    launcher_deaths: int = 0


@dataclass(eq=False)
class Worker:
    """A worker process with its current request and deadline.

    Attributes:
        pid: Process id.
        connection: The connection to it.
        job: The item it judges, or will judge once it has loaded the verifier.
        judging: Whether it was sent the item.
        timeout_s: CPU seconds that judging its item may take.
        cpu_began: CPU time of the process when it was sent the item.
        began: When it was sent its request, on the clock of `time.monotonic`.
        deadline: When its clocks are looked at next, or loading is overdue, on the clock of `time.monotonic`.
        known: Keys of the verifiers that it was sent.
        number: The number of its request.
        heard: What came from it since the request.
    """

    pid: int
    connection: socket.socket
    job: Job | None = None
    judging: bool = False
    timeout_s: float = 0.0
    cpu_began: float = 0.0
    began: float = 0.0
    deadline: float = 0.0
    known: set[bytes] = field(default_factory=set)
    number: str = ""
    heard: bytes = b""
    _incoming: select.poll = field(default_factory=select.poll, init=False)

    def __post_init__(self) -> None:
        self._incoming.register(self.connection, select.POLLIN)

    def silent(self) -> bool:
        """Whether nothing has come from it; while it has no request, it has nothing to say."""
        return not self._incoming.poll(0)

    def advance(self, job: Job, timeout_s: float) -> None:
        """Send the next request for its item: the verifier if it is new here, else the item.

        Args:
            job: The item.
            timeout_s: CPU seconds that judging it may take.
        """
        loaded = job.key in self.known
        self.known.add(job.key)
        self.number, self.heard = secrets.token_hex(8), b""
        kind, pickled = (job.kind, job.payload) if loaded else ("load", job.verifier)
        head = HEAD.pack(self.number.encode(), kind.encode(), job.key, len(pickled))
        self.judging = False
        with contextlib.suppress(OSError):  # it died while idle: the next look at it finds that out
            self.connection.sendall(head + pickled)
            self.judging = loaded
        self.timeout_s, self.cpu_began, self.began = timeout_s, cpu_seconds(self.pid), time.monotonic()
        self.deadline = self.began + (timeout_s if loaded else START_S)

    def overrun(self, now: float) -> str:
        """What took too long, as the end of a sentence about the verifier; if nothing did, "" and a later deadline.

        Args:
            now: The time, after the deadline.
        """
        if not self.judging:
            return f"took longer than {START_S:g} s to load"
        limit, cpu = TimeLimit(self.timeout_s, self.cpu_began, self.began), cpu_seconds(self.pid)
        self.deadline = limit.next_look(cpu, now)
        return limit.overrun(cpu, now)

    def listen(self) -> bool:
        """Take what has come; returns whether that is a message, the end of the connection or too much to go on."""
        try:
            part = self.connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        self.heard += part
        return not part or b"\n" in part or len(self.heard) > MAX_REPLY_BYTES

    def answer(self) -> tuple[Reply, bool] | None:
        """Its reply, and whether it should be replaced; None if it died, or said something else or more."""
        assert self.job is not None
        if len(self.heard) > MAX_REPLY_BYTES:
            return None
        return decoded(self.heard, self.number, self.job.kind if self.judging else "load", self.job.samples)
