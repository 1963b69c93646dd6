"""Gate in front of vLLM's server: a token, the few routes that a run uses, and bodies that are read whole and checked.

vLLM's own server has over fifty routes with which a token's holder could write files or load code on the server's
machine. Whatever is not listed here does not exist for a client.
"""

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asymgrpo_app.rollout.server.auth import ServerToken

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

INFO_VARIABLE = "ASYMGRPO_SERVER_INFO"
TOKEN_FILE_VARIABLE = "ASYMGRPO_TOKEN_FILE"
INFO_PATH = "/asymgrpo/info"
PROOF_PATH = "/asymgrpo/proof"

_BODY_TIMEOUT_S = 30.0
_SMALL_BODY = 64 * 1024
_LARGE_BODY = 16 * 1024 * 1024  # names and shapes of all weights of a large model
_BYTES_PER_TOKEN = 24


# ---- bodies ----


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NoBody(_Body):
    """Body of a route that takes nothing: none, or an empty object."""


class WeightVersion(_Body):
    """Body of `/update_weight_version`."""

    new_version: Annotated[str, Field(max_length=64, pattern=r"^[\w.:-]+$")]


class _Load(_Body):
    name: Annotated[str, Field(max_length=255)]


class _Digest(_Body):
    version: Annotated[int, Field(ge=0, lt=2**63)]


class LoadCall(_Body):
    """Call of the workers: load weights from the server's weights folder."""

    method: Literal["asymgrpo_load"]
    kwargs: _Load


class DigestCall(_Body):
    """Call of the workers: digest of their weights."""

    method: Literal["asymgrpo_digest"]
    kwargs: _Digest


class Sampling(_Body):
    """Sampling parameters as `sampling_arguments` makes them, and no others."""

    temperature: Annotated[float, Field(ge=0, le=100)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=-1, lt=2**31)]
    min_p: Annotated[float, Field(ge=0, le=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None
    ignore_eos: Literal[True]
    stop_token_ids: Annotated[list[int], Field(max_length=1024)]
    logprobs: Literal[0]
    detokenize: Literal[False]


class Generation(_Body):
    """Body of `/inference/v1/generate`."""

    token_ids: Annotated[list[int], Field(min_length=1)]
    sampling_params: Sampling


class _Rendezvous(_Body):
    master_address: str
    master_port: Annotated[int, Field(ge=1, le=65535)]
    rank_offset: Annotated[int, Field(ge=1, le=1024)]
    world_size: Annotated[int, Field(ge=2, le=1024)]
    packed: bool
    packed_buffer_size_bytes: Annotated[int, Field(ge=1, le=2**34)]
    packed_num_buffers: Annotated[int, Field(ge=1, le=16)]


class TransferStart(_Body):
    """Body of `/init_weight_transfer_engine`: a rendezvous by address, never by an id made elsewhere."""

    init_info: _Rendezvous


class _Weights(_Body):
    names: list[str]
    dtype_names: list[Literal["float32", "bfloat16", "float16"]]
    shapes: list[list[int]]


class Update(_Body):
    """Body of `/update_weights`."""

    update_info: _Weights


Bodies = tuple[type[BaseModel], ...]

_ROUTES: dict[tuple[str, str], Bodies] = {
    ("GET", "/health"): (),
    ("GET", "/weight_info"): (),
    ("GET", "/get_world_size"): (),
    ("POST", "/reset_prefix_cache"): (NoBody,),
    ("POST", "/abort_requests"): (NoBody,),
    ("POST", "/update_weight_version"): (WeightVersion,),
    ("POST", "/collective_rpc"): (LoadCall, DigestCall),
    ("POST", "/inference/v1/generate"): (Generation,),
}
_NCCL_ROUTES: dict[tuple[str, str], Bodies] = {
    ("POST", "/init_weight_transfer_engine"): (TransferStart,),
    ("POST", "/start_weight_update"): (NoBody,),
    ("POST", "/update_weights"): (Update,),
    ("POST", "/finish_weight_update"): (NoBody,),
    ("POST", "/shutdown_weight_transfer_engine"): (NoBody,),
}


class ServerInfo(BaseModel):
    """Settings that a server was started with; a run refuses a server whose settings would give other numbers.

    Attributes:
        max_model_len: Longest prompt plus completion in tokens.
        dtype: Compute type.
        vocabulary: Number of token ids that the model knows.
        nccl_address: Address of the trainer that weights may come from over NCCL; None: they come through a folder.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    max_model_len: Annotated[int, Field(ge=1)]
    dtype: Annotated[str, Field(max_length=32)]
    vocabulary: Annotated[int, Field(ge=1)]
    nccl_address: str | None = None


@dataclass(frozen=True)
class _Refusal(Exception):  # noqa: N818 (an answer, not an error of the server)
    status: int
    reason: str


class Gate:
    """ASGI middleware around vLLM's whole server.

    - Every request proves that it knows the token (see `auth`), or gets 401, whatever the route.
    - What is not in the list of routes gets 404, also websockets and query strings.
    - A body is read whole within 30 s, up to what the server's longest request needs (413), and must have the fields
      that a run sends and no others, with token ids that the model knows (400).

    `GET /asymgrpo/info` returns the server's start settings. The token is read from the file `$ASYMGRPO_TOKEN_FILE`,
    again whenever that changes, or from `$ASYMGRPO_TOKEN`.

    Raises:
        UserError: There is no token.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app
        self._token = ServerToken(os.environ.get(TOKEN_FILE_VARIABLE) or None, "--token_file")
        self._info = ServerInfo.model_validate_json(os.environ[INFO_VARIABLE])
        self._routes = _ROUTES | (_NCCL_ROUTES if self._info.nccl_address else {})

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, or pass it on to vLLM."""
        from starlette.responses import JSONResponse  # installed where vLLM is, and with it this server
        from starlette.websockets import WebSocketClose

        app = self._app
        try:
            if scope["type"] == "websocket":
                app = WebSocketClose(1008)
            elif scope["type"] == "http":
                body = await self._admit(scope, receive)
                if isinstance(body, bytes):
                    receive = _replay(body, receive)
                else:
                    app = JSONResponse(body)
        except _Refusal as refusal:
            headers = {"Connection": "close"}  # what else the client sends is not read
            if refusal.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            app = JSONResponse({"error": refusal.reason}, refusal.status, headers)
        await app(scope, receive, send)

    async def _admit(self, scope: "Scope", receive: "Receive") -> bytes | dict[str, Any]:
        """The checked body of a request for vLLM, or the gate's own answer."""
        route = scope["method"], scope["path"]
        authorization = _header(scope, b"authorization")
        if route == ("GET", PROOF_PATH) and (proof := self._token.prove(authorization)):
            return {"proof": proof}
        if not self._token.matches(authorization):
            raise _Refusal(401, "a token is required")
        if route == ("GET", INFO_PATH) and not scope["query_string"]:
            return self._info.model_dump()
        if route not in self._routes or scope["query_string"]:
            raise _Refusal(404, "there is no such route")
        bodies = self._routes[route]
        data = await _read(receive, self._longest(bodies))
        # Written anew: what was checked is what vLLM reads, also where two readers of JSON differ (a key given twice).
        return self._checked(bodies, data or b"{}").model_dump_json(exclude_unset=True).encode() if bodies else b""

    def _longest(self, bodies: Bodies) -> int:
        if bodies == (Generation,):
            return _SMALL_BODY + _BYTES_PER_TOKEN * self._info.max_model_len
        return _LARGE_BODY if bodies == (Update,) else _SMALL_BODY

    def _checked(self, bodies: Bodies, data: bytes) -> BaseModel:
        reason = ""
        for kind in bodies:
            try:
                body = kind.model_validate_json(data)
            except ValidationError as error:
                reason = first_fault(error)
                continue
            if fault := self._fault(body):
                raise _Refusal(400, fault)
            return body
        raise _Refusal(400, reason)

    def _fault(self, body: BaseModel) -> str | None:
        """The reason why this server cannot take a body that is well-formed."""
        if isinstance(body, TransferStart) and body.init_info.master_address != self._info.nccl_address:
            return f"weights come from {self._info.nccl_address} alone"
        if isinstance(body, Generation):
            ids = body.token_ids + body.sampling_params.stop_token_ids
            if min(ids) < 0 or max(ids) >= self._info.vocabulary:
                return f"a token id is not in 0 to {self._info.vocabulary - 1}"
            longest = len(body.token_ids) + body.sampling_params.max_tokens
            if longest > self._info.max_model_len:
                return (
                    f"prompt and completion have up to {longest} tokens, this server takes {self._info.max_model_len}"
                )
        return None


def first_fault(error: ValidationError) -> str:
    """The first fault of a text that was read, without the text's content."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the body'}: {fault['msg']}"


async def _read(receive: "Receive", limit: int) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _Refusal(400, "the body ended early")
                data += message.get("body", b"")
                if len(data) > limit:
                    raise _Refusal(413, f"the body is longer than {limit} bytes")
                if not message.get("more_body"):
                    return bytes(data)
    except TimeoutError as error:
        raise _Refusal(408, f"the body did not arrive within {_BODY_TIMEOUT_S:g} s") from error


def _header(scope: "Scope", name: bytes) -> str | None:
    """The one value of a header; None if there is none, or several."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


def _replay(body: bytes, receive: "Receive") -> "Receive":
    """A `receive` that gives a body that was read already, and then what comes after it."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> "Message":
        return pending.pop() if pending else await receive()

    return again
