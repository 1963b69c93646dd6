"""A sampler server without a model, for what goes wrong between a run and its servers.

It knows the routes of a server that `asymgrpo serve` starts, and does what its script says. The completions are a
function of the request's seed alone, as those of a real one are.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from asymgrpo_app.rollout.server.auth import proof_of

TOKEN = "a-token-for-the-tests"
DIGEST = {"linear": "11", "other": "22"}

Fault = Callable[["FakeServer", dict[str, Any]], Awaitable[web.Response | None]]


def completion_of(seed: int) -> list[int]:
    """The tokens that every fake server samples from a seed."""
    return [2 + seed % 7, 2 + seed % 5, 1]


class FakeServer:
    """Serves on a port of the loopback, in a thread of its own; `fault` may answer in place of a completion.

    Attributes:
        counts: How often each route was asked.
        prompts: The prompts of the completions that it gave.
        held: The most requests for completions that it worked on at once.
    """

    def __init__(self, weights: Path, port: int = 0) -> None:
        self.weights = weights
        self.port = port
        self.fault: Fault | None = None
        self.info = {"max_model_len": 32, "dtype": "float32", "vocabulary": 50}
        self.token = TOKEN
        self.proves = True
        self.digest = dict(DIGEST)
        self.version = "default"
        self.loaded: list[str] = []
        self.counts: Counter[str] = Counter()
        self.prompts: list[list[int]] = []
        self.held = self._now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, as a server that knows nothing of any weights."""
        self.version = "default"
        self._runner = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def kill(self) -> None:
        """Stop listening and cut every connection."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._count])
        app.add_routes(
            [
                web.get("/asymgrpo/info", self._info),
                web.get("/asymgrpo/proof", self._proof),
                web.get("/weight_info", self._weight_info),
                web.post("/update_weight_version", self._set_version),
                web.post("/reset_prefix_cache", self._reset),
                web.post("/abort_requests", self._abort),
                web.post("/collective_rpc", self._rpc),
                web.post("/inference/v1/generate", self._generate),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return runner

    async def _cut(self) -> None:
        for connection in list(self._runner.server.connections if self._runner.server else []):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.counts[request.path] += 1
        if request.path != "/asymgrpo/proof" and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "a token is required"}, status=401)
        return await handler(request)

    async def _proof(self, request: web.Request) -> web.Response:
        nonce, _, proof = request.headers["Authorization"].removeprefix("Proof ").partition(":")
        if not self.proves:
            return web.json_response({"error": "there is no such route"}, status=404)
        if proof != proof_of(self.token, "client", nonce):
            return web.json_response({"error": "a token is required"}, status=401)
        return web.json_response({"proof": proof_of(self.token, "server", nonce)})

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _weight_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _set_version(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def _reset(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True})

    async def _abort(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "aborted"})

    async def _rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["method"] == "asymgrpo_digest":
            return web.json_response({"results": [self.digest]})
        name = body["kwargs"]["name"]
        if not (self.weights / name).is_file():
            return web.json_response({"results": [{"error": f"there is no file {name}"}]})
        self.loaded.append(name)
        return web.json_response({"results": [{}]})

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._now += 1
        self.held = max(self.held, self._now)
        try:
            if self.fault is not None and (answer := await self.fault(self, body)) is not None:
                return answer
            await asyncio.sleep(0.001)
            self.prompts.append(body["token_ids"])
            return self.answer(body)
        finally:
            self._now -= 1

    def answer(self, body: dict[str, Any], *, version: str | None = None, reason: str = "stop") -> web.Response:
        """A whole completion."""
        tokens = completion_of(body["sampling_params"]["seed"])
        span = {"version": version or self.version, "start": 0, "end": len(tokens)}
        content = [{"token_id": token, "logprob": -0.5 - place} for place, token in enumerate(tokens)]
        choice = {"finish_reason": reason, "token_ids": tokens, "logprobs": {"content": content}}
        return web.json_response({"choices": [choice | {"weight_versions": [span]}]})
