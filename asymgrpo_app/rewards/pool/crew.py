"""Hands items to workers, takes their replies, ends workers that are late and replaces workers that died."""

import select
import time
from collections import deque
from collections.abc import Iterator

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rewards.base import Status
from asymgrpo_app.rewards.pool.messages import Reply, failure
from asymgrpo_app.rewards.pool.processes import Job, Launcher, LauncherDiedError, Worker

MAX_DEATHS = 3
"""Number of workers that die over an item before it fails."""

ALONE_AFTER = 2
"""Number of times that the launcher dies over an item among others before the item is judged alone."""

_MAX_FAILED_STARTS = 3  # without any item judged in between


class Crew:
    """The workers and the launcher that forks them.

    A worker has at most one item, and a connection of its own. So whenever a worker dies, its item is known, and no
    other worker waits for something that it held.

    Args:
        timeout_s: CPU seconds an item may take (see `TimeLimit`).
        memory_bytes: Address space a worker may use.
        sandboxed: Whether workers run in the sandbox; None: where this machine offers it.

    Attributes:
        prepared: Verifier classes as `module:name`; the next launcher prepares them before it forks workers.
    """

    def __init__(self, timeout_s: float, memory_bytes: int, sandboxed: bool | None) -> None:
        self.prepared: set[str] = set()
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._sandboxed = sandboxed
        self._launcher: Launcher | None = None
        self._workers: list[Worker] = []
        self._again: deque[Job] = deque()
        self._culprits: list[Job] = []
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
                yield from self._convicted()
        except BaseException:  # the state of the items under way is not known any more
            self.close()
            raise

    def close(self) -> None:
        """End all processes."""
        self._again.clear()
        self._culprits.clear()
        self._end_all()

    # ---- items to workers ----

    def _hand_out(self, jobs: Iterator[Job], size: int) -> bool:
        """Give every free worker an item; returns whether any item is under way."""
        while (job := self._again.popleft() if self._again else next(jobs, None)) is not None:
            worker = self._free_worker(size)
            if worker is None or not self._may_start(job):
                self._again.appendleft(job)
                break
            worker.job = job
            worker.advance(job, self._timeout_s)
        return any(worker.job is not None for worker in self._workers)

    def _may_start(self, job: Job) -> bool:
        """Whether an item may start beside those under way. One that may have killed the launcher is judged alone."""
        return not any(
            worker.job is not None and max(job.launcher_deaths, worker.job.launcher_deaths) >= ALONE_AFTER
            for worker in self._workers
        )

    def _free_worker(self, size: int) -> Worker | None:
        free = next((worker for worker in self._workers if worker.job is None), None)
        while free is not None and not free.silent():
            self._end(free)  # it died, or its last item sent a message too many
            free = next((worker for worker in self._workers if worker.job is None), None)
        while free is None and len(self._workers) < size:
            try:
                if self._launcher is None:
                    self._launcher = Launcher(self._memory_bytes, self._sandboxed, self.prepared)
                free = self._launcher.fork()
                self._workers.append(free)
            except LauncherDiedError:
                self._restart()
        return free

    # ---- replies from workers ----

    def _heard_or_late(self) -> list[tuple[Worker, str]]:
        """Wait for workers that have replied or died (""), or taken too long (what took too long)."""
        busy = [worker for worker in self._workers if worker.job is not None]
        allowed = min(worker.deadline for worker in busy) - time.monotonic()
        incoming = select.poll()  # `multiprocessing.connection.wait` takes several times as long
        for worker in busy:
            incoming.register(worker.connection, select.POLLIN)
        heard = {descriptor for descriptor, _ in incoming.poll(max(0.0, 1_000 * allowed))}
        told = [(worker, worker.connection.fileno() in heard and worker.listen()) for worker in busy]
        now, found = time.monotonic(), []
        for worker, replied in told:
            late = worker.overrun(now) if not replied and worker.deadline <= now else ""
            if replied or late:
                found.append((worker, late))
        return found

    def _outcome(self, worker: Worker, late: str) -> Iterator[tuple[int, Reply]]:
        """Process a worker that replied, died or took too long; yields its item's reply if there is one."""
        job = worker.job
        assert job is not None
        answer = None if late else worker.answer()
        if answer is None and not worker.judging:
            self._start_failed()
            self._again.append(job)
            self._end(worker)
        elif late:
            self._end(worker)
            yield job.position, failure(late, Status.TIMEOUT)
        elif answer is None:
            if self._end(worker, job):  # otherwise it died because the launcher did
                job.deaths += 1
                if job.deaths < MAX_DEATHS:
                    self._again.append(job)
                else:
                    deed = "sent something other than its reply" if worker.heard else "died"
                    yield job.position, failure(f"its worker {deed} {job.deaths} times")
        elif worker.judging:
            reply, leave = answer
            self._failed_starts = 0
            if leave:
                self._end(worker)
            worker.job = None
            yield job.position, reply
        elif "status" in answer[0]:
            raise UserError(f"a verifier cannot be loaded in a worker process: {answer[0]['detail']}.")
        else:
            worker.advance(job, self._timeout_s)

    # ---- processes ----

    def _start_failed(self) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RunError(f"the worker processes of the verifiers ended {self._failed_starts} times as they started.")

    def _end(self, worker: Worker, judged: Job | None = None) -> bool:
        """End a worker; returns whether the launcher still lives. If not, what it judged is judged again."""
        self._workers.remove(worker)
        assert self._launcher is not None
        try:
            self._launcher.end(worker)
        except LauncherDiedError:
            self._restart(judged)
            return False
        return True

    def _restart(self, judged: Job | None = None) -> None:
        """Start afresh after the launcher died, and with it every worker.

        An item that was judged may have killed it. Those that were there too often are judged one at a time, so that
        the launcher dies over the culprit alone.

        Args:
            judged: What a worker that is not in `_workers` any more judged.
        """
        suspects = [worker.job for worker in self._workers if worker.job is not None and worker.judging]
        suspects += [] if judged is None else [judged]
        loading = [worker.job for worker in self._workers if worker.job is not None and not worker.judging]
        if not suspects:
            self._start_failed()
        for job in suspects:
            job.launcher_deaths += 1
            if job.launcher_deaths > ALONE_AFTER:  # it was alone, at last
                self._culprits.append(job)
            else:
                self._again.append(job)
        self._again.extend(loading)
        self._end_all()

    def _convicted(self) -> Iterator[tuple[int, Reply]]:
        while self._culprits:
            job = self._culprits.pop()
            detail = f"the process that starts workers died {job.launcher_deaths} times over it, at last over it alone"
            yield job.position, failure(detail)

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None
