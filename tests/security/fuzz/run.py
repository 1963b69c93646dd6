"""The loop that attacks a target, and its limits."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import psutil

SLOWEST_S = 10.0
"""Seconds that one input may take."""
GROWTH = 200 * 2**20
"""Bytes that the process may grow by."""
_WARM_UP = 50

Attack = Callable[[Random], bool]
"""Makes one input of what it draws and gives it to the target; whether that refused it. Any error is a fault found."""
Target = Callable[[Path], Attack]
"""Makes a target ready, in a folder of its own."""


@dataclass(frozen=True)
class Figures:
    """What a run took.

    Attributes:
        inputs: How many there were.
        refused: How many of them were refused.
        growth: Largest growth of the process's memory after the first 50, in bytes.
        slowest_s: The longest time for one, in seconds.
    """

    inputs: int
    refused: int
    growth: int
    slowest_s: float


def fuzz(target: Target, seconds: float, seed: int = 0, first: int = 0) -> Figures:
    """Attack a target for so many seconds, from the input of this number on.

    Raises:
        AssertionError: It failed; the message has the seed and the number of the input.
    """
    process = psutil.Process()
    refused = growth = before = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        attack, end = target(Path(folder)), time.monotonic() + seconds
        for number in count(first):
            if number > first and time.monotonic() > end:
                return Figures(number - first, refused, growth, slowest)
            which, began = f"input {number} of seed {seed}", time.perf_counter()
            try:
                refused += attack(Random(f"{seed}/{number}"))
            except BaseException as error:
                raise AssertionError(f"{which}: {type(error).__name__}: {error}") from error
            slowest = max(slowest, time.perf_counter() - began)
            assert slowest < SLOWEST_S, f"{which} took {slowest:.1f} s"
            memory = process.memory_info().rss
            before = before if number - first > _WARM_UP else memory
            growth = max(growth, memory - before)
            assert growth < GROWTH, f"{growth:,} bytes more after {which}"
    raise AssertionError("not reached")
