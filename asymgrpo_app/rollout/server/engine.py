"""Engine that samples from vLLM servers."""

import asyncio
import uuid
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from time import monotonic
from typing import Any, TypeVar

import aiohttp
import torch
from torch import Tensor

from asymgrpo_app.errors import RunError
from asymgrpo_app.parallel.ranks import gather_objects, is_first_rank
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server.answers import ServerDownError
from asymgrpo_app.rollout.server.auth import ServerToken
from asymgrpo_app.rollout.server.client import SamplerServer, new_session
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.tls import fingerprint
from asymgrpo_app.rollout.server.transfer import FolderTransfer, NcclTransfer
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.runtime.console import say

T = TypeVar("T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class ServerEngine:
    """Engine that samples from servers that `asymgrpo serve` started. See `RolloutEngine`.

    Every completion names the weights it was sampled from; one from any other than those pushed last is thrown away. A
    server that fails is asked again with growing pauses, and one that was started anew gets the weights once more; its
    completions are the same, as each is a function of weights, prompt and seed.

    Each rank requests its own completions; the first one sends the weights.

    Args:
        config: Config of the servers.
        dtype: Compute type that the servers must have.
        max_model_len: Longest prompt plus completion in tokens.
        vocabulary: Number of token ids that the policy knows.
        label: Name of the run, for files in the shared folder.

    Raises:
        UserError: There is no token, or no certificate where one is configured.
    """

    keeps_weights = True

    def __init__(self, config: ServerConfig, dtype: str, max_model_len: int, vocabulary: int, label: str) -> None:
        self._config = config
        self._dtype = dtype
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._version = ""
        self._number = 0
        self._digest: tuple[int, WeightDigest] | None = None  # of the newest weights, if it was asked for
        self._reported: set[str] = set()  # servers whose failure was said and that have not answered since
        token = ServerToken(config.token_file, "rollout.server.token_file")
        certificate = None
        if config.certificate_file:
            certificate = aiohttp.Fingerprint(fingerprint(config.certificate_file, "rollout.server.certificate_file"))
        self._run = gather_objects(uuid.uuid4().hex[:12])[0]
        self._transfer: FolderTransfer | NcclTransfer = (
            NcclTransfer(config.nccl_address or "")
            if config.transfer == "nccl"
            else FolderTransfer(config.weights_folder or "", label, getattr(torch, dtype))
        )
        self._runner = asyncio.Runner()
        self._session = self._runner.run(_session())
        self._servers = [
            SamplerServer(url, token, self._session, config.request_timeout_s, certificate) for url in config.urls
        ]

    # ---- RolloutEngine ----

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names) on every server that answers; the others get them when they do.

        Raises:
            RunError: No server answers in time, or one was started with settings that would give other numbers.
        """
        self._number += 1
        self._version, self._digest = f"{self._run}:{self._number}", None
        failure = ""
        try:
            self._transfer.publish(weights, self._number)
            if is_first_rank():
                self._do(self._ready())
        except RunError as error:
            failure = str(error)
        # No rank samples before the weights have arrived, and none waits for one that has failed.
        if failures := [reason for reason in gather_objects(failure) if reason]:
            raise RunError(failures[0])

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
        if None in found.values():
            return None
        self._digest = version, known.pop()
        return self._digest[1]

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests."""
        return self._do(self._sample(requests, settings))

    def close(self) -> None:
        """Drop the connections and the file of weights; the servers go on. Safe to call twice."""
        self._transfer.close()
        if not self._session.closed:
            self._runner.run(self._session.close())
            self._runner.close()

    # ---- servers ----

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; re-raise an exception of a signal's handler, which asyncio would only log."""
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

    async def _prepare(self, server: SamplerServer) -> None:
        """Check a server that holds other weights than the newest, and send it those."""
        if await server.version() == self._version:
            return
        await server.check(self._dtype, self._max_model_len, self._vocabulary)
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

    async def _ready(self) -> list[SamplerServer]:
        """Servers that hold the newest weights; waits until there is at least one.

        Raises:
            RunError: There is none within `max_outage_s`.
        """
        started, pause = monotonic(), _FIRST_PAUSE_S
        while True:
            outcomes = await asyncio.gather(*map(self._prepare, self._servers), return_exceptions=True)
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

    def _fitting(self, settings: SamplingSettings, request: SampleRequest) -> SamplingSettings:
        """The settings with a completion's limit that leaves room for the prompt."""
        room = self._max_model_len - len(request.prompt_token_ids)
        return settings if settings.max_tokens <= room else replace(settings, max_tokens=room)

    async def _sample(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        done: dict[int, Completion] = {}
        failures: defaultdict[int, int] = defaultdict(int)

        async def work(server: SamplerServer, indices: Iterator[int], failed: asyncio.Event) -> None:
            """Request one completion after the other of a server."""
            for index in indices:
                try:
                    done[index] = await server.generate(
                        requests[index], self._fitting(settings, requests[index]), self._version, self._vocabulary
                    )
                except ServerDownError as error:
                    failed.set()
                    failures[index] += 1
                    if failures[index] >= self._config.max_attempts:
                        raise RunError(
                            f"a completion failed {failures[index]} times (rollout.server.max_attempts), the last time "
                            f"at {server.url}: {error}."
                        ) from error

        while waiting := [index for index in range(len(requests)) if index not in done]:
            ready = await self._ready()
            at_once = min(self._config.max_in_flight, -(-len(waiting) // len(ready)))
            queue = deque(list(group) for _, group in groupby(waiting, key=lambda i: requests[i].prompt_token_ids))
            try:
                async with asyncio.TaskGroup() as workers:
                    for server in ready:
                        failed = asyncio.Event()
                        indices = _taken(queue, failed)
                        for _ in range(at_once):
                            workers.create_task(work(server, indices, failed))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        return [done[index] for index in range(len(requests))]


def _taken(queue: deque[list[int]], failed: asyncio.Event) -> Iterator[int]:
    """Take indices of requests from a queue that servers share, prompt by prompt, until this one's server fails.

    A prompt's completions stay on one server, whose cache then holds the prompt.
    """
    while queue and not failed.is_set():
        yield from queue.popleft()


async def _session() -> aiohttp.ClientSession:
    return new_session()  # in the event loop that it belongs to
