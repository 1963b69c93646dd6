"""A process that is lost in the middle of a step ends the run: soon, with the reason, and without orphans."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.runtime.processes import end_with_lost, lost_exchange
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import command

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
LAUNCHERS = {"lightning": [], "torchrun": TORCHRUN}


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_in_a_step_ends_all(launcher, strategy, rank, tmp_path):
    (tmp_path / "pids").mkdir()
    options = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--checkpoint.every_n_steps=1"]
    started = [sys.executable, *LAUNCHERS[launcher], "-m", "tests.support.lost_process", *command(tmp_path), *options]
    environment = {"OMP_NUM_THREADS": "1", "KILLED": str(rank), "PIDS": str(tmp_path / "pids")}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            started, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT
        )
    known: set[psutil.Process] = set()
    while not (len(list_checkpoints(tmp_path / "run")) == 1 and _one_is_gone(tmp_path / "pids")):
        assert process.poll() is None, log.read_text()
        known |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.05)
    code = process.wait(60)
    text = log.read_text()
    assert code == (-9 if launcher == "lightning" and rank == 0 else 1), text
    _, alive = psutil.wait_procs(known, timeout=10)
    assert alive == []
    assert list(list_checkpoints(tmp_path / "run")) == [1]
    if launcher == "torchrun":
        assert "exitcode  : -9" in text
    elif rank == 1:
        assert "asymgrpo: process 1 of 2 (PID " in text
        assert ") was ended by SIGKILL: all processes of this run end." in text
    assert "asymgrpo_app/module.py" not in text, text  # no traceback of ours
    if launcher == "torchrun" or rank == 1:
        assert "asymgrpo: stopped: an exchange with another process of this run failed (" in text


def _one_is_gone(folder) -> bool:
    """Whether a rank has ended; one that nobody waited for yet is a zombie."""

    def ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return any(ended(int(path.name)) for path in folder.iterdir())


class Ended:
    """A process that has ended with some code."""

    pid = 4711

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "process 2 of 3 (PID 4711) was ended by SIGKILL: all"),
        (-11, "process 2 of 3 (PID 4711) was ended by SIGSEGV: all"),
        (2, "process 2 of 3 (PID 4711) ended with code 2: all"),
    ],
)
def test_the_observer_says_which_process_and_how(code, said, monkeypatch, capfd):
    ends = []
    monkeypatch.setattr("asymgrpo_app.runtime.processes._GRACE_S", 0.0)
    monkeypatch.setattr("asymgrpo_app.runtime.processes.os._exit", ends.append)
    end_with_lost([Ended(None), Ended(code)], threading.Event())
    assert ends == [1]
    assert f"asymgrpo: {said} processes of this run end." in capfd.readouterr().err


def test_processes_that_end_well_are_nobodys_business(monkeypatch, capfd):
    monkeypatch.setattr("asymgrpo_app.runtime.processes.os._exit", lambda code: pytest.fail("ended"))
    end_with_lost([Ended(0), Ended(0)], threading.Event())
    assert capfd.readouterr().err == ""


def test_only_an_exchange_that_failed_is_taken_for_one():
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:3")
    assert "(Connection closed by peer [::1]:3)" in (lost_exchange(gloo) or "")
    assert lost_exchange(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
