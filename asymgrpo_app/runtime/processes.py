"""Handling of a lost process: all processes of the run end soon, and one of them reports why.

torchrun watches the processes it started, ends the others and names the first that failed. Lightning's own launcher
ends them with SIGKILL and without a message: here it is given another observer. Either way the processes that wait for
the lost one fail in the exchange (`lost_exchange`), or are ended if they do not notice.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script
from torch import distributed

from asymgrpo_app.errors import ExitCode
from asymgrpo_app.runtime.launch import announce_launcher

_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_TO_NOTICE = 2.0
_GRACE_S = 15.0  # for the first process to end by itself, with its own message, and its sampler


_noticed: list[threading.Event] = []  # of each observation: set when a lost process was noticed


def observe_processes() -> None:
    """Have Lightning's launcher watch its processes with `end_with_lost`, and tell them that it started them."""
    announce_launcher()
    launcher: Any = subprocess_script
    launcher._launch_process_observer = _observe


def _observe(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    noticed = threading.Event()
    _noticed.append(noticed)
    threading.Thread(target=end_with_lost, args=(processes, noticed), daemon=True).start()


def end_with_lost(processes: Sequence["subprocess.Popen[bytes]"], noticed: threading.Event) -> None:
    """End the first process when one that it started is lost; the others end with it (`stopping.end_with_parent`).

    Args:
        processes: The processes that were started, by their local rank from 1.
        noticed: Set when one is lost.
    """
    codes = [process.poll() for process in processes]
    while None in codes and not any(codes):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        codes = [process.poll() for process in processes]
    for rank, code in enumerate(codes, start=1):
        if code:
            how = f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            what = f"process {rank} of {len(codes) + 1} (PID {processes[rank - 1].pid}) {how}"
            if code < 0:  # ended by a signal: it could not report anything itself
                _tell(what)
            noticed.set()
            time.sleep(_GRACE_S)
            if code > 0:
                _tell(what)
            os._exit(ExitCode.FAILURE)


def _tell(what: str) -> None:
    text = f"asymgrpo: {what}: all processes of this run end. The same command with --ckpt_path last goes on.\n"
    with suppress(OSError):  # nobody reads it
        os.write(sys.stderr.fileno(), text.encode())


def lost_exchange(error: BaseException) -> str | None:
    """The message for an exchange that failed because another process is lost; None for other errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, distributed.DistError) and "gloo" not in text:
        return None
    for noticed in _noticed:  # an observer knows more, and would otherwise report it too late
        noticed.wait(_SECONDS_TO_NOTICE)
    reason = re.sub(r"^\[[^]]*\] ", "", text).partition(". ")[0]  # without the place in gloo's source, and its advice
    return (
        f"an exchange with another process of this run failed ({reason[:200]}): look for what that one said, or what "
        "ended it; the same command with --ckpt_path last goes on."
    )
