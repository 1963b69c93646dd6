"""Client of one sampler server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server.auth import INFO_PATH
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import sampling_arguments

_CONTROL_TIMEOUT_S = 300.0
"""Timeout of all calls but completions; loading weights takes time, the others answer at once."""
_CONNECT_TIMEOUT_S = 5.0


class ServerDownError(Exception):
    """The server did not answer, or answered with a server error; another try may succeed."""


class OtherWeightsError(Exception):
    """The server sampled from other weights than requested: it was started anew, or serves two runs."""


@dataclass(frozen=True)
class ServerInfo:
    """Settings that a server was started with.

    Attributes:
        max_model_len: Longest prompt plus completion in tokens.
        dtype: Compute type.
        settings: The other settings that decide the numbers, by vLLM's names.
    """

    max_model_len: int
    dtype: str
    settings: dict[str, Any]


class SamplerServer:
    """Client with a server's routes as methods. Every method raises `ServerDownError` if another try may succeed.

    Args:
        url: Its address.
        token: Its token.
        session: HTTP session with its connections.
        request_timeout_s: Longest wait for a completion.
    """

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession, request_timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}"}
        self._request_timeout_s = request_timeout_s

    async def info(self) -> ServerInfo:
        """Settings that the server was started with.

        Raises:
            RunError: It was not started by `asymgrpo serve`.
        """
        answer = await self._call("GET", INFO_PATH)
        try:
            return ServerInfo(int(answer["max_model_len"]), str(answer["dtype"]), dict(answer["settings"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the sampler server {self.url} was not started by `asymgrpo serve`.") from error

    async def version(self) -> str:
        """Label of the weights that the server holds."""
        return str((await self._call("GET", "/weight_info"))["weight_version"])

    async def load_file(self, name: str) -> None:
        """Replace the server's weights by those in a file of the shared folder.

        Raises:
            RunError: It cannot read the file.
        """
        for result in await self._workers("asymgrpo_load", name=name):
            if "error" in result:
                raise RunError(f"the sampler server {self.url} could not load weights: {result['error']}.")

    async def set_version(self, version: str) -> None:
        """Set the label of the weights that the server now holds, and drop its cache from the old ones."""
        if not (await self._call("POST", "/reset_prefix_cache"))["success"]:
            raise ServerDownError("its prefix cache could not be reset: it still has work")
        await self._call("POST", "/update_weight_version", {"new_version": version})

    async def abort_all(self) -> None:
        """Abort all requests that the server works on."""
        await self._call("POST", "/abort_requests", {})

    async def digest(self, version: int) -> WeightDigest | None:
        """Digest of the server's weights; None if they are spread over several workers."""
        results = await self._workers("asymgrpo_digest", version=version)
        if len(results) != 1:
            return None
        return WeightDigest(int(results[0]["linear"]), int(results[0]["other"]))

    async def workers(self) -> int:
        """Number of the server's workers."""
        return int((await self._call("GET", "/get_world_size"))["world_size"])

    async def generate(self, request: SampleRequest, settings: SamplingSettings, version: str) -> Completion:
        """One completion, sampled from the weights with this label.

        Raises:
            OtherWeightsError: It was sampled from other weights.
        """
        body = {"token_ids": request.prompt_token_ids, "sampling_params": sampling_arguments(request.seed, settings)}
        answer = await self._call("POST", "/inference/v1/generate", body, self._request_timeout_s)
        return _completion(answer, version)

    # ---- transport ----

    async def _workers(self, method: str, **kwargs: Any) -> list[dict[str, str]]:
        answer = await self._call("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})
        return [dict(result) for result in answer["results"]]

    async def _call(self, verb: str, path: str, body: Any = None, timeout_s: float = _CONTROL_TIMEOUT_S) -> Any:
        async with _as_server_down(timeout_s):
            timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
            async with self._session.request(
                verb, self.url + path, json=body, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status == 200:
                    return await response.json()
                text = " ".join((await response.text())[:300].split())
        if response.status >= 500 or response.status == 429:
            raise ServerDownError(f"it answered {response.status}: {text}")
        if response.status == 401:
            raise RunError(f"the sampler server {self.url} refused the token (rollout.server.token_file).")
        raise RunError(f"the sampler server {self.url} answered {response.status} to {path}: {text}")


@asynccontextmanager
async def _as_server_down(timeout_s: float) -> AsyncIterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ServerDownError(f"no answer within {timeout_s:g} s") from error
    except (aiohttp.ClientError, ConnectionError, ValueError) as error:
        raise ServerDownError(f"{type(error).__name__}: {error}".rstrip(": ")) from error


def _completion(answer: Any, version: str) -> Completion:
    try:
        (choice,) = answer["choices"]
        reason, token_ids = choice["finish_reason"], [int(token) for token in choice["token_ids"]]
        if reason not in ("stop", "length"):
            raise ServerDownError(f"it ended a completion with {reason!r}")
        spans = choice["weight_versions"]
        if [span["version"] for span in spans] != [version]:
            held = " and ".join(str(span["version"]) for span in spans)
            raise OtherWeightsError(f"a completion was sampled from the weights {held} in place of {version}")
        content = choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != token_ids or not token_ids:
            raise ServerDownError("its log-probabilities do not belong to its tokens")
        return Completion(token_ids, [float(entry["logprob"]) for entry in content], truncated=reason == "length")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"a sampler server's answer could not be read ({type(error).__name__}: {error}).") from error
