"""Engine that samples from vLLM servers."""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from time import monotonic
from typing import Any, TypeVar

import aiohttp
import torch
from torch import Tensor

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server.auth import read_token
from asymgrpo_app.rollout.server.client import OtherWeightsError, SamplerServer, ServerDownError
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.transfer import FolderTransfer, NcclTransfer, WeightTransfer
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.runtime.console import say

T = TypeVar("T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True)
class Ranks:
    """This process's rank in a run, and the exchange with the other ranks.

    Attributes:
        rank: Rank of this process, from 0.
        gather: Returns the values of all ranks, on every rank.
    """

    rank: int = 0
    gather: Callable[[Any], list[Any]] = field(default=lambda value: [value])


class ServerEngine:
    """Engine that samples from servers that `asymgrpo serve` started. See `RolloutEngine`.

    Every completion names the weights it was sampled from; one from any other than those pushed last is thrown away. A
    server that fails is asked again with growing pauses, and one that was started anew gets the weights once more; its
    completions are the same, as each is a function of weights, prompt and seed.

    Args:
        config: Config of the servers.
        dtype: Compute type that the servers must have.
        max_model_len: Longest prompt plus completion in tokens.
        label: Name of the run, for files in the shared folder.
        ranks: The ranks of the run; each requests its own completions, the first one sends the weights.

    Raises:
        UserError: There is no token, or the weights folder cannot be written.
        RunError: No server answers in time, or one was started with settings that would give other numbers.
    """

    keeps_weights = True

    def __init__(
        self,
        config: ServerConfig,
        dtype: str,
        max_model_len: int,
        label: str,
        ranks: Ranks = Ranks(),
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._version = ""
        self._number = 0
        self._digest: tuple[int, WeightDigest] | None = None  # of the newest weights, if it was asked for
        self._reported: set[str] = set()  # servers whose failure was said and that have not answered since
        token = read_token(config.token_file, "rollout.server.token_file")
        self._run = ranks.gather(uuid.uuid4().hex[:12])[0]
        self._transfer: WeightTransfer = (
            NcclTransfer(config.nccl_address or "", token)
            if config.transfer == "nccl"
            else FolderTransfer(config.weights_folder or "", label, getattr(torch, dtype), writes=ranks.rank == 0)
        )
        self._runner: asyncio.Runner | None = asyncio.Runner()
        self._session: aiohttp.ClientSession = self._do(_session())
        self._servers = [SamplerServer(url, token, self._session, config.request_timeout_s) for url in config.urls]
        try:
            self._do(self._check_servers(dtype, max_model_len))
        except BaseException:
            self.close()
            raise

    # ---- RolloutEngine ----

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names) on every server that answers; the others get them when they do."""
        self._number += 1
        self._version, self._digest = f"{self._run}:{self._number}", None
        failure: Exception | None = None
        try:
            self._transfer.publish(weights, self._number)
            if self._ranks.rank == 0:
                self._do(self._ready())
        except (RunError, UserError) as error:
            failure = error
        # No rank samples before the weights have arrived, and none waits for one that has failed.
        reasons = self._ranks.gather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if reason := next((reason for reason in reasons if reason), None):
            raise RunError(reason)

    def digest(self, version: int) -> WeightDigest | None:
        """See `RolloutEngine`.

        Raises:
            RunError: Two servers hold different weights.
        """
        found = self._do(self._digests(version))
        known = {digest for digest in found.values() if digest is not None}
        if len(known) > 1:
            shown = ", ".join(f"{url} {digest}" for url, digest in found.items())
            raise RunError(f"the sampler servers hold different weights, by their digests: {shown}.")
        if not known or None in found.values():
            return None
        self._digest = (version, known.pop())
        return self._digest[1]

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests."""
        completions: list[Completion] = self._do(self._sample(requests, settings))
        return completions

    def close(self) -> None:
        """Drop the connections and the file of weights; the servers go on. Safe to call twice."""
        if self._runner is None:
            return
        self._transfer.close()
        self._runner.run(self._session.close())
        self._runner.close()
        self._runner = None

    # ---- servers ----

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; re-raise an exception of a signal's handler, which asyncio would only log."""
        assert self._runner is not None
        loop = self._runner.get_loop()
        raised: list[BaseException] = []

        def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            exception = context.get("exception")
            if exception is None or isinstance(exception, Exception):
                loop.default_exception_handler(context)
            else:
                raised.append(exception)
                for task in asyncio.all_tasks(loop):
                    task.cancel()

        loop.set_exception_handler(note)
        try:
            return self._runner.run(work)
        except asyncio.CancelledError:
            if raised:
                raise raised[0] from None
            raise

    async def _check_servers(self, dtype: str, max_model_len: int) -> None:
        """Wait for a server, and refuse those whose settings would give other numbers."""

        async def check(server: SamplerServer) -> None:
            info = await server.info()
            if info.dtype != dtype:
                raise RunError(f"the sampler server {server.url} computes in {info.dtype}, this run asks for {dtype}.")
            if info.max_model_len < max_model_len:
                raise RunError(
                    f"the sampler server {server.url} takes at most {info.max_model_len} tokens, this run's prompts "
                    f"and completions have up to {max_model_len}: start it with this run's config."
                )

        await self._some(check)

    async def _ready(self) -> list[SamplerServer]:
        """Servers that hold the newest weights, at least one; weights are sent to those that hold others."""
        return await self._some(self._prepare)

    async def _prepare(self, server: SamplerServer) -> None:
        if await server.version() == self._version:
            return
        await server.abort_all()  # a request that was given up here may still run there
        await self._transfer.send(server)
        await server.set_version(self._version)
        if self._digest is None:
            return
        number, expected = self._digest
        if (found := await server.digest(number)) != expected:
            raise RunError(
                f"the sampler server {server.url} was sent the weights again, but their digest is {expected} and the "
                f"server's {found}."
            )

    async def _some(self, task: Callable[[SamplerServer], Any]) -> list[SamplerServer]:
        """Run a task on every server that answers, and wait until at least one has succeeded.

        Raises:
            RunError: None has within `max_outage_s`.
        """
        started, pause = monotonic(), _FIRST_PAUSE_S
        while True:
            outcomes = await asyncio.gather(*map(task, self._servers), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, ServerDownError):
                    raise outcome
            down = {s.url: str(o) for s, o in zip(self._servers, outcomes, strict=True) if o is not None}
            self._report(down)
            if len(down) < len(self._servers):
                return [server for server in self._servers if server.url not in down]
            if monotonic() - started > self._config.max_outage_s:
                reasons = "; ".join(f"{url}: {reason}" for url, reason in down.items())
                raise RunError(
                    f"no sampler server answered for {self._config.max_outage_s:g} s (rollout.server.max_outage_s): "
                    f"{reasons}."
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _report(self, down: dict[str, str]) -> None:
        """Tell the user once that a server failed, and once that it is back."""
        for url in sorted(down.keys() - self._reported):
            say(f"The sampler server {url} does not answer ({down[url]}): it is asked again.")
        for url in sorted(self._reported - down.keys()):
            say(f"The sampler server {url} answers again, with the weights of this run.")
        self._reported = set(down)

    async def _digests(self, version: int) -> dict[str, WeightDigest | None]:
        ready = await self._ready()
        return dict(zip((s.url for s in ready), await asyncio.gather(*(s.digest(version) for s in ready)), strict=True))

    # ---- completions ----

    async def _sample(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        work = _Work(requests, settings)
        while waiting := work.waiting():
            ready = await self._ready()
            share = -(-len(waiting) // len(ready))
            limit = min(self._config.max_in_flight, share)
            queue = deque(group for _, group in _by_prompt(requests, waiting))
            await asyncio.gather(*(self._feed(server, queue, work, limit) for server in ready))
            self._stop_if_hopeless(work)
        return [work.done[index] for index in range(len(requests))]

    async def _feed(self, server: SamplerServer, queue: deque[list[int]], work: "_Work", limit: int) -> None:
        """Sample the queue on one server, `limit` completions at a time, until it is empty or the server fails.

        A prompt's completions stay on one server, whose cache then holds the prompt.
        """
        permits, tasks = asyncio.Semaphore(limit), set[asyncio.Task[None]]()
        failed = asyncio.Event()

        async def one(place: int) -> None:
            try:
                work.done[place] = await server.generate(work.requests[place], work.settings, self._version)
            except (ServerDownError, OtherWeightsError) as error:
                work.failures.setdefault(place, []).append(f"{server.url}: {error}")
                failed.set()
            finally:
                permits.release()

        try:
            while queue and not failed.is_set():
                for index in queue.popleft():
                    await permits.acquire()
                    tasks.add(asyncio.create_task(one(index)))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _stop_if_hopeless(self, work: "_Work") -> None:
        for index in work.waiting():
            failures = work.failures.get(index, [])
            if len(failures) >= self._config.max_attempts:
                raise RunError(
                    f"a completion failed {len(failures)} times (rollout.server.max_attempts), the last time at "
                    f"{failures[-1]}."
                )


class _Work:
    """Requests, with completions and failures so far by the index of the request."""

    def __init__(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> None:
        self.requests = requests
        self.settings = settings
        self.done: dict[int, Completion] = {}
        self.failures: dict[int, list[str]] = {}

    def waiting(self) -> list[int]:
        """Indices of the requests without a completion."""
        return [index for index in range(len(self.requests)) if index not in self.done]


def _by_prompt(requests: Sequence[SampleRequest], places: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Indices of requests, grouped by their prompt; requests with one prompt are neighbours."""
    return [(prompt, list(group)) for prompt, group in groupby(places, key=lambda p: requests[p].prompt_token_ids)]


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)
