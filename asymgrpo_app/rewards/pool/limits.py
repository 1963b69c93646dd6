"""What a worker may use, whether or not there is a sandbox, and which variables of the environment it gets."""

import contextlib
import ctypes
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import psutil

from asymgrpo_app.runtime.environment import SAFE_PATH

MAX_FILE_BYTES = 16 * 2**20
"""Largest file that a worker can write."""

MAX_OPEN_FILES = 256
"""Number of files that a worker may have open."""

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_OUT_OF_MEMORY = "1000"  # the largest score
_VARIABLES = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
_VARIABLE_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_")


def allowed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an interpreter and its libraries need. Tokens, keys and passwords are in others."""
    return {
        name: value
        for name, value in environment.items()
        if (name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES)) and (name, value) != SAFE_PATH
    }


def limit_resources(memory_bytes: int) -> None:
    """Limit this process, and each that it starts.

    The number of processes has no limit: the kernel counts those of the user, the training process and its threads
    among them, so none would be right.

    Args:
        memory_bytes: Address space that it may use.
    """
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        allowed = resource.getrlimit(kind)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError):  # some containers have this file read-only
        Path("/proc/self/oom_score_adj").write_text(_FIRST_OUT_OF_MEMORY)  # before the training process


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, in place of the init process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The children of this process, those that have ended and were not waited for among them."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:  # not every kernel has that file
        return {child.pid for child in psutil.Process().children()}


def has_children() -> bool:
    """Whether this process has a child that lives; those that have ended are cleared away."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
