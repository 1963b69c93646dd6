"""Client of one sampler server."""

from typing import Any

import aiohttp

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server.auth import INFO_PATH
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import sampling_arguments

_CONTROL_TIMEOUT_S = 300.0  # of all calls but completions; loading weights takes time, the others answer at once
_CONNECT_TIMEOUT_S = 5.0


class ServerDownError(Exception):
    """The server failed to answer, or sampled from other weights than requested; another try may succeed."""


class SamplerServer:
    """Client with a server's routes as methods. Every method raises `ServerDownError` if another try may succeed.

    Args:
        url: Its address.
        session: HTTP session with its connections and its token.
        request_timeout_s: Longest wait for a completion.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, request_timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._request_timeout_s = request_timeout_s

    async def check(self, dtype: str, max_model_len: int) -> None:
        """Refuse a server whose settings would give other numbers.

        Raises:
            RunError: It computes in another type, takes shorter completions, or was not started by `asymgrpo serve`.
        """
        info = await self._call("GET", INFO_PATH)
        if not (isinstance(info, dict) and {"dtype", "max_model_len"} <= info.keys()):
            raise RunError(f"the sampler server {self.url} was not started by `asymgrpo serve`.")
        if info["dtype"] != dtype or info["max_model_len"] < max_model_len:
            raise RunError(
                f"the sampler server {self.url} computes in {info['dtype']} with at most {info['max_model_len']} "
                f"tokens, this run in {dtype} with up to {max_model_len}: start the server with this run's config."
            )

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
        """One completion, sampled from the weights with this label."""
        body = {"token_ids": request.prompt_token_ids, "sampling_params": sampling_arguments(request.seed, settings)}
        return _completion(await self._call("POST", "/inference/v1/generate", body, self._request_timeout_s), version)

    # ---- transport ----

    async def _workers(self, method: str, **kwargs: Any) -> list[dict[str, str]]:
        answer = await self._call("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})
        return [dict(result) for result in answer["results"]]

    async def _call(self, verb: str, path: str, body: Any = None, timeout_s: float = _CONTROL_TIMEOUT_S) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        call = self._session.request(verb, self.url + path, json=body, timeout=timeout, allow_redirects=False)
        try:
            async with call as response:
                if response.status == 200:
                    return await response.json()
                text = " ".join((await response.text())[:300].split())
        except TimeoutError as error:
            raise ServerDownError(f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise ServerDownError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if response.status >= 500 or response.status == 429:
            raise ServerDownError(f"it answered {response.status}: {text}")
        if response.status == 401:
            raise RunError(f"the sampler server {self.url} refused the token (rollout.server.token_file).")
        raise RunError(f"the sampler server {self.url} answered {response.status} to {path}: {text}")


def _completion(answer: Any, version: str) -> Completion:
    try:
        (choice,) = answer["choices"]
        reason, token_ids = choice["finish_reason"], [int(token) for token in choice["token_ids"]]
        if reason not in ("stop", "length"):
            raise ServerDownError(f"it ended a completion with {reason!r}")
        held = [str(span["version"]) for span in choice["weight_versions"]]
        if held != [version]:
            shown = " and ".join(held)
            raise ServerDownError(f"a completion was sampled from the weights {shown} in place of {version}")
        content = choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != token_ids or not token_ids:
            raise ServerDownError("its log-probabilities do not belong to its tokens")
        return Completion(token_ids, [float(entry["logprob"]) for entry in content], truncated=reason == "length")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"a sampler server's answer could not be read ({type(error).__name__}: {error}).") from error
