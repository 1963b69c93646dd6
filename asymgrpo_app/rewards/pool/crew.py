"""Hands items to workers, takes their replies, ends workers that are late and replaces workers that died."""

import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rewards.base import Status
from asymgrpo_app.rewards.pool.processes import Job, Launcher, LauncherDiedError, Worker
from asymgrpo_app.rewards.pool.worker import Reply, failure

MAX_DEATHS = 3
"""Number of workers that die over an item before it fails."""

_MAX_FAILED_STARTS = 3  # without any item judged in between


class Crew:
    """The workers and the launcher that forks them.

    A worker has at most one item, and a connection of its own. So whenever a worker dies, its item is known, and no
    other worker waits for something that it held.

    Args:
        timeout_s: Seconds an item may take.
        memory_bytes: Address space a worker may use.

    Attributes:
        prepared: Verifier classes as `module:name`; the next launcher prepares them before it forks workers.
    """

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self.prepared: set[str] = set()
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._launcher: Launcher | None = None
        self._workers: list[Worker] = []
        self._again: deque[Job] = deque()
        self._failed_starts = 0

    def replies(self, jobs: Iterator[Job], size: int) -> Iterator[tuple[int, Reply]]:
        """Yield the position and reply of each job, in the order of the replies.

        Args:
            jobs: The items; taken one by one as workers become free.
            size: Number of workers to use.

        Raises:
            UserError: A verifier cannot be loaded.
            RunError: Workers do not start.
        """
        self._failed_starts = 0
        try:
            while self._hand_out(jobs, size):
                for worker, late in self._heard_or_late():
                    if worker in self._workers:  # else the launcher died meanwhile
                        yield from self._outcome(worker, late)
        except BaseException:  # the state of the items under way is not known any more
            self.close()
            raise

    def close(self) -> None:
        """End all processes."""
        self._again.clear()
        self._end_all()

    # ---- items to workers ----

    def _hand_out(self, jobs: Iterator[Job], size: int) -> bool:
        """Give every free worker an item; returns whether any item is under way."""
        while (job := self._again.popleft() if self._again else next(jobs, None)) is not None:
            worker = self._free_worker(size)
            if worker is None:
                self._again.appendleft(job)
                break
            worker.job = job
            worker.advance(job, self._timeout_s)
        return any(worker.job is not None for worker in self._workers)

    def _free_worker(self, size: int) -> Worker | None:
        free = next((worker for worker in self._workers if worker.job is None), None)
        while free is None and len(self._workers) < size:
            try:
                if self._launcher is None:
                    self._launcher = Launcher(self._memory_bytes, self.prepared)
                free = self._launcher.fork()
                self._workers.append(free)
            except LauncherDiedError:
                self._restart()
        return free

    # ---- replies from workers ----

    def _heard_or_late(self) -> list[tuple[Worker, bool]]:
        """Wait for workers that have replied or died (False), or taken too long (True)."""
        busy = [worker for worker in self._workers if worker.job is not None]
        allowed = min(worker.deadline for worker in busy) - time.monotonic()
        heard = set(wait([worker.connection for worker in busy], timeout=max(0.0, allowed)))
        due = [worker for worker in busy if worker.connection in heard or worker.deadline <= time.monotonic()]
        return [(worker, worker.connection not in heard) for worker in due]

    def _outcome(self, worker: Worker, late: bool) -> Iterator[tuple[int, Reply]]:
        """Process a worker that replied, died or took too long; yields its item's reply if there is one."""
        job = worker.job
        assert job is not None
        reply = None if late else worker.answer()
        if reply is None and not worker.judging:
            self._start_failed()
            self._again.append(job)
            self._end(worker)
        elif late:
            self._end(worker)
            yield job.position, failure(f"ran longer than {self._timeout_s:g} s", Status.TIMEOUT)
        elif reply is None:
            if self._end(worker):  # otherwise it died because the launcher did, and not over its item
                job.deaths += 1
            if job.deaths < MAX_DEATHS:
                self._again.append(job)
            else:
                yield job.position, failure(f"its worker died {job.deaths} times")
        elif worker.judging:
            self._failed_starts = 0
            worker.job = None
            if reply.pop("leave", False):
                self._end(worker)
            yield job.position, reply
        elif "status" in reply:
            raise UserError(f"a verifier cannot be loaded in a worker process: {reply['detail']}.")
        else:
            worker.advance(job, self._timeout_s)

    # ---- processes ----

    def _start_failed(self) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RunError(f"the worker processes of the verifiers ended {self._failed_starts} times as they started.")

    def _end(self, worker: Worker) -> bool:
        """End a worker; returns whether the launcher still lives."""
        self._workers.remove(worker)
        assert self._launcher is not None
        try:
            self._launcher.end(worker)
        except LauncherDiedError:
            self._restart()
            return False
        return True

    def _restart(self) -> None:
        """Start afresh after the launcher died, and with it every worker; no item is charged with that."""
        self._start_failed()
        self._again.extend(worker.job for worker in self._workers if worker.job is not None)
        self._end_all()

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None
