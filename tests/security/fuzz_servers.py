"""Mutated answers to the client of a sampler server, and mutated requests to the gate before one."""

import asyncio
import json
import os
from collections.abc import Callable
from random import Random
from typing import Any

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.server.answers import ServerDownError
from asymgrpo_app.rollout.server.auth import ServerToken, proof_of
from asymgrpo_app.rollout.server.client import SamplerServer, new_session
from asymgrpo_app.rollout.server.gate import Gate
from asymgrpo_app.rollout.types import Completion, SampleRequest
from tests.security.test_client import INFO, SETTINGS, TOKEN, VERSION, completion
from tests.security.test_gate import ALLOWED, GENERATE, NCCL, NCCL_ALLOWED, RIGHT, answer

# Values that stand where others belong.
ODD: list[Any] = [None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**70, -(2**70), 1e308, "", "5", "\x1b[2J", "a" * 5000]
ODD += [[], {}, [[]] * 50, {"a": {"b": []}}, float("nan"), float("inf"), float("-inf"), "\ud800"]
STATUSES = [200] * 12 + [100, 199, 204, 206, 301, 302, 304, 401, 404, 418, 429, 500, 503, 599]
HEADERS = [
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


def mutated(rng: Random, value: Any) -> Any:
    """A JSON value with one place changed, or dropped, or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if (draw := rng.random()) < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        if draw < 0.15:
            return value | {f"{key}{rng.randrange(9)}": rng.choice(ODD)}
        return value | {key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        if (draw := rng.random()) < 0.2:
            return value[:index] + value[index + 1 :]
        if draw < 0.4:
            return value * rng.choice([2, 3, 500])
        return [*value[:index], mutated(rng, value[index]), *value[index + 1 :]]
    return rng.choice(ODD)


def mutated_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes with some changed, cut out, repeated or put in."""
    found = bytearray(data)
    for _ in range(rng.randrange(3)):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(found):
            found[place] = rng.randrange(256)
        elif kind == 1:
            del found[place : place + rng.randrange(1, 20)]
        elif kind == 2:
            found[place:place] = rng.randbytes(rng.randrange(1, 20))
        else:
            found[place:place] = found[place : place + 30] * rng.choice([1, 2, 1000])
    return bytes(found)


def body_of(rng: Random, value: Any) -> bytes:
    """A mutated body."""
    for _ in range(rng.randrange(4)):
        value = mutated(rng, value)
    return mutated_bytes(rng, json.dumps(value).encode()) if rng.random() < 0.5 else json.dumps(value).encode()


# ---- requests to the server ----


def gate_target() -> Callable[[Random], str]:
    """Sends a mutated request through the gate; returns its status."""
    os.environ |= {"ASYMGRPO_TOKEN": TOKEN, "ASYMGRPO_SERVER_INFO": NCCL.model_dump_json()}
    os.environ.pop("ASYMGRPO_TOKEN_FILE", None)
    known = {(method, path) for method, path, _ in [*ALLOWED, *NCCL_ALLOWED]}

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        """What stands behind the gate believes what it is given."""
        assert (scope["method"], scope["path"]) in known
        assert not scope["query_string"]
        text = (await receive())["body"]
        assert (text == b"") == ((scope["method"], scope["path"]) in [("GET", path) for _, path in known])
        body = json.loads(text or b"{}")
        if scope["path"] == "/inference/v1/generate":
            assert body.keys() == GENERATE.keys()
            assert body["sampling_params"].keys() == GENERATE["sampling_params"].keys()  # type: ignore[attr-defined]
            assert all(type(token) is int and 0 <= token < NCCL.vocabulary for token in body["token_ids"])
            assert len(body["token_ids"]) + body["sampling_params"]["max_tokens"] <= NCCL.max_model_len
        if scope["path"] == "/collective_rpc":
            assert body["method"] in ("asymgrpo_load", "asymgrpo_digest")
        if scope["path"] == "/init_weight_transfer_engine":
            assert body["init_info"]["master_address"] == NCCL.nccl_address
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(inner)

    def attack(rng: Random) -> str:
        method, path, body = rng.choice([*ALLOWED, *NCCL_ALLOWED])
        if rng.random() < 0.2:
            path = rng.choice([path + "/", path.upper(), "//" + path, path + "%00", "/collective_rpc", "/", "", "*"])
        if rng.random() < 0.1:
            method = rng.choice(["GET", "POST", "PUT", "get", "TRACE", ""])
        data = body_of(rng, json.loads(body or b"{}"))
        chunks: list[Any] = [data[i : i + 999] for i in range(0, len(data), 999)] or [b""]
        if rng.random() < 0.05:
            chunks.append({"type": "http.disconnect"})
        headers = [(RIGHT[0], mutated_bytes(rng, RIGHT[1]))] if rng.random() < 0.2 else [RIGHT]
        query = rng.choice([b""] * 9 + [b"a=1"])
        status, _ = answer(gate, method, path, chunks, headers, query_string=query)
        assert status in (200, 400, 401, 404, 413), status
        assert status == 401 or RIGHT in headers
        return str(status)

    return attack


# ---- answers of the server ----


def client_target() -> Callable[[Random], str]:
    """Gives the client a mutated answer to one of its calls; returns what it makes of it."""
    os.environ["ASYMGRPO_TOKEN"] = TOKEN
    answers: dict[str, Any] = {
        "/asymgrpo/info": INFO,
        "/weight_info": {"weight_version": VERSION},
        "/get_world_size": {"world_size": 2},
        "/reset_prefix_cache": {"success": True},
        "/update_weight_version": {},
        "/abort_requests": {},
        "/collective_rpc": {"results": [{"linear": "5", "other": "7"}]},
        "/inference/v1/generate": completion(),
    }
    calls: list[Callable[[SamplerServer], Any]] = [
        *[lambda client: client.generate(SampleRequest([2, 3], 7), SETTINGS, VERSION, INFO["vocabulary"])] * 4,
        lambda client: client.check("float32", 32, INFO["vocabulary"]),
        lambda client: client.version(),
        lambda client: client.workers(),
        lambda client: client.set_version(VERSION),
        lambda client: client.abort_all(),
        lambda client: client.digest(3),
        lambda client: client.load_file("a.safetensors"),
    ]

    async def exchange(rng: Random) -> Any:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    path = head.split()[1].decode()
                    if path == "/asymgrpo/proof":
                        nonce = head.decode().partition("Proof ")[2].partition(":")[0]
                        body, status, headers = json.dumps({"proof": proof_of(TOKEN, "server", nonce)}).encode(), 200, []
                        if rng.random() < 0.05:
                            body = body_of(rng, json.loads(body))
                    else:
                        body, status = body_of(rng, answers.get(path, {})), rng.choice(STATUSES)
                        headers = rng.sample(HEADERS, rng.choice([0] * 6 + [1, 1, 2]))
                    if not any(header.startswith(("Content-Length", "Transfer")) for header in headers):
                        headers = [*headers, f"Content-Length: {len(body)}"]
                    raw = "\r\n".join([f"HTTP/1.1 {status} X", *headers, "", ""]).encode("latin-1") + body
                    writer.write(mutated_bytes(rng, raw) if rng.random() < 0.2 else raw)
                    await writer.drain()
                    if rng.random() < 0.9 and raw.count(b"\r\n\r\n") == 1:
                        continue
                    break
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, asyncio.CancelledError):
                pass
            writer.close()

        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        async with server, new_session() as session:
            port = server.sockets[0].getsockname()[1]
            client = SamplerServer(f"http://127.0.0.1:{port}", ServerToken(None, "key"), session, 1.0, None)
            async with asyncio.timeout(3):  # where an answer announces more than comes
                return await rng.choice(calls)(client)

    def attack(rng: Random) -> str:
        try:
            found = asyncio.run(exchange(rng))
        except TimeoutError:
            return "waited"
        except (ServerDownError, RunError) as error:
            text = str(error)
            assert text, "an error without a text"
            assert text.isprintable(), text
            assert len(text) < 1000, text
            return type(error).__name__
        if isinstance(found, Completion):
            assert 0 < len(found.token_ids) == len(found.logprobs) <= SETTINGS.max_tokens
            assert all(type(token) is int and 0 <= token < 50 for token in found.token_ids)
            assert all(-1e308 <= value <= 1e-3 for value in found.logprobs)
        return "taken"

    return attack
