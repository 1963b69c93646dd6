"""Ending processes together with all that they started."""

import contextlib
import os
import signal
import time
from collections.abc import Collection

from asymgrpo_app.rewards.pool.limits import children

_LONGEST_S = 10.0


def kill(pid: int, others: Collection[int]) -> None:
    """Kill a child with its descendants. This process must have called `adopt_orphans`.

    What the child leaves behind becomes a child of this process, whatever session or group it moved to; its children
    follow once it is dead, and so on. Processes that fork faster than they are found are given up after ten seconds.

    Args:
        pid: The child.
        others: Children to be spared.
    """
    # A process that has not been waited for keeps its id, so the signal reaches no other.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    found = {pid}
    end = time.monotonic() + _LONGEST_S
    while found and time.monotonic() < end:
        for one in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        for one in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, 0)
        found = children() - set(others)
