"""A sampler server's processes end with it and leave nothing behind, however it ends."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

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


# ---- the process that waits for vLLM ----

WORK = """
import os, signal, subprocess, sys, tempfile, time
from asymgrpo_app.rollout.server import process

process._GRACE_S, process._ORPHANS_S = {grace}, 0.3

def work():
    # A process that asks for nothing and obeys no signal, as a library may start it.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    orphan = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
    orphan.stdout.readline()
    child = os.fork() or time.sleep(600)
    {first}
    folder = os.environ["VLLM_RPC_BASE_PATH"]
    open(os.path.join(folder, "socket"), "w").close()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == folder
    print(folder, os.getpid(), child, orphan.pid, flush=True)
    {then}

sys.exit(process.supervise(work))
"""
DEAF = "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)]"


class Supervised:
    """`supervise` at work: its process, its folder and the processes below it."""

    def __init__(self, first="pass", then="time.sleep(600)", grace=1.0):
        words = [sys.executable, "-c", WORK.format(first=first, then=then, grace=grace)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=signals_as_usual)
        folder, *pids = self.process.stdout.readline().split()
        self.folder, self.pids = Path(folder), [int(pid) for pid in pids]

    def ended(self):
        """Its exit code and the seconds that it took, once all is gone."""
        began = time.monotonic()
        code = self.process.wait(20)
        self.process.stdout.close()
        took = time.monotonic() - began
        assert not self.folder.exists()
        assert not any(psutil.pid_exists(pid) for pid in self.pids)  # not as a zombie either
        return code, took


def signals_as_usual():
    """A background job of a shell ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]
)
def test_a_signal_ends_the_server_and_all_that_came_of_it(number, code):
    run = Supervised()
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.folder / "socket").stat().st_mode) == 0o600
    run.process.send_signal(number)
    found, took = run.ended()
    assert found == code
    assert took < 4


def test_a_server_that_does_not_hear_the_signal_is_killed():
    run = Supervised(DEAF)
    run.process.terminate()
    found, took = run.ended()
    assert found == 143
    assert 0.9 < took < 5


def test_a_second_signal_does_not_wait_and_the_same_one_twice_at_once_is_one():
    run = Supervised(DEAF, grace=60.0)
    run.process.terminate()
    run.process.terminate()
    time.sleep(1.2)
    assert run.process.poll() is None
    run.process.terminate()
    found, took = run.ended()
    assert found == 143
    assert took < 4


@pytest.mark.parametrize(
    ("then", "code"),
    [("sys.exit(7)", 7), ("return", 0), ("raise SystemExit", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_the_exit_code_is_the_servers(then, code):
    assert Supervised(then=then).ended()[0] == code


def test_a_long_temporary_folder_leaves_room_for_the_names_of_sockets(tmp_path, monkeypatch):
    from asymgrpo_app.runtime import environment

    monkeypatch.setattr(environment.tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    folder = Path(environment.private_folder())
    folder.rmdir()
    assert len(f"{folder}/{'x' * 36}") <= 107


@pytest.mark.parametrize(
    ("nodes", "set_before", "expected"),
    [
        (1, {}, ("lo", "127.0.0.1")),
        (1, {"GROUP_WORLD_SIZE": "1", "SLURM_JOB_NUM_NODES": "1"}, ("lo", "127.0.0.1")),
        (2, {}, (None, None)),
        (1, {"GROUP_WORLD_SIZE": "2"}, (None, None)),
        (1, {"SLURM_JOB_NUM_NODES": "4"}, (None, None)),
        (1, {"GLOO_SOCKET_IFNAME": "eth0"}, ("eth0", "127.0.0.1")),
        (1, {"VLLM_HOST_IP": "10.0.0.5"}, ("lo", "10.0.0.5")),
    ],
)
def test_processes_on_one_machine_talk_over_the_loopback(monkeypatch, nodes, set_before, expected):
    from asymgrpo_app.runtime.environment import stay_on_loopback

    monkeypatch.setattr(os, "environ", dict(set_before))
    stay_on_loopback(nodes)
    assert (os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("VLLM_HOST_IP")) == expected
