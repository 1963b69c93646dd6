"""A module run as a script on two processes, as torchrun would run it.

python -m tests.support.two_processes MODULE ARGUMENTS... imports what all of them need once, and forks: torchrun and
two processes of their own would import it three times, which takes longer than most tests. torchrun itself is what
tests/launch is about.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from asymgrpo_app.runtime.stopping import end_with_parent
from tests.support.paths import REPOSITORY

PROCESSES = 2
GRACE_S = 10  # for the other process to end by itself


def on_two_processes(
    module: str, *arguments: str, timeout_s: float = 400, before: Callable[[], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python -m module arguments...` on two processes; what they printed, and the exit code of the first that failed.

    Args:
        module: Its name.
        arguments: Of the script.
        timeout_s: Seconds after which the test fails.
        before: Called in the new process before it becomes Python.
    """
    return subprocess.run(
        [sys.executable, "-u", "-m", __name__, module, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _become_rank(rank: int, port: int, module: str, arguments: list[str]) -> int:
    """Run the module with the environment that torchrun gives a process."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ.update({name: str(value) for name, value in (own | meeting).items()})
    end_with_parent()
    rank_zero_only.rank = rank  # Lightning has looked at the environment when it was imported
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> int:
    """Fork the processes, and wait for them; if one fails, the other is ended unless it ends by itself."""
    import asymgrpo_app.cli.run  # noqa: F401 (what takes long to import)

    module, *arguments = sys.argv[1:]
    port, children = _port(), []
    for rank in range(PROCESSES):
        child = os.fork()
        if child == 0:
            os._exit(_become_rank(rank, port, module, arguments))
        children.append(child)
    failed = 0
    while children:
        ended, status = os.wait()
        children.remove(ended)
        failed = failed or os.waitstatus_to_exitcode(status)
        if failed:
            signal.signal(signal.SIGALRM, lambda *_: [os.kill(other, signal.SIGKILL) for other in children])
            signal.alarm(GRACE_S)
    return failed


if __name__ == "__main__":
    sys.exit(main())
