"""The processes of a pool: when they start, that none stays behind, and what it means when one is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from asymgrpo_app.rewards import Status, Verdict, score
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from tests.support.probe_verifiers import DiesAtFirst, Equal, EqualHere, Misbehaving, MisbehavingHere, Sleeps, Where

ROOT = Path(__file__).resolve().parents[2]
ROW = {"answer": "a"}
RIGHT = Verdict(correct=True)
HEAVY = "torch vllm lightning transformers pytest"


def _error(detail: str) -> Verdict:
    return Verdict(correct=False, status=Status.ERROR, detail=detail)


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=60.0)) as pool:
        yield pool


@pytest.fixture
def open_pool() -> Iterator[VerifierPool]:
    """Its workers may write files."""
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=60.0, sandbox=False)) as pool:
        yield pool


def _processes_of_pools() -> list[psutil.Process]:
    """The launchers and workers that this process has."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # also a zombie, which psutil counts as one of these
            if any("asymgrpo_app.rewards.pool.launcher" in part for part in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for counts."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_until(condition) -> bool:
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_pool_for_one_call():
    assert score(Equal(), ["a", "b"], [ROW, ROW]) == [RIGHT, Verdict(correct=False)]
    assert _processes_of_pools() == []


def test_an_alarm_that_is_left_behind_does_not_go_off():
    with VerifierPool(VerifierPoolConfig(workers=1)) as pool:
        first = pool.score([Where(), Misbehaving()], ["", "alarm"], [ROW] * 2)
        second = pool.score([Sleeps(0.5), Where()], ["a", ""], [ROW] * 2)
    assert first[1] == second[0] == RIGHT
    assert first[0] == second[1]  # in the same process


def test_in_the_same_process_errors_are_caught_as_well():
    with VerifierPool() as pool:
        verdicts = pool.score([MisbehavingHere()] * 4, ["exit", "true", "long error", "good"], [ROW] * 4)
        assert _processes_of_pools() == []
    assert verdicts == [
        _error("SystemExit"),
        _error("TypeError: verify returned True (bool), not a Verdict"),
        _error(f"ValueError: {'x' * 200} ..."),
        RIGHT,
    ]


def test_check_in_the_same_process():
    with VerifierPool() as pool:
        reasons = pool.check([EqualHere()] * 3, [{"answer": answer} for answer in ("good", "value error", "exit")])
        assert _processes_of_pools() == []
    assert reasons == [None, r"line 1 line 2\x1b[2J\ud800", "the verifier failed on it (SystemExit)"]


def test_workers_start_at_the_first_isolated_item():
    with VerifierPool(VerifierPoolConfig(workers=3)) as pool:
        assert pool.score([EqualHere()], ["a"], [ROW]) == [RIGHT]
        assert _processes_of_pools() == []
        pool.score([Equal()] * 2, ["a"] * 2, [ROW] * 2)
        assert len(_processes_of_pools()) == 1 + 2  # no more workers than items
        pool.score([Equal()] * 20, ["a"] * 20, [ROW] * 20)
        assert len(_processes_of_pools()) == 1 + 3
    assert _processes_of_pools() == []


def test_close_may_be_repeated_and_undone():
    pool = VerifierPool(VerifierPoolConfig(workers=1))
    pool.close()
    for _ in range(2):
        assert pool.score([Equal()], ["a"], [ROW]) == [RIGHT]
        pool.close()
        pool.close()
        assert _processes_of_pools() == []


def test_a_pool_that_nobody_closes_ends_with_its_last_reference():
    pool = VerifierPool(VerifierPoolConfig(workers=1))
    pool.score([Equal()], ["a"], [ROW])
    assert len(_processes_of_pools()) == 2
    del pool
    assert _processes_of_pools() == []


def test_workers_live_on_between_calls_and_load_nothing_heavy(pool):
    first, second = ({v.detail for v in pool.score([Where()] * 50, [HEAVY] * 50, [ROW] * 50)} for _ in "12")
    workers = {str(process.pid) for process in _processes_of_pools()[1:]}
    assert first <= workers  # nothing but the process id: none of the modules is loaded
    assert second <= workers
    assert len(workers) == 2


def test_threads_take_turns(pool):
    found: dict[str, list[Verdict]] = {}

    def judge(answer: str) -> None:
        found[answer] = pool.score([Equal()] * 300, ["a"] * 300, [{"answer": answer}] * 300)

    threads = [threading.Thread(target=judge, args=(answer,)) for answer in "abab"[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": [RIGHT] * 300, "b": [Verdict(correct=False)] * 300}


@pytest.mark.parametrize("misdeed", ["memory", "memory bit by bit"])
def test_a_worker_that_ran_out_of_memory_is_replaced(misdeed):
    with VerifierPool(VerifierPoolConfig(workers=1, timeout_s=60.0, memory_gib=0.6)) as pool:
        before, out, after = pool.score([Where(), Misbehaving(), Where()], ["", misdeed, ""], [ROW] * 3)
    assert out == _error("MemoryError")
    assert before.detail != after.detail


@pytest.mark.parametrize(("times", "verdict"), [(1, RIGHT), (2, RIGHT), (3, _error("its worker died 3 times"))])
def test_an_item_whose_worker_died_is_tried_again(open_pool, tmp_path, times, verdict):
    rows = [{"deaths": str(tmp_path / str(n)), "times": times if n == 4 else 0} for n in range(9)]
    expected = [RIGHT] * 9
    expected[4] = verdict
    assert open_pool.score([DiesAtFirst()] * 9, [""] * 9, rows) == expected
    assert (tmp_path / "4").read_text() == "x" * times


@pytest.mark.parametrize("target", ["workers", "launcher"])
def test_kill_9_in_mid_run_loses_no_verdict(pool, target):
    """300 items of 5 ms; workers are killed every 100 ms at whatever they do, their launcher once."""
    pool.score([Equal()] * 2, ["a"] * 2, [ROW] * 2)
    done = threading.Event()
    killed = []

    def kill() -> None:
        while not done.wait(0.1):
            launcher, *workers = _processes_of_pools()
            for victim in workers if target == "workers" else [launcher]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(victim.pid)
            if target == "launcher":
                return

    killer = threading.Thread(target=kill)
    killer.start()
    verdicts = pool.score([Sleeps(0.005)] * 300, ["a", "b"] * 150, [ROW] * 300)
    done.set()
    killer.join()
    assert len(killed) >= (4 if target == "workers" else 1)
    assert verdicts == [RIGHT, Verdict(correct=False)] * 150


def test_kill_9_of_idle_workers_loses_no_verdict(pool):
    pool.score([Equal()] * 2, ["a"] * 2, [ROW] * 2)
    for process in _processes_of_pools():
        process.kill()
    assert pool.score([Equal()] * 4, ["a", "b"] * 2, [ROW] * 4) == [RIGHT, Verdict(correct=False)] * 2


def test_interrupts_of_the_terminal_do_not_reach_workers(pool):
    pool.score([Equal()] * 2, ["a"] * 2, [ROW] * 2)
    launcher, *workers = _processes_of_pools()

    def interrupt() -> None:
        for process in (launcher, *workers):
            process.send_signal(signal.SIGINT)

    timer = threading.Timer(0.2, interrupt)
    timer.start()
    assert pool.score([Sleeps(0.5)] * 2, ["a"] * 2, [ROW] * 2) == [RIGHT, RIGHT]
    timer.join()
    assert _processes_of_pools() == [launcher, *workers]
    assert os.getpgid(launcher.pid) != os.getpgid(0)


def test_an_exception_in_mid_run_leaves_no_process_and_a_pool_that_works(open_pool, tmp_path):
    pids = tmp_path / "pids"

    def interrupt() -> None:
        _wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        open_pool.score([Sleeps(50)] * 4, ["a"] * 4, [{"answer": "a", "pids": str(pids)}] * 4)
    timer.join()
    assert _processes_of_pools() == []
    assert open_pool.score([Equal()], ["b"], [ROW]) == [Verdict(correct=False)]


def test_a_fork_of_this_process_does_not_end_the_pool(pool):
    pool.score([Equal()], ["a"], [ROW])
    child = os.fork()
    if child == 0:
        pool.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    before = _processes_of_pools()
    assert pool.score([Equal()], ["a"], [ROW]) == [RIGHT]
    assert _processes_of_pools() == before


# ---- other main programs ----

_PROGRAM = """
import heavy
from asymgrpo_app.rewards import Verdict, Verifier, score
from asymgrpo_app.rewards.pool.pool import VerifierPool

class Own(Verifier):
    def verify(self, completion, row):
        import sys
        return Verdict(correct="heavy" not in sys.modules and completion == row["answer"])

pool = VerifierPool()
print([verdict.correct for verdict in pool.score([Own()] * 2, ["a", "b"], [{"answer": "a"}] * 2)])
"""

_IMPORTING = """
from own_verifier import Own
from asymgrpo_app.rewards import score

print([verdict.correct for verdict in score(Own(), ["a", "b"], [{"answer": "a"}] * 2)])
"""


@pytest.mark.parametrize("kind", ["script", "command", "standard input", "module", "class in a file"])
def test_any_main_program_will_do(tmp_path, kind):
    """Without a main guard, with classes of its own, and with imports that workers must not repeat."""
    (tmp_path / "heavy.py").write_text("")
    (tmp_path / "own_verifier.py").write_text(_PROGRAM.partition("pool =")[0])
    (tmp_path / "program.py").write_text(_IMPORTING if kind == "class in a file" else _PROGRAM)
    arguments = {
        "script": ["program.py"],
        "command": ["-c", _PROGRAM],
        "standard input": ["-"],
        "module": ["-m", "program"],
        "class in a file": ["program.py"],
    }[kind]
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, input=_PROGRAM, capture_output=True, text=True, timeout=60
    )
    expected = "[False, False]" if kind == "class in a file" else "[True, False]"  # a module may import what it wants
    assert (ended.stdout, ended.stderr, ended.returncode) == (f"{expected}\n", "", 0)


_HANGING = """
import sys
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from tests.support.probe_verifiers import Misbehaving

VerifierPool(VerifierPoolConfig(workers=2)).score([Misbehaving()] * 2, ["power", "swallow"], [{}, {}])
"""


def test_workers_end_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", _HANGING], cwd=ROOT)
    try:
        family = psutil.Process(parent.pid)
        assert _wait_until(lambda: len(family.children(recursive=True)) == 3)
        children = family.children(recursive=True)
        # Both workers must have come as far as judging, where no end of a connection is noticed.
        assert _wait_until(lambda: any(child.cpu_times().user > 0.3 for child in children[1:]))
    finally:
        parent.kill()
        parent.wait()
    assert _wait_until(lambda: all(_gone(child.pid) for child in children))


def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    pids = tmp_path / "pids"
    with VerifierPool(VerifierPoolConfig(workers=2, sandbox=False)) as pool:
        pool.score([Sleeps(0)] * 2, ["a"] * 2, [{"answer": "a", "pids": str(pids)}] * 2)
        launcher, *workers = _processes_of_pools()
        launcher.kill()
        assert _wait_until(lambda: all(_gone(worker.pid) for worker in workers))


def test_many_verifiers_fit(pool):
    """More than a worker keeps."""
    verifiers = [Sleeps(n * 1e-9) for n in range(600)]
    assert pool.score(verifiers, ["a", "b"] * 300, [ROW] * 600) == [RIGHT, Verdict(correct=False)] * 300
