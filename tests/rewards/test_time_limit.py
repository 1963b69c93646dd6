"""The time limit of an answer: CPU time, and wall time several times as long."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest

from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.rewards.pool.time_limit import TimeLimit, cpu_seconds
from tests.support.probe_verifiers import Equal, Misbehaving, StopsItself

ROW = {"answer": "a"}
LIMIT = TimeLimit(cpu_s=10.0, cpu_began=100.0, began=1_000.0)


def test_the_clock_is_that_of_the_process():
    least = time.process_time()
    found = cpu_seconds(os.getpid())
    assert least <= found <= time.process_time()
    assert cpu_seconds(2**22) == 0.0  # no process has this number


@pytest.mark.parametrize(
    ("cpu", "now", "late"),
    [
        (100.0, 1_000.0, ""),
        (109.9, 1_010.0, ""),
        (101.0, 1_049.9, ""),  # a starved one
        (110.0, 1_010.0, "ran longer than 10 CPU seconds"),
        (150.0, 1_010.0, "ran longer than 10 CPU seconds"),  # several threads
        (100.0, 1_050.0, "took longer than 50 s, 5 times its 10 CPU seconds"),
        (110.0, 1_050.0, "ran longer than 10 CPU seconds"),
    ],
)
def test_cpu_time_counts_and_wall_time_five_times_as_long(cpu, now, late):
    assert LIMIT.overrun(cpu, now) == late


@pytest.mark.parametrize(
    ("cpu", "now", "look"),
    [
        (104.0, 1_010.0, 1_016.0),  # one thread needs 6 s for the rest
        (100.0, 1_010.0, 1_020.0),
        (109.999, 1_012.0, 1_012.01),
        (100.5, 1_045.0, 1_050.0),  # the wall limit comes before
    ],
)
def test_clocks_are_looked_at_when_one_may_have_run_out(cpu, now, look):
    assert LIMIT.next_look(cpu, now) == pytest.approx(look)


def test_one_that_spins_and_one_that_sleeps():
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.3)) as pool:
        spins, sleeps, good = pool.score([Misbehaving()] * 3, ["catch signals", "swallow", "good"], [ROW] * 3)
    assert spins == Verdict(False, Status.TIMEOUT, "ran longer than 0.3 CPU seconds")
    assert sleeps == Verdict(False, Status.TIMEOUT, "took longer than 1.5 s, 5 times its 0.3 CPU seconds")
    assert good == Verdict(correct=True)


def test_cpu_time_of_earlier_items_does_not_count():
    """One worker, which has used more than the limit when the last item begins."""
    with VerifierPool(VerifierPoolConfig(workers=1, timeout_s=0.5)) as pool:
        assert pool.score([Misbehaving()] * 4, ["spin"] * 4, [ROW] * 4) == [Verdict(correct=True)] * 4


def test_a_right_answer_stays_right_where_the_process_gets_no_core():
    """The worker stands still for longer than its limit, twice."""
    stood: list[int] = []
    done = threading.Event()

    def let_go_on() -> None:
        while not done.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.status() == psutil.STATUS_STOPPED:
                        time.sleep(0.9)
                        stood.append(process.pid)
                        process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=let_go_on)
    with VerifierPool(VerifierPoolConfig(workers=1, timeout_s=0.8)) as pool:
        pool.score([Equal()], ["a"], [ROW])
        thread.start()
        right, wrong = pool.score([StopsItself()] * 2, ["a", "b"], [ROW] * 2)
        done.set()
        thread.join()
    assert (right, wrong) == (Verdict(correct=True), Verdict(correct=False))
    assert stood == [stood[0]] * 2
