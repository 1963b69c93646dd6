"""Verifiers that misbehave in the worker they run in, and one that says where it runs."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from asymgrpo_app.rewards import Status, Verdict, Verifier


class Equal(Verifier):
    """An honest one."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=completion == row["answer"])

    def check_row(self, row: Mapping[str, Any]) -> None:
        MISDEEDS.get(row["answer"], lambda: None)()


class EqualHere(Equal):
    """An honest one that runs in the caller's process."""

    isolated: ClassVar[bool] = False


class Misbehaving(Verifier):
    """Does what the completion says; judges anything else right."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Any:
        if completion in MISDEEDS:
            return MISDEEDS[completion]()
        return Verdict(correct=True)


class MisbehavingHere(Misbehaving):
    """In the caller's process."""

    isolated: ClassVar[bool] = False


class Where(Verifier):
    """Tells its process id and which of the modules named in the completion are loaded there."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        loaded = [name for name in completion.split() if name in sys.modules]
        return Verdict(correct=True, detail=" ".join([str(os.getpid()), *loaded]))


class DiesAtFirst(Verifier):
    """Kills its worker as often as the row says, and judges the answer after that."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        deaths = Path(row["deaths"])
        count = len(deaths.read_text()) if deaths.exists() else 0
        if count < row["times"]:
            deaths.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return Verdict(correct=True)


class Sleeps(Verifier):
    """Takes some time over each answer, if the row has a file writes its process id there first."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        if "pids" in row:
            with Path(row["pids"]).open("a") as file:
                file.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return Verdict(correct=completion == row["answer"])


class SleepsOverSums(Sleeps):
    """Takes that time over completions with a plus sign alone."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return super().verify(completion, row) if "+" in completion else Verdict(correct=completion == row["answer"])


class LeavesChild(Verifier):
    """Starts a process that would outlive it, and hangs."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        child = subprocess.Popen(["sleep", "600"])
        Path(row["pids"]).write_text(f"{os.getpid()}\n{child.pid}\n")
        return Verdict(correct=bool(child.wait()))


class StopsItself(Verifier):
    """Stops its own process, as a machine without a free core would; is right once something lets it go on."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        os.kill(os.getpid(), signal.SIGSTOP)
        return Verdict(correct=completion == row["answer"])


class Isolated(Verifier):
    """Another verifier, in a worker under the time limit."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return self.verifier.verify(completion, row)


class Unpicklable(Equal):
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


class FailsToLoad(Equal):
    """Can be sent, but not received."""

    def __reduce__(self) -> Any:
        return _fail, ()


class DiesAsItLoads(Equal):
    """Kills the worker that loads it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def _fail() -> None:
    raise RuntimeError("not in a worker")


def _raise(error: BaseException) -> Callable[[], None]:
    def misdeed() -> None:
        raise error

    return misdeed


def _recurse() -> None:
    _recurse()


def _swallow() -> None:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


def _catch_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def _spin() -> Verdict:
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass
    return Verdict(correct=True)


def _noise() -> Verdict:
    print("noise on stdout", flush=True)
    print("noise on stderr", file=sys.stderr, flush=True)
    os.write(1, b"noise on a descriptor\n")
    return Verdict(correct=True)


def _alarm() -> Verdict:
    signal.setitimer(signal.ITIMER_REAL, 0.3)  # whose default action ends the process
    return Verdict(correct=True)


MISDEEDS: dict[str, Callable[[], Any]] = {
    "power": lambda: 9**9**9,
    "regular expression": lambda: re.match("(a+)+$", "a" * 64 + "!"),
    "swallow": _swallow,
    "catch signals": _catch_signals,
    "value error": _raise(ValueError("line 1\nline 2\x1b[2J\ud800")),
    "long error": _raise(ValueError("x" * 10_000)),
    "exit": sys.exit,
    "keyboard interrupt": _raise(KeyboardInterrupt()),
    "end of file": _raise(EOFError()),
    "broken pipe": _raise(BrokenPipeError("none")),
    "recursion": _recurse,
    "memory": lambda: bytearray(10**12),
    "memory bit by bit": lambda: [bytearray(10**7) for _ in range(10**6)],
    "nothing": lambda: None,
    "true": lambda: True,
    "something unpicklable": lambda: lambda: None,
    "number": lambda: Verdict(correct=1),
    "unknown status": lambda: Verdict(correct=True, status="perhaps"),
    "contradiction": lambda: Verdict(correct=True, status=Status.NO_ANSWER),
    "own error": lambda: Verdict(correct=False, status=Status.ERROR, detail="two\nlines"),
    "leave": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "close everything": lambda: os.closerange(0, 100),
    "spin": _spin,
    "noise": _noise,
    "alarm": _alarm,
}
