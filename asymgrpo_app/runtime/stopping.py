"""Stopping a command by a signal or the time limit.

A handler notes the signal, and raises `StopRun` at once where work may be aborted at any moment. Elsewhere the work
goes on to the next check. Imports nothing heavy, so that handlers are in place before torch is imported.
"""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from types import FrameType
from typing import Any

from asymgrpo_app.errors import ExitCode, UserError

Gather = Callable[[Any], list[Any]]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that ask a command to stop."""
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # a second one of these ends the process at once
_SAME_SIGNAL_S = 1.0  # a signal that is sent to a group and forwarded as well comes twice within milliseconds
_PR_SET_PDEATHSIG = 1
_DURATION = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


class Cause(Enum):
    """The cause of a command's stop before its end: its name for the user, and the exit code of the command.

    SIGUSR1 and SIGUSR2 come from schedulers shortly before the time is up, so their code is that of the time limit.
    """

    SIGINT = "SIGINT", ExitCode.INTERRUPTED
    SIGTERM = "SIGTERM", ExitCode.TERMINATED
    SIGHUP = "SIGHUP", ExitCode.HUNG_UP
    SIGUSR1 = "SIGUSR1", ExitCode.TIME_LIMIT
    SIGUSR2 = "SIGUSR2", ExitCode.TIME_LIMIT
    time_limit = "time_limit", ExitCode.TIME_LIMIT

    @property
    def code(self) -> ExitCode:
        """The exit code of a command that was stopped."""
        return self.value[1]


class StopRun(BaseException):
    """The command was asked to stop. Not an `Exception`, like `KeyboardInterrupt`, so that no library catches it.

    Args:
        cause: Cause of the stop.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause
        self.outcome = ""  # message for the user on what was saved


class StopSwitch:
    """State of a stop request to this process, and whether it may stop at any moment."""

    def __init__(self) -> None:
        self.cause: Cause | None = None
        self._at_once = False
        self._noticed: float | None = None  # when the first SIGINT or SIGTERM came
        self._waking = False  # whether the next SIGTERM is from `ask`

    # ---- called by the work ----

    def may_stop(self) -> None:
        """Let a signal stop the work at once from here on; raises `StopRun` if one has come already."""
        self._at_once = True
        if self.cause is not None:
            self._at_once = False
            raise StopRun(self.cause)

    def must_finish(self) -> None:
        """Only note signals from here on, until the next `may_stop`."""
        self._at_once = False

    def check_together(self, gather: Gather) -> None:
        """Raise `StopRun` on every rank if any of them was asked to stop; every rank takes part.

        Args:
            gather: Returns the values of all ranks, on every rank.
        """
        for cause in gather(self.cause):
            if cause is not None:
                raise StopRun(cause)

    @contextmanager
    def own_work(self, gather: Gather) -> Iterator[None]:
        """Rank-local work without exchanges: aborted when this rank is asked to stop; then all ranks stop."""
        with suppress(StopRun):  # the other ranks hear of it below
            self.may_stop()
            yield
            self.must_finish()  # in here: the handler may raise until this is done
        self.must_finish()
        self.check_together(gather)

    # ---- stop requests ----

    def ask(self, cause: Cause) -> None:
        """Request a stop for a reason other than a signal; from any thread."""
        if self.cause is None:
            self.cause = cause
            if signal.getsignal(signal.SIGTERM) == self._on_signal:
                # The handler runs in the main thread, and a system call that waits there is interrupted.
                self._waking = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._waking:
            self._waking = False
        elif number in _IMPATIENT:
            now, first = time.monotonic(), self._noticed
            if first is not None:
                if now - first > _SAME_SIGNAL_S:
                    _tell(f"{name} once more: ended.")
                    os._exit(Cause[name].code)
                return
            self._noticed = now
        elif self.cause is not None:  # a shell and the kernel both announce a closed terminal
            return
        self.cause = self.cause or Cause[name]
        _tell(
            f"{self.cause.name}: stopping. What is under way is given up; an update, a save or a file is finished "
            "first. A second SIGINT or SIGTERM ends the process at once."
        )
        if self._at_once:
            self._at_once = False  # not once more while the first one is on its way
            raise StopRun(self.cause)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle the signals of this process; at first they stop it at once. Ignored signals stay ignored."""
        self.cause, self._noticed, self._waking, self._at_once = None, None, False, True
        handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            handled = []
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.cause, self._noticed, self._at_once = None, None, False  # or a further run would stop at once


switch = StopSwitch()
"""The switch of this process; there is one, as signals go to the process."""


def seconds_of(duration: str | int) -> float:
    """Seconds of a duration written as HH:MM:SS or D-HH:MM:SS, or given in seconds.

    Raises:
        UserError: The duration has neither form, or is not above 0.
    """
    match = _DURATION.fullmatch(str(duration))
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    else:
        total = duration if isinstance(duration, int) and not isinstance(duration, bool) else 0
    if total <= 0:
        raise UserError(
            f"time_limit must be a duration above 0 as HH:MM:SS or D-HH:MM:SS, or in seconds, got {duration!r}."
        )
    return float(total)


def age_s() -> float:
    """Seconds since this process started, which is when a scheduler's clock began, too."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


class StopWatch(threading.Thread):
    """Thread that asks this process to stop when its time is up or when another rank was asked to.

    Args:
        deadline: Time limit on the clock of `time.monotonic`; None: no limit.
        store: The ranks' common store of `torch.distributed`; None for one rank. This thread alone uses it.
    """

    _KEY = "asymgrpo/stop"
    _SECONDS_BETWEEN_LOOKS = 0.25

    def __init__(self, deadline: float | None, store: Any) -> None:
        super().__init__(name="asymgrpo-stop-watch", daemon=True)
        self._deadline = deadline
        self._store = store
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._SECONDS_BETWEEN_LOOKS):
            if self._deadline is not None and time.monotonic() >= self._deadline:
                switch.ask(Cause.time_limit)
            try:
                if self._store is not None:
                    self._exchange()
            except Exception:  # the store ended with the rank that holds it
                return
            if switch.cause is not None:
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _exchange(self) -> None:
        """Tell the other ranks of a stop request, or take over theirs."""
        if switch.cause is not None:
            self._store.set(self._KEY, switch.cause.name)
        elif self._store.check([self._KEY]):
            switch.ask(Cause[self._store.get(self._KEY).decode()])


def end_with_parent(parent: int | None = None) -> None:
    """Have this process end when the process that started it dies, however it dies. Linux only.

    Args:
        parent: Process id of the parent, which may have died already; None: the current parent.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(ExitCode.FAILURE)  # it died before the line above


def _tell(text: str) -> None:
    """Write a line to stderr. A handler may interrupt a `print`, whose buffer takes no second writer."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):  # the terminal, or what reads its output, may have ended
            os.write(2, f"\nasymgrpo: {text}\n".encode())
