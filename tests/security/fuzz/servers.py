"""Mutated answers to the client of a sampler server, and mutated requests to the gate before one."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.server.answers import ServerDownError
from asymgrpo_app.rollout.server.auth import ServerToken, proof_of
from asymgrpo_app.rollout.server.client import SamplerServer, new_session
from asymgrpo_app.rollout.server.gate import Gate
from asymgrpo_app.rollout.types import Completion, SampleRequest
from tests.security.fuzz.mutations import mutated, mutated_json
from tests.security.fuzz.run import Attack
from tests.support.server_answers import INFO, SETTINGS, VERSION, completion
from tests.support.server_requests import ALLOWED, GENERATE, NCCL, NCCL_ALLOWED, RIGHT, SAMPLING, TOKEN, answer

_STATUSES = [200] * 12 + [100, 199, 204, 206, 301, 302, 304, 401, 404, 418, 429, 500, 503, 599]
_HEADERS = [
    "Content-Encoding: gzip",
    "Content-Encoding: deflate, br",
    "Content-Length: 99999999999",
    "Content-Length: -5",
    "Content-Length: x",
    "Transfer-Encoding: chunked",
    "Location: http://127.0.0.1:1/",
    "Set-Cookie: " + "a" * 9000,
    "X: " + "b" * 70_000,
    "Content-Type: text/html; charset=utf-99",
    "Connection: close",
    "Bad header",
    "\x00: \x00",
]


# ---- requests to the server ----


class _Inside:
    """What stands behind the gate and believes what it is given."""

    _known = frozenset((method, path) for method, path, _ in [*ALLOWED, *NCCL_ALLOWED])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Check that a request is one that a run could make."""
        assert (scope["method"], scope["path"]) in self._known
        assert not scope["query_string"]
        text = (await receive())["body"]
        assert (text == b"") == (scope["method"] == "GET")
        body = json.loads(text or b"{}")
        if scope["path"] == "/inference/v1/generate":
            self._check_generation(body)
        if scope["path"] == "/collective_rpc":
            assert body["method"] in ("asymgrpo_load", "asymgrpo_digest")
        if scope["path"] == "/init_weight_transfer_engine":
            assert body["init_info"]["master_address"] == NCCL.nccl_address
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _check_generation(self, body: dict[str, Any]) -> None:
        assert body.keys() == GENERATE.keys()
        assert body["sampling_params"].keys() == SAMPLING.keys()
        assert all(type(token) is int and 0 <= token < NCCL.vocabulary for token in body["token_ids"])
        assert len(body["token_ids"]) + body["sampling_params"]["max_tokens"] <= NCCL.max_model_len


def requests(_: Path) -> Attack:
    """Sends a changed request through the gate of a server."""
    os.environ |= {"ASYMGRPO_TOKEN": TOKEN, "ASYMGRPO_SERVER_INFO": NCCL.model_dump_json()}
    os.environ.pop("ASYMGRPO_TOKEN_FILE", None)
    gate = Gate(_Inside())

    def attack(draw: Random) -> bool:
        method, path, body = draw.choice([*ALLOWED, *NCCL_ALLOWED])
        if draw.random() < 0.2:
            path = draw.choice([path + "/", path.upper(), "//" + path, path + "%00", "/collective_rpc", "/", "", "*"])
        if draw.random() < 0.1:
            method = draw.choice(["GET", "POST", "PUT", "get", "TRACE", ""])
        data = mutated_json(draw, json.loads(body or b"{}"))
        chunks: list[Any] = [data[i : i + 999] for i in range(0, len(data), 999)] or [b""]
        if draw.random() < 0.05:
            chunks.append({"type": "http.disconnect"})
        headers = [(RIGHT[0], mutated(draw, RIGHT[1]))] if draw.random() < 0.2 else [RIGHT]
        query = draw.choice([b""] * 9 + [b"a=1"])
        status, _ = answer(gate, method, path, chunks, headers, query_string=query)
        assert status in (200, 400, 401, 404, 413), status
        assert status == 401 or RIGHT in headers
        return status != 200

    return attack


# ---- answers of the server ----

_ANSWERS: dict[str, Any] = {
    "/asymgrpo/info": INFO,
    "/weight_info": {"weight_version": VERSION},
    "/get_world_size": {"world_size": 2},
    "/reset_prefix_cache": {"success": True},
    "/update_weight_version": {},
    "/abort_requests": {},
    "/collective_rpc": {"results": [{"linear": "5", "other": "7"}]},
    "/inference/v1/generate": completion(),
}
_CALLS: list[Callable[[SamplerServer], Any]] = [
    *[lambda client: client.generate(SampleRequest([2, 3], 7), SETTINGS, VERSION, INFO["vocabulary"])] * 4,
    lambda client: client.check("float32", 32, INFO["vocabulary"]),
    lambda client: client.version(),
    lambda client: client.workers(),
    lambda client: client.set_version(VERSION),
    lambda client: client.abort_all(),
    lambda client: client.digest(3),
    lambda client: client.load_file("a.safetensors"),
]


class _Server:
    """A server that answers with changed answers."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, until one of the two has enough."""
        cut_off = asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, asyncio.CancelledError
        with suppress(*cut_off):
            raw = b""
            while raw.count(b"\r\n\r\n") <= 1 and self._draw.random() < 0.9:
                raw = self._response((await reader.readuntil(b"\r\n\r\n")).decode())
                writer.write(mutated(self._draw, raw) if self._draw.random() < 0.2 else raw)
                await writer.drain()
        writer.close()

    def _response(self, head: str) -> bytes:
        draw, path = self._draw, head.split()[1]
        if path == "/asymgrpo/proof":
            proof = {"proof": proof_of(TOKEN, "server", head.partition("Proof ")[2].partition(":")[0])}
            body = mutated_json(draw, proof) if draw.random() < 0.05 else json.dumps(proof).encode()
            status, headers = 200, []
        else:
            body, status = mutated_json(draw, _ANSWERS.get(path, {})), draw.choice(_STATUSES)
            headers = draw.sample(_HEADERS, draw.choice([0] * 6 + [1, 1, 2]))
        if not any(header.startswith(("Content-Length", "Transfer")) for header in headers):
            headers = [*headers, f"Content-Length: {len(body)}"]
        return "\r\n".join([f"HTTP/1.1 {status} X", *headers, "", ""]).encode("latin-1") + body


def answers(_: Path) -> Attack:
    """Gives the client of a server a changed answer to one of its calls."""
    os.environ["ASYMGRPO_TOKEN"] = TOKEN

    async def exchange(draw: Random) -> Any:
        server = await asyncio.start_server(_Server(draw).respond, "127.0.0.1", 0)
        async with server, new_session() as session:
            port = server.sockets[0].getsockname()[1]
            client = SamplerServer(f"http://127.0.0.1:{port}", ServerToken(None, "key"), session, 1.0, None)
            with suppress(TimeoutError):  # an answer may announce more than comes
                async with asyncio.timeout(0.5):
                    return await draw.choice(_CALLS)(client)

    def attack(draw: Random) -> bool:
        try:
            found = asyncio.run(exchange(draw))
        except (ServerDownError, RunError) as error:
            text = str(error)
            assert text, "an error without a text"
            assert text.isprintable(), text
            assert len(text) < 1000, text
            return True
        if isinstance(found, Completion):
            assert 0 < len(found.token_ids) == len(found.logprobs) <= SETTINGS.max_tokens
            assert all(type(token) is int and 0 <= token < INFO["vocabulary"] for token in found.token_ids)
            assert all(-1e308 <= value <= 1e-3 for value in found.logprobs)
        return False

    return attack


TARGETS = {"server_requests": requests, "server_answers": answers}
