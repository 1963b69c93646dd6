"""Stopping a run at a chosen moment: from within its process, or from outside in a process of its own."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from lightning.pytorch.core.optimizer import LightningOptimizer

from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.module import AsymGRPOModule
from tests.support.paths import REPOSITORY

# Where the signal comes: owner and name of a function, and whether it comes before it or after it.
MOMENTS: dict[str, tuple[Any, str, str]] = {
    "backward": (AsymGRPOModule, "manual_backward", "before"),
    "between two updates": (LightningOptimizer, "step", "after"),
    "end of the step": (AsymGRPOModule, "training_step", "after"),
    "validation": (AsymGRPOModule, "validation_step", "before"),
    "end of validation": (AsymGRPOModule, "on_validation_epoch_end", "before"),
    "before saving": (WholeCheckpointIO, "save_checkpoint", "before"),
    "after saving": (WholeCheckpointIO, "save_checkpoint", "after"),
}


def interrupted(
    function: Callable[..., Any], number: int, when: str, signum: signal.Signals = signal.SIGTERM
) -> Callable[..., Any]:
    """The function, with a signal to this process before or after its call of this number (from 1)."""
    calls = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signum)
        result = function(*arguments, **named)
        if calls == number and when == "after":
            os.kill(os.getpid(), signum)
        return result

    return wrapper


@contextlib.contextmanager
def signal_at(monkeypatch: Any, moment: str, number: int) -> Any:
    """SIGTERM at one of `MOMENTS`, in its call of this number (from 1)."""
    owner, function, when = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupted(getattr(owner, function), number, when))
        yield


class Started:
    """A command in a process of its own, with all that it starts.

    Args:
        arguments: Those of Python.
        log: The file that its output goes to.
        terminal: A terminal that it controls and writes to instead; None: none.
        ignored: A signal that it ignores from the start, as `nohup` does with SIGHUP.
        environment: Further variables.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        terminal: int | None = None,
        ignored: signal.Signals | None = None,
        **environment: str,
    ) -> None:
        def before() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would this one
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)
            if terminal is not None:
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
                stdin=terminal,
                stdout=file if terminal is None else terminal,
                stderr=file if terminal is None else terminal,
                start_new_session=True,
                preexec_fn=before,
            )
        self.known: set[psutil.Process] = set()

    def wait_for(self, condition, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)
        with contextlib.suppress(psutil.NoSuchProcess):
            self.known |= set(psutil.Process(self.process.pid).children(recursive=True))

    @property
    def text(self) -> str:
        return self.log.read_text()

    def catches(self, signum: signal.Signals) -> bool:
        """Whether it has a handler of its own for the signal."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
        return False

    def left_behind(self) -> list[psutil.Process]:
        """Those of its processes that are still there some seconds after its end."""
        _, alive = psutil.wait_procs(self.known, timeout=10)
        return alive
