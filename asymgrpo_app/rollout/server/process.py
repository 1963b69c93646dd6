"""vLLM's server as a program that leaves nothing behind: `python -m asymgrpo_app.rollout.server.process`.

This process starts vLLM in a fork and waits for it:

- A signal ends the server within `_GRACE_S`, also while it starts. The exit code is that of every command.
- Files and sockets of vLLM are for their owner alone, in a folder that is removed at the end.
- vLLM's engine does not notice that its server was killed by SIGKILL. It keeps its memory, a GPU's included, and the
  server that a supervisor starts next finds none (vLLM issue 55510). So every process that this server makes asks the
  kernel to be ended with the one it comes from, and what is left of them at the end is ended here.
"""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partialmethod
from math import inf
from time import monotonic, sleep

import psutil

from asymgrpo_app.runtime.environment import SOCKETS_VARIABLE, private_folder
from asymgrpo_app.runtime.stopping import STOP_SIGNALS, Cause, end_with_parent

_GRACE_S = 6.0  # for vLLM to end by itself
_ORPHANS_S = 2.0
_SAME_SIGNAL_S = 1.0  # one that is sent to a group and forwarded as well comes twice within milliseconds
_PR_SET_CHILD_SUBREAPER = 36

_forking = {"parent": 0}


def end_forks_with_this() -> None:
    """Make every forked process end with its parent; the kernel's setting for it is not inherited."""
    os.register_at_fork(
        before=lambda: _forking.update(parent=os.getpid()), after_in_child=lambda: end_with_parent(_forking["parent"])
    )


def supervise(work: Callable[[], None]) -> int:
    """Run `work` in a fork with a private folder, until it ends or this process is asked to stop.

    Returns:
        The fork's exit code; if a signal asked to stop, the code of every command for it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # processes whose parent died become children of this one
    stops = {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*stops, signal.SIGCHLD})  # they are waited for
    os.umask(0o077)
    this, folder = os.getpid(), private_folder()
    try:
        end_forks_with_this()
        if (child := os.fork()) == 0:
            os.setpgid(0, 0)  # the terminal's Ctrl-C comes through this process
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.environ |= {SOCKETS_VARIABLE: folder, "TMPDIR": folder}
            tempfile.tempdir = folder
            work()
            sys.exit()
        return _waited(child, stops)
    finally:
        if os.getpid() == this:
            shutil.rmtree(folder, ignore_errors=True)


def _waited(child: int, stops: set[signal.Signals]) -> int:
    """Wait for the child, and end it and all that came of it when a signal asks to stop; returns the exit code."""
    asked, noticed, limit = 0, 0.0, inf
    while (code := _reaped(child)) is None:
        now = monotonic()
        if now >= limit:
            os.kill(child, signal.SIGKILL)
            limit = inf
        found = signal.sigtimedwait({*stops, signal.SIGCHLD}, min(limit - now, 60.0))
        if found is not None and found.si_signo in stops:
            if not asked:
                asked, noticed, limit = found.si_signo, monotonic(), monotonic() + _GRACE_S
                os.kill(child, signal.SIGTERM)
            elif monotonic() - noticed > _SAME_SIGNAL_S:
                limit = 0.0
    _end_orphans()
    if asked:
        return Cause[signal.Signals(asked).name].code
    return code if code >= 0 else 128 - code


def _reaped(child: int) -> int | None:
    """Collect ended processes; the exit code of the child (negative: by a signal), None while it runs."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def _end_orphans() -> None:
    """End what is left of the server's processes. Most end with the one they come from, a moment later."""
    limit = monotonic() + _ORPHANS_S
    for process in _children_until(limit):
        with suppress(psutil.Error):
            process.kill()
    _children_until(limit + _ORPHANS_S)


def _children_until(limit: float) -> list[psutil.Process]:
    """The processes below this one that are left when the time is up."""
    while True:
        _reaped(0)
        left: list[psutil.Process] = psutil.Process().children(recursive=True)
        if not left or monotonic() >= limit:
            return left
        sleep(0.05)


def _serve() -> None:
    from asymgrpo_app.rollout.server.connections import bound_connections

    bound_connections()
    from vllm.entrypoints.launchers.api_server.entry import main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # An option's beginning is not the option: `check_extra` knows whole names.
    made = FlexibleArgumentParser.__init__
    FlexibleArgumentParser.__init__ = partialmethod(made, allow_abbrev=False)
    main()


if __name__ == "__mp_main__":  # a process that multiprocessing spawned: it imports the program it comes from
    end_with_parent()
    end_forks_with_this()
if __name__ == "__main__":
    sys.exit(supervise(_serve))
