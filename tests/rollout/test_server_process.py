"""What a sampler server forks ends with it, also if the server was gone before the fork could ask for that."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")

FORKS = """
import os, time
from asymgrpo_app.rollout.server.process import end_forks_with_this
end_forks_with_this()
child = os.fork()
if child == 0 and os.fork() == 0:  # a grandchild
    print(os.getppid(), os.getpid(), flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Whether it has ended; nobody may have asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_forks_of_forks_end_with_a_killed_process():
    process = subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True)
    try:
        forked = [int(pid) for pid in process.stdout.readline().split()]
        assert len(forked) == 2
        assert not any(gone(pid) for pid in forked)
        process.kill()
        process.wait()
        limit = time.monotonic() + 10
        while not all(gone(pid) for pid in forked) and time.monotonic() < limit:
            time.sleep(0.05)
        assert all(gone(pid) for pid in forked)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for pid in forked:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_fork_whose_parent_has_ended_already_ends_at_once():
    code = (
        "import os\n"
        "from asymgrpo_app.runtime.stopping import end_with_parent\n"
        "end_with_parent(os.getppid() + 1)\n"
        "print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
