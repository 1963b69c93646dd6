"""The pool of worker processes that verifiers run in, under a time limit that kills."""

import hashlib
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cloudpickle

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.pool import sandbox
from asymgrpo_app.rewards.pool.crew import Crew
from asymgrpo_app.rewards.pool.messages import Reply, described, failure
from asymgrpo_app.rewards.pool.processes import Job
from asymgrpo_app.rewards.pool.worker import reply_to

MAX_WORKERS = 256
MIN_MEMORY_GIB = 0.5
"""Least memory limit in GiB: an interpreter with the libraries of our verifiers takes about half of it."""

_MOST_WORKERS_BY_DEFAULT = 16

_Item = tuple[Verifier, str | Sequence[str], Mapping[str, Any]]


@dataclass(frozen=True)
class VerifierPoolConfig:
    """The worker processes that verifiers run in.

    Args:
        workers: Number of worker processes; null: one per core, at most 16.
        timeout_s: CPU seconds an answer may take, or five times as many by the clock; then its worker is killed and the
            verdict has the status `timeout`.
        memory_gib: Memory a worker may use, in GiB; beyond it the verdict has the status `error`.
        sandbox: Whether workers run without network, without secrets of the environment, and without files but those
            of modules and a temporary folder; null: where the machine offers it. False for verifiers that need those.
    """

    workers: int | None = None
    timeout_s: float = 10.0
    memory_gib: float = 4.0
    sandbox: bool | None = None

    def __post_init__(self) -> None:
        # Not isinstance: True is no number here.
        if self.workers is not None and not (type(self.workers) is int and 1 <= self.workers <= MAX_WORKERS):
            raise UserError(f"workers must be a whole number from 1 to {MAX_WORKERS} or null, got {self.workers!r}.")
        if type(self.timeout_s) not in (int, float) or not 0 < self.timeout_s < math.inf:
            raise UserError(f"timeout_s must be a number of seconds above 0, got {self.timeout_s!r}.")
        if type(self.memory_gib) not in (int, float) or not MIN_MEMORY_GIB <= self.memory_gib < math.inf:
            raise UserError(f"memory_gib must be at least {MIN_MEMORY_GIB} GiB, got {self.memory_gib!r}.")
        if self.sandbox is not None and type(self.sandbox) is not bool:
            raise UserError(f"sandbox must be true, false or null, got {self.sandbox!r}.")

    @property
    def worker_count(self) -> int:
        """The number of worker processes."""
        return self.workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS_BY_DEFAULT)


class VerifierPool:
    """Runs verifiers: those with `isolated = False` in this process, all others in worker processes.

    An isolated item has `timeout_s` CPU seconds, and five times as many by the clock (`TimeLimit`); then its worker is
    killed with all that it started, and replaced. Each worker has one item and its own connection, so a worker's death,
    at whatever moment, concerns its own item alone: the item is tried again, and fails once three workers died over it.
    What an item started ends with it, and a reply counts for its own request alone.

    Workers start at the first isolated item. They hold the libraries of our verifiers, not the main script's; classes
    that the main script or a notebook defines travel by value.

    A pool serves one call at a time; a second thread waits for the first.

    Args:
        config: The workers.
        say: Is told once, as the first workers start, whether they run in the sandbox.

    Raises:
        UserError: `sandbox` is true, and this machine offers none.
    """

    def __init__(
        self, config: VerifierPoolConfig = VerifierPoolConfig(), say: Callable[[str], None] | None = None
    ) -> None:
        if config.sandbox and (reason := sandbox.missing()):
            raise UserError(f"sandbox: true: this machine offers no sandbox for verifiers: {reason}.")
        self.config = config
        self._crew = Crew(config.timeout_s, int(config.memory_gib * 2**30), config.sandbox)
        self._turn = threading.Lock()
        self._say = say

    def score(
        self, verifiers: Sequence[Verifier], completions: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[Verdict]:
        """One verdict per completion, in order; N verifiers, completions and rows.

        Raises:
            UserError: A verifier cannot be sent to worker processes.
            RunError: Worker processes do not start.
        """
        replies = self._replies("verify", list(zip(verifiers, completions, rows, strict=True)))
        return [Verdict(reply["correct"], Status(reply["status"]), reply["detail"]) for reply in replies]

    def check(self, verifiers: Sequence[Verifier], rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """For each row, the reason why its verifier cannot judge it, or None.

        Raises:
            UserError: A verifier cannot be sent to worker processes.
            RunError: Worker processes do not start.
        """
        items = [(verifier, "", row) for verifier, row in zip(verifiers, rows, strict=True)]
        return [_reason(reply) for reply in self._replies("check", items)]

    def classes(
        self, verifiers: Sequence[Verifier], completions: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
    ) -> list[list[int | None] | None]:
        """For each of P problems, the classes of equal answers among its completions.

        Returns:
            [P][n] numbers from 0 on, None for a completion without an answer; None for a problem whose verifier does
            not define equal answers, or failed.

        Raises:
            UserError: A verifier cannot be sent to worker processes.
            RunError: Worker processes do not start.
        """
        items = list(zip(verifiers, completions, rows, strict=True))
        return [reply.get("classes") for reply in self._replies("classes", items)]

    def close(self) -> None:
        """End the workers. Safe to call twice; a later call of `score` or `check` starts new ones."""
        self._crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _replies(self, kind: str, items: Sequence[_Item]) -> list[Reply]:
        """The reply to each item, in order."""
        replies = [{} if item[0].isolated else _reply_here(kind, *item) for item in items]
        isolated = [position for position, (verifier, _, _) in enumerate(items) if verifier.isolated]
        if not isolated:
            return replies
        verifiers = {id(items[position][0]): items[position][0] for position in isolated}
        pickled = {identity: _pickled(verifier) for identity, verifier in verifiers.items()}

        def jobs() -> Iterator[Job]:
            """Pickle items one by one; one that cannot be pickled has failed."""
            for position in isolated:
                verifier, given, row = items[position]
                try:
                    payload = pickle.dumps((given, dict(row)), protocol=pickle.HIGHEST_PROTOCOL)
                except Exception as error:
                    replies[position] = failure(f"the row cannot be sent to a worker process ({described(error)})")
                else:
                    samples = len(given) if kind == "classes" else 1
                    yield Job(position, kind, *pickled[id(verifier)], payload, samples)

        with self._turn:
            if self._say is not None:
                self._say(_protection(self.config.sandbox))
                self._say = None
            self._crew.prepared.update(filter(None, map(_own_class, verifiers.values())))
            for position, reply in self._crew.replies(jobs(), min(self.config.worker_count, len(isolated))):
                replies[position] = reply
        return replies


def _protection(sandboxed: bool | None) -> str:
    if sandboxed is False:
        return "Verifiers run without a sandbox, as sandbox: false says."
    if reason := sandbox.missing():
        return f"Verifiers run under limits, but without a sandbox: {reason}."
    return "Verifiers run in a sandbox: without network, and without files but those of modules and a temporary folder."


def _reply_here(kind: str, verifier: Verifier, given: str | Sequence[str], row: Mapping[str, Any]) -> Reply:
    """Judge an item in this process; like a worker, which answers whatever a verifier raises."""
    try:
        return reply_to(kind, verifier, given, row)
    except (Exception, SystemExit) as error:
        return failure(described(error))


def _own_class(verifier: Verifier) -> str:
    """Class of a verifier of this package as `module:name`, else "": others may import what no launcher should hold."""
    kind = type(verifier)
    return f"{kind.__module__}:{kind.__qualname__}" if kind.__module__.startswith("asymgrpo_app.") else ""


def _pickled(verifier: Verifier) -> tuple[bytes, bytes]:
    """A verifier in pickled form, and a short key that tells it from others.

    Raises:
        UserError: It cannot be pickled.
    """
    try:
        pickled = cloudpickle.dumps(verifier)
    except Exception as error:
        raise UserError(f"{type(verifier).__name__} cannot be sent to a worker process: {described(error)}.") from error
    return pickled, hashlib.sha256(pickled).digest()


def _reason(reply: Reply) -> str | None:
    if reply.get("status") == Status.TIMEOUT:
        return f"the verifier {reply['detail']} on it"
    if "status" in reply:
        return f"the verifier failed on it ({reply['detail']})"
    return reply.get("reason")
