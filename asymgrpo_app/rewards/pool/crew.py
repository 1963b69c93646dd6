"""Hands items to workers, takes their replies, ends workers that are late and replaces workers that died."""

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rewards.pool.processes import Job, Launcher, LauncherDiedError, Worker

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
    """

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._launcher: Launcher | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._workers: list[Worker] = []
        self._prepared: set[str] = set()
        self._again: deque[Job] = deque()
        self._failed_starts = 0

    def replies(self, jobs: Iterator[Job], verifiers: list[bytes], size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the position and reply of each job, in the order of the replies.

        Args:
            jobs: The items; taken one by one as workers become free.
            verifiers: Pickled, by token.
            size: Number of workers to use.

        Raises:
            UserError: A verifier cannot be loaded.
            RunError: Workers do not start.
        """
        self._failed_starts = 0
        try:
            while self._hand_out(jobs, verifiers, size):
                for worker in self._heard_or_overdue():
                    if worker in self._workers:  # else the launcher died meanwhile
                        yield from self._outcome(worker, verifiers)
        except BaseException:  # the state of the items under way is not known any more
            self.close()
            raise

    def prepare(self, paths: Iterable[str]) -> None:
        """Have the next launcher prepare these verifier classes, given as `module:name`, before it forks workers."""
        self._prepared.update(paths)

    def close(self) -> None:
        """End all processes."""
        self._again.clear()
        self._let_go()
        finalizer, self._finalizer, self._launcher = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

    # ---- items to workers ----

    def _hand_out(self, jobs: Iterator[Job], verifiers: list[bytes], size: int) -> bool:
        """Give every free worker an item; returns whether any item is under way."""
        while (job := self._again.popleft() if self._again else next(jobs, None)) is not None:
            worker = self._free_worker(size)
            if worker is None:
                self._again.appendleft(job)
                break
            worker.job = job
            self._advance(worker, verifiers)
        return any(worker.job is not None for worker in self._workers)

    def _free_worker(self, size: int) -> Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        while len(self._workers) < size:
            try:
                worker = self._running_launcher().fork()
            except LauncherDiedError:
                self._restart()
                continue
            self._workers.append(worker)
            return worker
        return None

    def _advance(self, worker: Worker, verifiers: list[bytes]) -> None:
        """Send an idle worker the next request for its item: the verifier if it is new, else the item."""
        job = worker.job
        if worker.stage != "idle" or job is None:
            return
        try:
            if job.token in worker.known:
                worker.judge(job, self._timeout_s)
            else:
                worker.load(job.token, verifiers[job.token])
        except OSError:  # it died while idle
            self._start_failed()
            self._again.append(job)
            self._end(worker)

    # ---- replies from workers ----

    def _heard_or_overdue(self) -> list[Worker]:
        """Wait for workers that have replied, died or taken too long; returns them."""
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        allowed = min((worker.deadline for worker in busy.values()), default=0.0) - time.monotonic()
        heard = set(wait(list(busy), timeout=max(0.0, allowed)))
        now = time.monotonic()
        for connection, worker in busy.items():
            worker.overdue = connection not in heard and worker.deadline <= now
        return [worker for connection, worker in busy.items() if connection in heard or worker.overdue]

    def _outcome(self, worker: Worker, verifiers: list[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Process a worker that replied, died or took too long; yields its item's reply if there is one."""
        job = worker.job
        assert job is not None
        judging = worker.stage == "judge"
        try:
            reply = None if worker.overdue else worker.answer()
        except (OSError, EOFError):
            reply = None
        if reply is None and not judging:
            self._start_failed()
            self._again.append(job)
            self._end(worker)
        elif reply is None and worker.overdue:
            yield job.position, {"timeout": f"ran longer than {self._timeout_s:g} s"}
            worker.job = None
            self._end(worker)
        elif reply is None:
            yield from self._died(worker, job)
        elif judging:
            self._failed_starts = 0
            worker.job, worker.stage = None, "idle"
            if worker.large:
                self._end(worker)
            yield job.position, reply
        elif "error" in reply:
            raise UserError(f"a verifier cannot be loaded in a worker process: {reply['error']}.")
        else:
            worker.stage = "idle"
            self._advance(worker, verifiers)

    def _died(self, worker: Worker, job: Job) -> Iterator[tuple[int, dict[str, Any]]]:
        """Try the item of a dead worker again, unless too many workers died over it."""
        worker.job = None
        if self._end(worker):  # otherwise it died because the launcher did, and not over its item
            job.deaths += 1
        if job.deaths < MAX_DEATHS:
            self._again.append(job)
        else:
            yield job.position, {"error": f"its worker died {job.deaths} times"}

    # ---- processes ----

    def _start_failed(self) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RunError(f"the worker processes of the verifiers ended {self._failed_starts} times as they started.")

    def _running_launcher(self) -> Launcher:
        if self._launcher is None:
            self._launcher = Launcher(self._memory_bytes, self._prepared)
            self._finalizer = weakref.finalize(self, self._launcher.close)  # also for a pool that nobody closes
        return self._launcher

    def _end(self, worker: Worker) -> bool:
        """End a worker; returns whether the launcher still lives."""
        self._workers.remove(worker)
        try:
            self._running_launcher().end(worker)
        except LauncherDiedError:
            self._restart()
            return False
        return True

    def _restart(self) -> None:
        """Start afresh after the launcher died, and with it every worker; no item is charged with that."""
        self._start_failed()
        again = [worker.job for worker in self._workers if worker.job is not None]
        self._again.extend(again)
        self._let_go()
        finalizer, self._finalizer, self._launcher = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

    def _let_go(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
