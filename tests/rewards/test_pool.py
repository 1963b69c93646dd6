"""Worker processes: what a verifier may do there, what becomes of it, and that nothing stays behind."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from tests.support.probe_verifiers import (
    DiesAsItLoads,
    Equal,
    EqualHere,
    FailsToLoad,
    LeavesChild,
    Misbehaving,
    Unpicklable,
)

ROOT = Path(__file__).resolve().parents[2]
ROW = {"answer": "a"}
RIGHT = Verdict(correct=True)
HEAVY = "torch vllm lightning transformers pytest"
LATE = Verdict(correct=False, status=Status.TIMEOUT, detail="ran longer than 0.8 CPU seconds")


def _error(detail: str) -> Verdict:
    return Verdict(correct=False, status=Status.ERROR, detail=detail)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.8, memory_gib=1.0)) as pool:
        yield pool


@pytest.fixture(scope="module")
def open_pool() -> Iterator[VerifierPool]:
    """Its workers may write files."""
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.2, memory_gib=1.0, sandbox=False)) as pool:
        yield pool


def _ended(pid: int) -> bool:
    """Whether a process ends within seconds; one that nobody waits for counts."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout=30)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


# ---- config ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must be a whole number from 1 to 256 or null, got 0."),
        ({"workers": 257}, "workers must be a whole number from 1 to 256 or null, got 257."),
        ({"workers": 1.5}, "workers must be a whole number from 1 to 256 or null, got 1.5."),
        ({"workers": True}, "workers must be a whole number from 1 to 256 or null, got True."),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0, got 0."),
        ({"timeout_s": float("inf")}, "timeout_s must be a number of seconds above 0, got inf."),
        ({"timeout_s": float("nan")}, "timeout_s must be a number of seconds above 0, got nan."),
        ({"timeout_s": "10"}, "timeout_s must be a number of seconds above 0, got '10'."),
        ({"memory_gib": 0.1}, "memory_gib must be at least 0.5 GiB, got 0.1."),
        ({"memory_gib": float("nan")}, "memory_gib must be at least 0.5 GiB, got nan."),
        ({"sandbox": "on"}, "sandbox must be true, false or null, got 'on'."),
        ({"sandbox": 1}, "sandbox must be true, false or null, got 1."),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError) as raised:
        VerifierPoolConfig(**settings)
    assert str(raised.value) == message


def test_one_worker_per_core_but_not_too_many():
    assert VerifierPoolConfig().worker_count == min(len(os.sched_getaffinity(0)), 16)
    assert VerifierPoolConfig(workers=40).worker_count == 40


# ---- verdicts ----


def test_verdicts_keep_the_order(pool):
    answers = [random.Random(n).choice("ab") for n in range(3_000)]
    verdicts = pool.score([Equal()] * 3_000, answers, [ROW] * 3_000)
    assert [verdict.correct for verdict in verdicts] == [answer == "a" for answer in answers]
    assert {verdict.status for verdict in verdicts} == {Status.OK}


def test_verifiers_may_be_mixed(pool):
    verifiers = [Equal(), EqualHere(), Misbehaving(), Equal()]
    verdicts = pool.score(verifiers, ["a", "a", "exit", "b"], [ROW] * 4)
    assert verdicts == [RIGHT, RIGHT, _error("SystemExit"), Verdict(correct=False)]


def test_nothing_to_judge(pool):
    assert pool.score([], [], []) == []
    assert pool.check([], []) == []


def test_sequences_of_different_length_are_refused(pool):
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        pool.score([Equal()], ["a", "b"], [ROW, ROW])


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\ud800 \udfff", "\x00\x1b[2J", "", "a\u0301\u202e"])
def test_texts_arrive_as_they_are(pool, text):
    assert pool.score([Equal()] * 4, [text, f"{text}!"] * 2, [{"answer": text}] * 4) == [RIGHT, Verdict(False)] * 2


# ---- misbehaviour ----


@pytest.mark.parametrize("misdeed", ["power", "regular expression", "catch signals"])
def test_an_endless_verifier_is_killed(pool, misdeed):
    verdicts = pool.score([Misbehaving()] * 3, ["good", misdeed, "good"], [ROW] * 3)
    assert verdicts == [RIGHT, LATE, RIGHT]


@pytest.mark.parametrize(
    ("misdeed", "detail"),
    [
        ("value error", r"ValueError: line 1 line 2\x1b[2J\ud800"),
        ("long error", f"ValueError: {'x' * 200} ..."),
        ("exit", "SystemExit"),
        ("keyboard interrupt", "KeyboardInterrupt"),
        ("end of file", "EOFError"),
        ("broken pipe", "BrokenPipeError: none"),
        ("recursion", "RecursionError: maximum recursion depth exceeded"),
        ("memory", "MemoryError"),
        ("nothing", "TypeError: verify returned None, not a Verdict"),
        ("true", "TypeError: verify returned True (bool), not a Verdict"),
        ("something unpicklable", "TypeError: verify returned an object of the type function, not a Verdict"),
        ("number", "TypeError: verify returned a Verdict whose correct is 1 (int), not True or False"),
        (
            "unknown status",
            "TypeError: verify returned a Verdict whose status is 'perhaps' (str), not one of ok, no_answer, "
            "timeout, error",
        ),
        ("contradiction", "ValueError: verify returned a correct verdict with the status no_answer"),
        ("own error", "two lines"),
        ("leave", "its worker died 3 times"),
        ("kill", "its worker died 3 times"),
        ("crash", "its worker died 3 times"),
        ("close everything", "its worker died 3 times"),
    ],
)
def test_a_failing_verifier_is_an_error(pool, misdeed, detail):
    verdicts = pool.score([Misbehaving()] * 3, ["good", misdeed, "good"], [ROW] * 3)
    assert verdicts == [RIGHT, _error(detail), RIGHT]


def test_all_at_once(pool):
    """More late and dying items than workers."""
    texts = ["power", "good", "kill", "good"] * 3
    late, dead = LATE, _error("its worker died 3 times")
    assert pool.score([Misbehaving()] * 12, texts, [ROW] * 12) == [late, RIGHT, dead, RIGHT] * 3


def test_what_a_verifier_prints_is_discarded(pool, capfd):
    assert pool.score([Misbehaving()], ["noise"], [ROW]) == [RIGHT]
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_takes_its_children_along(open_pool, tmp_path):
    pids = tmp_path / "pids"
    (verdict,) = open_pool.score([LeavesChild()], [""], [{"pids": str(pids)}])
    assert verdict.detail == "took longer than 1 s, 5 times its 0.2 CPU seconds"
    worker, child = map(int, pids.read_text().split())
    assert _ended(worker)
    assert _ended(child)


# ---- what cannot be sent ----


def test_a_row_that_cannot_be_pickled(pool):
    verdicts = pool.score([Equal()] * 3, ["a"] * 3, [ROW, {"answer": "a", "lock": threading.Lock()}, ROW])
    detail = "the row cannot be sent to a worker process (TypeError: cannot pickle '_thread.lock' object)"
    assert verdicts == [RIGHT, _error(detail), RIGHT]


def test_a_verifier_that_cannot_be_pickled(pool):
    with pytest.raises(UserError) as raised:
        pool.score([Equal(), Unpicklable()], ["a", "a"], [ROW, ROW])
    assert str(raised.value) == "Unpicklable cannot be sent to a worker process: RuntimeError: stays here."


def test_a_verifier_that_cannot_be_loaded(pool):
    with pytest.raises(UserError) as raised:
        pool.score([FailsToLoad()], ["a"], [ROW])
    assert str(raised.value) == "a verifier cannot be loaded in a worker process: RuntimeError: not in a worker."
    assert pool.score([Equal()], ["a"], [ROW]) == [RIGHT]


def test_a_verifier_that_kills_as_it_loads(pool):
    with pytest.raises(RunError) as raised:
        pool.score([DiesAsItLoads()], ["a"], [ROW])
    assert str(raised.value) == "the worker processes of the verifiers ended 3 times as they started."
    assert pool.score([Equal()], ["a"], [ROW]) == [RIGHT]


# ---- check ----


def test_check_says_why_a_row_cannot_be_judged(pool):
    answers = ["good", "value error", "exit", "power", "kill", "good"]
    assert pool.check([Equal()] * 6, [{"answer": answer} for answer in answers]) == [
        None,
        r"line 1 line 2\x1b[2J\ud800",
        "the verifier failed on it (SystemExit)",
        "the verifier ran longer than 0.8 CPU seconds on it",
        "the verifier failed on it (its worker died 3 times)",
        None,
    ]
