"""The time limit of one answer: CPU time of what judges it, and wall time several times as long.

On a machine with more work than cores a verifier waits most of the time, which says nothing about the completion. So
CPU time counts. Wall time bounds what takes none: a verifier that sleeps, waits for another process or is stopped.
"""

import time
from dataclasses import dataclass

WALL_FACTOR = 5
"""Wall time that an answer may take, in multiples of its CPU time: right answers stay right while a verifier gets a
fifth of a core or more."""

_SHORTEST_LOOK_S = 0.01


def cpu_seconds(pid: int) -> float:
    """CPU time of another process with all its threads, since its start; 0 if there is no such process.

    What it started itself is not in it.
    """
    try:
        # The number of a process's clock (clock_getcpuclockid): one system call, where /proc would take ten times that.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


@dataclass(frozen=True)
class TimeLimit:
    """The limit of an answer that is being judged.

    Attributes:
        cpu_s: CPU seconds it may take; wall time may be `WALL_FACTOR` times that.
        cpu_began: CPU time of its process as it began.
        began: When it began, on the clock of `time.monotonic`.
    """

    cpu_s: float
    cpu_began: float
    began: float

    def next_look(self, cpu: float, now: float) -> float:
        """When to look again after a look that found the limit not reached.

        Args:
            cpu: CPU time of the process.
            now: The time, on the clock of `time.monotonic`.
        """
        rest = max(self.cpu_s - (cpu - self.cpu_began), _SHORTEST_LOOK_S)
        return min(now + rest, self.began + WALL_FACTOR * self.cpu_s)

    def overrun(self, cpu: float, now: float) -> str:
        """What was too long, as the end of a sentence about the verifier; "" if nothing was.

        Args:
            cpu: CPU time of the process.
            now: The time, on the clock of `time.monotonic`.
        """
        if cpu - self.cpu_began >= self.cpu_s:
            return f"ran longer than {self.cpu_s:g} CPU seconds"
        if now - self.began >= WALL_FACTOR * self.cpu_s:
            return (
                f"took longer than {WALL_FACTOR * self.cpu_s:g} s, {WALL_FACTOR} times its {self.cpu_s:g} CPU seconds"
            )
        return ""
