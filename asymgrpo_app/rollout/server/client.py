"""Client of one sampler server."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server.answers import (
    Answer,
    Generated,
    Proof,
    ServerDownError,
    Success,
    WeightInfo,
    WorkersDigest,
    WorkersLoaded,
    WorldSize,
)
from asymgrpo_app.rollout.server.auth import ServerToken, proof_of
from asymgrpo_app.rollout.server.gate import INFO_PATH, PROOF_PATH, ServerInfo, first_fault
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import sampling_arguments
from asymgrpo_app.runtime.console import printable

_CONTROL_TIMEOUT_S = 300.0  # of all calls but completions; loading weights takes time, the others answer at once
_CONNECT_TIMEOUT_S = 5.0
_SMALL_ANSWER = 64 * 1024
_BYTES_PER_TOKEN = 1024

T = TypeVar("T", bound=BaseModel)


class SamplerServer:
    """Client with a server's routes as methods. Every method raises `ServerDownError` if another try may succeed.

    The token goes to a server only after it has proven that it knows the token, and after every failure it has to prove
    that again. What a server answers is bounded in size and checked (`answers`).

    Args:
        url: Its address.
        token: Its token.
        session: HTTP session with its connections.
        request_timeout_s: Longest wait for a completion.
        certificate: Fingerprint that its certificate must have; None: one that this machine trusts.
    """

    def __init__(
        self,
        url: str,
        token: ServerToken,
        session: aiohttp.ClientSession,
        request_timeout_s: float,
        certificate: aiohttp.Fingerprint | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._session = session
        self._request_timeout_s = request_timeout_s
        self._certificate = certificate
        self._proven = False
        self._accepted = False  # at least once

    async def check(self, dtype: str, max_model_len: int, vocabulary: int) -> None:
        """Refuse a server whose settings would give other numbers.

        Raises:
            RunError: It computes in another type, takes shorter completions, has a model of another vocabulary, or was
                not started by `asymgrpo serve`.
        """
        info = await self._call("GET", INFO_PATH, ServerInfo)
        start = "start the server with this run's config"
        if info.dtype != dtype or info.max_model_len < max_model_len:
            raise RunError(
                f"the sampler server {self.url} computes in {printable(info.dtype)} with at most {info.max_model_len} "
                f"tokens, this run in {dtype} with up to {max_model_len}: {start}."
            )
        if info.vocabulary != vocabulary:
            raise RunError(
                f"the sampler server {self.url} has a model of {info.vocabulary} token ids, this run's policy knows "
                f"{vocabulary}: {start}."
            )

    async def version(self) -> str:
        """Label of the weights that the server holds."""
        return (await self._call("GET", "/weight_info", WeightInfo)).weight_version

    async def load_file(self, name: str) -> None:
        """Replace the server's weights by those in a file of the shared folder.

        Raises:
            RunError: It cannot read the file.
        """
        body = {"method": "asymgrpo_load", "kwargs": {"name": name}}
        for result in (await self._call("POST", "/collective_rpc", WorkersLoaded, body)).results:
            if result.error is not None:
                said = printable(result.error[:300])
                raise RunError(f"the sampler server {self.url} could not load weights: {said}.")

    async def set_version(self, version: str) -> None:
        """Set the label of the weights that the server now holds, and drop its cache from the old ones."""
        if not (await self._call("POST", "/reset_prefix_cache", Success)).success:
            raise ServerDownError("its prefix cache could not be reset: it still has work")
        await self.post("/update_weight_version", {"new_version": version})

    async def abort_all(self) -> None:
        """Abort all requests that the server works on."""
        await self.post("/abort_requests", {})

    async def digest(self, version: int) -> WeightDigest | None:
        """Digest of the server's weights; None if they are spread over several workers."""
        body = {"method": "asymgrpo_digest", "kwargs": {"version": version}}
        results = (await self._call("POST", "/collective_rpc", WorkersDigest, body)).results
        return WeightDigest(int(results[0].linear), int(results[0].other)) if len(results) == 1 else None

    async def workers(self) -> int:
        """Number of the server's workers."""
        return (await self._call("GET", "/get_world_size", WorldSize)).world_size

    async def generate(
        self, request: SampleRequest, settings: SamplingSettings, version: str, vocabulary: int
    ) -> Completion:
        """One completion, sampled from the weights with this label, of tokens below `vocabulary`."""
        body = {"token_ids": request.prompt_token_ids, "sampling_params": sampling_arguments(request.seed, settings)}
        limit = _SMALL_ANSWER + _BYTES_PER_TOKEN * settings.max_tokens
        route = "POST", "/inference/v1/generate"
        answer = await self._call(*route, Generated, body, timeout_s=self._request_timeout_s, limit=limit)
        return answer.completion(settings, version, vocabulary)

    async def post(self, path: str, body: Any = None) -> None:
        """Ask for something whose answer does not matter as long as it is one."""
        await self._call("POST", path, Answer, body)

    async def post_alone(self, path: str, body: Any = None) -> None:
        """`post` from another event loop, over a connection of its own."""
        async with new_session() as session:
            alone = (self.url, self._token, session, self._request_timeout_s, self._certificate)
            await SamplerServer(*alone).post(path, body)

    # ---- transport ----

    async def _call(
        self,
        verb: str,
        path: str,
        kind: type[T],
        body: Any = None,
        *,
        timeout_s: float = _CONTROL_TIMEOUT_S,
        limit: int = _SMALL_ANSWER,
    ) -> T:
        try:
            if not self._proven:
                await self._prove()
            data = await self._request(verb, path, body, f"Bearer {self._token.value}", timeout_s, limit)
            return _parsed(kind, data, path)
        except ServerDownError:
            self._proven = False
            raise

    async def _prove(self) -> None:
        """Have the server prove that it knows the token, which it is not sent before.

        Raises:
            RunError: It does not.
        """
        token, nonce = self._token.value, secrets.token_hex(32)
        header = f"Proof {nonce}:{proof_of(token, 'client', nonce)}"
        data = await self._request("GET", PROOF_PATH, None, header, _CONTROL_TIMEOUT_S, _SMALL_ANSWER)
        if not secrets.compare_digest(_parsed(Proof, data, PROOF_PATH).proof, proof_of(token, "server", nonce)):
            raise RunError(f"the sampler server {self.url} does not know the token, and was not sent it.")
        self._proven = self._accepted = True

    async def _request(
        self, verb: str, path: str, body: Any, authorization: str, timeout_s: float, limit: int
    ) -> bytes:
        """The body of a good answer."""
        with _as_server_down(timeout_s):
            async with self._session.request(
                verb,
                self.url + path,
                json=body,
                headers={"Authorization": authorization},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
                allow_redirects=False,
                ssl=self._certificate or True,
            ) as response:
                data = await _read(response, limit if response.status == 200 else _SMALL_ANSWER)
        if response.status == 200:
            return data
        text = printable(" ".join(data.decode(errors="replace")[:300].split()))
        if response.status >= 500 or response.status == 429:
            raise ServerDownError(f"it answered {response.status}: {text}")
        if response.status == 401 and self._accepted:  # the token is being changed, on one side first
            raise ServerDownError("it refused the token")
        if response.status == 401:
            raise RunError(f"the sampler server {self.url} refused the token (rollout.server.token_file).")
        if response.status == 404 and path == PROOF_PATH:
            raise RunError(f"the sampler server {self.url} was not started by `asymgrpo serve`.")
        raise RunError(f"the sampler server {self.url} answered {response.status} to {path}: {text}")


def new_session() -> aiohttp.ClientSession:
    """A session for servers: any number of connections, no proxy of the environment, answers as they were sent."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False, auto_decompress=False)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer, as it was sent: nothing is unpacked."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ServerDownError("its answer is compressed")
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise ServerDownError(f"its answer is longer than {limit} bytes")
    return bytes(data)


def _parsed(kind: type[T], data: bytes, path: str) -> T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ServerDownError(f"its answer to {path} could not be read: {first_fault(error)}") from error


@contextmanager
def _as_server_down(timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ServerDownError(f"no answer within {timeout_s:g} s") from error
    except (aiohttp.ClientError, ConnectionError, ValueError) as error:
        said = printable(str(error)[:300])
        raise ServerDownError(f"{type(error).__name__}: {said}".rstrip(": ")) from error
