"""The process that forks workers: small, without threads, and with their libraries already imported.

The training process cannot be forked (it holds threads and accelerators), and a fresh interpreter per worker would pay
for imports each time one is killed. The fork server of `multiprocessing` runs the main script again in each worker:
that would load torch into workers, and fail for scripts without a main guard.

The launcher serves one client over a socket and ends with it: `fork` with a file descriptor returns the worker's
process id, and `end <pid>` kills that worker with all that it started and returns the same id.
"""

import contextlib
import os
import pkgutil
import shutil
import signal
import socket
import sys
from collections.abc import Sequence

from asymgrpo_app.rewards.pool.descendants import kill
from asymgrpo_app.rewards.pool.limits import adopt_orphans
from asymgrpo_app.rewards.pool.readable import readable_paths
from asymgrpo_app.rewards.pool.worker import Confinement, confine, serve

_SECONDS_BETWEEN_LOOKS = 1.0


def main(
    control_fd: int, client: int, memory_bytes: int, folder: str, modules: Sequence[str], prepared: Sequence[str]
) -> None:
    """Fork and end workers until the client is gone.

    Args:
        control_fd: A connected socket of type `SOCK_SEQPACKET`.
        client: Process id of the client.
        memory_bytes: Address space that a worker may use.
        folder: Folder for the private folders of workers, removed in the end; "": there is no sandbox.
        modules: Files and folders of modules, readable in the sandbox.
        prepared: Verifier classes as `module:name`, prepared here, so that workers start with them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also in workers: Ctrl-C is for the training process
    adopt_orphans()
    for path in prepared:
        with contextlib.suppress(Exception):  # the worker that loads such a verifier fails with the reason
            pkgutil.resolve_name(path).prepare()
    confinement = Confinement(memory_bytes, folder, readable_paths(sys.path, modules) if folder else ())
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
            answer = _fork(descriptors[0], control, confinement)
            workers.add(answer)
        else:
            answer = int(message.removeprefix(b"end "))
            workers.discard(answer)
            _end(answer, workers, confinement)
        with contextlib.suppress(OSError):
            control.send(b"%d" % answer)
    while workers:
        _end(workers.pop(), workers, confinement)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # nothing here is worth the time that unloading large libraries takes


def _fork(descriptor: int, control: socket.socket, confinement: Confinement) -> int:
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    try:
        control.close()
        confine(launcher, confinement)
        serve(socket.socket(fileno=descriptor), confinement)
    except OSError as error:
        print(f"asymgrpo: a worker of the verifiers cannot start: {error}", file=sys.stderr)
    finally:
        os._exit(0)  # never back into the launcher's code, whatever went wrong


def _end(pid: int, others: set[int], confinement: Confinement) -> None:
    """Kill a worker with all that it started, and remove its files."""
    kill(pid, others)
    if private := confinement.private(pid):
        with contextlib.suppress(RecursionError):  # folders in folders; the rest goes with the folder of all workers
            shutil.rmtree(private, ignore_errors=True)
