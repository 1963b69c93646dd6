"""Signals and the time limit: how a command is asked to stop, and when it does.

A handler only takes note, and raises `StopRun` at once where work may be given up at any moment. Elsewhere the work
goes on to the next place that asks. Imports nothing heavy, so that it is in place before torch is imported.
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
from dataclasses import dataclass
from types import FrameType
from typing import Any

from asymgrpo_app.errors import ExitCode, UserError

Gather = Callable[[Any], list[Any]]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_SIGNAL_S = 1.0  # a signal that is sent to a group and forwarded as well comes twice within milliseconds
_PR_SET_PDEATHSIG = 1
_DURATION = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class Cause:
    """Why a command stops before its end.

    Attributes:
        name: As a user knows it.
        exit_code: What the command returns.
    """

    name: str
    exit_code: int


GIVEN_UP = "What is under way is given up; the state after the last whole step is kept."
FINISHED = "The update under way is finished first; then the state is kept."

TIME_LIMIT = Cause("time_limit", ExitCode.TIME_LIMIT)
_CAUSES = {number: Cause(signal.Signals(number).name, 128 + number) for number in _SIGNALS}


class StopRun(BaseException):
    """The command was asked to stop. Like `KeyboardInterrupt` no `Exception`, so that no library takes it for one.

    Args:
        cause: Why.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause
        self.outcome = ""  # what was kept, for the user


class StopSwitch:
    """Whether this process was asked to stop, and whether it may do so at any moment.

    Attributes:
        doing: What giving up or going on means now, for the user who sends a signal.
    """

    def __init__(self) -> None:
        self.cause: Cause | None = None
        self.doing = ""
        self._at_once = False
        self._noticed: float | None = None

    # ---- what the work says ----

    def may_stop(self, doing: str = "") -> None:
        """From here on a signal stops the work at once; raises `StopRun` if one has come already."""
        self.doing, self._at_once = doing, True
        self.check()

    def must_finish(self, doing: str = "") -> None:
        """From here on a signal is only noted, until the next `may_stop` or `check`."""
        self._at_once = False
        self.doing = doing

    def check(self) -> None:
        """Raise `StopRun` if this process was asked to stop."""
        if self.cause is not None:
            raise StopRun(self.cause)

    def check_together(self, gather: Gather) -> None:
        """Raise `StopRun` on every rank if any of them was asked to stop; every rank takes part.

        Args:
            gather: The value of every rank, on every rank.
        """
        causes = [cause for cause in gather(self.cause) if cause is not None]
        if causes:
            raise StopRun(causes[0])

    @contextmanager
    def own_work(self, gather: Gather) -> Iterator[None]:
        """Work without exchanges between ranks: given up when this rank is asked to stop, and then all of them stop."""
        with suppress(StopRun):  # the other ranks hear of it below
            self.may_stop(GIVEN_UP)
            yield
            self.must_finish()  # in here: the handler may raise until this is done
        self.must_finish()
        self.check_together(gather)

    # ---- what asks it to stop ----

    def ask(self, cause: Cause) -> None:
        """Stop for a reason other than a signal; from any thread."""
        if self.cause is None:
            self.cause = cause
            if signal.getsignal(signal.SIGTERM) == self._on_signal:
                # The handler runs in the main thread, and a system call that waits there is interrupted.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._noticed is not None:
            if now - self._noticed > _SAME_SIGNAL_S:
                _tell(f"{signal.Signals(number).name} once more: ended.")
                os._exit(128 + number)
            return
        self._noticed = now
        self.cause = self.cause or _CAUSES[signal.Signals(number)]
        doing = f" {self.doing}" if self.doing else ""
        _tell(f"{self.cause.name}: stopping.{doing} A second signal ends the process at once.")
        if self._at_once:
            raise StopRun(self.cause)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Take over the signals of this process; to begin with, they stop it at once. One it ignores stays ignored."""
        self.cause, self.doing, self._noticed, self._at_once = None, "", None, True
        own = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            own = []
        before = {number: signal.signal(number, self._on_signal) for number in own}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


switch = StopSwitch()
"""The one of this process, as signals are the process's."""


def seconds_of(duration: str | int) -> float:
    """Seconds of a duration written as HH:MM:SS or D-HH:MM:SS, or given in seconds.

    Raises:
        UserError: It is neither, or not above 0.
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
    """Seconds since this process started; a scheduler's clock began then, too."""
    import psutil

    return time.time() - float(psutil.Process().create_time())


class StopWatch(threading.Thread):
    """Asks this process to stop when its time is up, or when another rank was asked.

    Args:
        deadline: On the clock of `time.monotonic`; None: no limit.
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
                switch.ask(TIME_LIMIT)
            try:
                self._exchange()
            except Exception:  # the store ended with the rank that holds it
                return
            if switch.cause is not None:
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _exchange(self) -> None:
        """Tell the other ranks, or hear from them."""
        if self._store is None:
            return
        if switch.cause is not None:
            self._store.set(self._KEY, f"{switch.cause.exit_code} {switch.cause.name}")
        elif self._store.check([self._KEY]):
            code, name = self._store.get(self._KEY).decode().split()
            switch.ask(Cause(name, int(code)))


def end_with_parent(parent: int | None = None) -> None:
    """Let this process end when the one that started it dies, however it dies. Linux alone knows how.

    Args:
        parent: Its process number, where it may have died already; None: it is the one that is there now.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(ExitCode.FAILURE)  # it died before the line above


def _tell(text: str) -> None:
    """Write a line to stderr. A handler may interrupt a `print`, whose buffer takes no second writer."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\nasymgrpo: {text}\n".encode())
