"""The pool of worker processes that verifiers run in, under a time limit that kills."""

import math
import os
import pickle
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import cloudpickle

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.pool.crew import Crew
from asymgrpo_app.rewards.pool.processes import Job
from asymgrpo_app.rewards.pool.worker import answer_classes_here, described, reason_here, verdict_here

MAX_WORKERS = 256
MIN_MEMORY_GIB = 0.5
"""Least memory limit in GiB: an interpreter with the libraries of our verifiers takes about half of it."""

_MOST_WORKERS_BY_DEFAULT = 16
_MAX_PICKLED = 1_000
_UNJUDGED = Verdict(correct=False, status=Status.ERROR, detail="not judged")

_Item = tuple[Verifier, str | Sequence[str], Mapping[str, Any]]
_Reply = dict[str, Any]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class VerifierPoolConfig:
    """The worker processes that verifiers run in.

    Args:
        workers: Number of worker processes; null: one per core, at most 16.
        timeout_s: Seconds an answer may take; then its worker is killed and the verdict has the status `timeout`.
        memory_gib: Memory a worker may use, in GiB; beyond it the verdict has the status `error`.
    """

    workers: int | None = None
    timeout_s: float = 10.0
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        whole = isinstance(self.workers, int) and not isinstance(self.workers, bool)
        if self.workers is not None and not (whole and 1 <= self.workers <= MAX_WORKERS):
            raise UserError(f"workers must be a whole number from 1 to {MAX_WORKERS} or null, got {self.workers!r}.")
        if not _is_number(self.timeout_s) or not 0 < self.timeout_s < math.inf:
            raise UserError(f"timeout_s must be a number of seconds above 0, got {self.timeout_s!r}.")
        if not _is_number(self.memory_gib) or not MIN_MEMORY_GIB <= self.memory_gib < math.inf:
            raise UserError(f"memory_gib must be at least {MIN_MEMORY_GIB} GiB, got {self.memory_gib!r}.")

    @property
    def worker_count(self) -> int:
        """The number of worker processes."""
        return self.workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS_BY_DEFAULT)


class VerifierPool:
    """Runs verifiers: those with `isolated = False` in this process, all others in worker processes.

    An isolated item has `timeout_s` seconds; then its worker is killed with all that it started, and replaced. Each
    worker has one item and its own connection, so a worker's death, at whatever moment, concerns its own item alone:
    the item is tried again, and fails once three workers died over it. No verifier can end, hang or fill this process.

    Workers start at the first isolated item. They hold the libraries of our verifiers, not the main script's; classes
    that the main script or a notebook defines travel by value.

    A pool serves one call at a time; a second thread waits for the first.
    """

    def __init__(self, config: VerifierPoolConfig = VerifierPoolConfig()) -> None:
        self.config = config
        self._crew = Crew(config.timeout_s, int(config.memory_gib * 2**30))
        self._verifiers: dict[bytes, int] = {}
        self._turn = threading.Lock()

    def score(
        self, verifiers: Sequence[Verifier], completions: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[Verdict]:
        """One verdict per completion, in order; N verifiers, completions and rows.

        Raises:
            UserError: A verifier cannot be sent to worker processes.
            RunError: Worker processes do not start.
        """
        items = list(zip(verifiers, completions, rows, strict=True))
        verdicts = [
            _UNJUDGED if verifier.isolated else verdict_here(verifier, text, row) for verifier, text, row in items
        ]
        for position, reply in self._replies("verify", items):
            verdicts[position] = _verdict(reply)
        return verdicts

    def check(self, verifiers: Sequence[Verifier], rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """For each row, the reason why its verifier cannot judge it, or None.

        Raises:
            UserError: A verifier cannot be sent to worker processes.
            RunError: Worker processes do not start.
        """
        items = [(verifier, "", row) for verifier, row in zip(verifiers, rows, strict=True)]
        reasons = [None if verifier.isolated else reason_here(verifier, row) for verifier, _, row in items]
        for position, reply in self._replies("check", items):
            reasons[position] = _reason(reply)
        return reasons

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
        classes = [None if verifier.isolated else _classes_here(verifier, texts, row) for verifier, texts, row in items]
        for position, reply in self._replies("classes", items):
            classes[position] = reply.get("classes")
        return classes

    def close(self) -> None:
        """End the workers. Safe to call twice; a later call of `score` or `check` starts new ones."""
        self._crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replies(self, kind: str, items: Sequence[_Item]) -> Iterator[tuple[int, _Reply]]:
        """Yield the position and reply of each isolated item, in the order of the replies."""
        isolated = [(position, item) for position, item in enumerate(items) if item[0].isolated]
        if not isolated:
            return
        with self._turn:
            self._crew.prepare({path for _, item in isolated if (path := _own_class(type(item[0])))})
            tokens = self._tokens(verifier for _, (verifier, _, _) in isolated)
            unsent: list[tuple[int, _Reply]] = []
            size = min(self.config.worker_count, len(isolated))
            yield from self._crew.replies(_jobs(kind, isolated, tokens, unsent), list(self._verifiers), size)
            yield from unsent

    def _tokens(self, verifiers: Iterable[Verifier]) -> dict[int, int]:
        """Number the verifiers by their pickled form; returns the numbers by the `id` of the verifier.

        Raises:
            UserError: One of them cannot be pickled.
        """
        if len(self._verifiers) > _MAX_PICKLED:  # their settings keep changing
            self._verifiers.clear()
            self._crew.close()
        tokens: dict[int, int] = {}
        for verifier in verifiers:
            if id(verifier) not in tokens:
                try:
                    pickled = cloudpickle.dumps(verifier)
                except Exception as error:
                    name = type(verifier).__name__
                    raise UserError(f"{name} cannot be sent to a worker process: {described(error)}.") from error
                tokens[id(verifier)] = self._verifiers.setdefault(pickled, len(self._verifiers))
        return tokens


def _classes_here(verifier: Verifier, completions: Sequence[str], row: Mapping[str, Any]) -> list[int | None] | None:
    try:
        return answer_classes_here(verifier, completions, row)
    except (Exception, SystemExit):  # like a worker that fails: nothing is known about this problem
        return None


def _own_class(kind: type[Verifier]) -> str:
    """A verifier class of this package as `module:name`, else "": others may import what no launcher should hold."""
    return f"{kind.__module__}:{kind.__qualname__}" if kind.__module__.startswith("asymgrpo_app.") else ""


def _jobs(
    kind: str, items: Iterable[tuple[int, _Item]], tokens: Mapping[int, int], unsent: list[tuple[int, _Reply]]
) -> Iterator[Job]:
    """Pickle items one by one; items that cannot be pickled go to `unsent` with the reason."""
    for position, (verifier, completion, row) in items:
        try:
            payload = pickle.dumps((completion, dict(row)), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            unsent.append((position, {"error": f"the row cannot be sent to a worker process ({described(error)})"}))
        else:
            yield Job(position, kind, tokens[id(verifier)], payload)


def _verdict(reply: _Reply) -> Verdict:
    if "timeout" in reply:
        return Verdict(correct=False, status=Status.TIMEOUT, detail=reply["timeout"])
    if "error" in reply:
        return Verdict(correct=False, status=Status.ERROR, detail=reply["error"])
    return Verdict(correct=reply["correct"], status=Status(reply["status"]), detail=reply["detail"])


def _reason(reply: _Reply) -> str | None:
    if "timeout" in reply:
        return f"the verifier {reply['timeout']} on it"
    if "error" in reply:
        return f"the verifier failed on it ({reply['error']})"
    reason: str | None = reply["reason"]
    return reason
