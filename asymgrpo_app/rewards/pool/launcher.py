"""The process that forks workers: small, without threads, and with their libraries already imported.

The training process cannot be forked (it holds threads and accelerators), and a fresh interpreter per worker would pay
for imports each time one is killed. The fork server of `multiprocessing` runs the main script again in each worker:
that would load torch into workers, and fail for scripts without a main guard.

The launcher serves one client over a socket and ends with it: `fork` with a file descriptor returns the worker's
process id, and `end <pid>` kills that worker and returns the same id.
"""

import contextlib
import os
import pkgutil
import signal
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection

from asymgrpo_app.rewards.pool.worker import confine, serve

_SECONDS_BETWEEN_LOOKS = 1.0


def main(control_fd: int, client: int, memory_bytes: int, prepared: Sequence[str]) -> None:
    """Fork and end workers until the client is gone.

    Args:
        control_fd: A connected socket of type `SOCK_SEQPACKET`.
        client: Process id of the client.
        memory_bytes: Address space that a worker may use.
        prepared: Verifier classes as `module:name`, prepared here, so that workers start with them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also in workers: Ctrl-C is for the training process
    for path in prepared:
        with contextlib.suppress(Exception):  # the worker that loads such a verifier fails with the reason
            pkgutil.resolve_name(path).prepare()
    control = socket.socket(fileno=control_fd)
    control.settimeout(_SECONDS_BETWEEN_LOOKS)
    workers: set[int] = set()
    # The client's end of the socket may live on in processes that it forked, so its process is watched as well.
    while os.getppid() == client:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        except TimeoutError:
            continue
        except OSError:
            break
        if not message:
            break
        if message == b"fork":
            answer = _fork(descriptors[0], control, memory_bytes)
            workers.add(answer)
        else:
            answer = int(message.removeprefix(b"end "))
            workers.discard(answer)
            _end(answer)
        with contextlib.suppress(OSError):
            control.send(b"%d" % answer)
    for worker in workers:
        _end(worker)
    os._exit(0)  # nothing here is worth the time that unloading large libraries takes


def _fork(descriptor: int, control: socket.socket, memory_bytes: int) -> int:
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    try:
        control.close()
        confine(launcher, memory_bytes)
        serve(Connection(descriptor), memory_bytes)
    finally:
        os._exit(0)  # never back into the launcher's code, whatever went wrong


def _end(pid: int) -> None:
    """Kill a worker with all that it started."""
    # A process that has not been waited for keeps its id, so the signal reaches no other.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
