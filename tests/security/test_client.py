"""The client of a sampler server, against servers that answer whatever they like."""

import asyncio
import gzip
import json
import ssl
import threading
import tracemalloc

import aiohttp
import pytest
from aiohttp import web

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rollout.server.answers import ServerDownError
from asymgrpo_app.rollout.server.auth import ServerToken, proof_of
from asymgrpo_app.rollout.server.client import SamplerServer, new_session
from asymgrpo_app.rollout.server.tls import fingerprint
from asymgrpo_app.rollout.types import SampleRequest
from tests.support.certificate import made_certificate
from tests.support.server_answers import INFO, SETTINGS, VERSION, completion
from tests.support.server_requests import TOKEN


def choice(**changes):
    return {"choices": [completion()["choices"][0] | changes]}


class Hostile:
    """Proves the token and then answers every request for a completion with the same bytes; keeps what it was sent."""

    def __init__(self, certificate=None):
        self._tls = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate.file, certificate.key)
        self.body, self.status, self.headers = b"", 200, {"Content-Type": "application/json"}
        self.proof = None
        self.seen = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._runner, self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _listen(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]

    async def _answer(self, request):
        authorization = request.headers.get("Authorization", "")
        self.seen.append((request.path, authorization))
        if request.path == "/asymgrpo/proof":
            nonce = authorization.removeprefix("Proof ").partition(":")[0]
            return web.json_response({"proof": self.proof or proof_of(TOKEN, "server", nonce)})
        if request.path == "/asymgrpo/info":
            return web.json_response(INFO)
        return web.Response(body=self.body, status=self.status, headers=self.headers)

    def close(self):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def hostile():
    server = Hostile()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("ASYMGRPO_TOKEN", TOKEN)


def ask(
    server, call=lambda client: client.generate(SampleRequest([2, 3], 7), SETTINGS, VERSION, 50), tls=None, pin=None
):
    """What the client makes of the server's answer."""
    scheme = "https" if tls else "http"
    pinned = aiohttp.Fingerprint(fingerprint(str(pin), "key")) if pin else None

    async def asked():
        async with new_session() as session:
            client = SamplerServer(
                f"{scheme}://127.0.0.1:{server.port}", ServerToken(None, "key"), session, 5.0, pinned
            )
            await client.check("float32", 32, 50)
            return await call(client)

    return asyncio.run(asked())


def test_an_answer_as_a_server_gives_it_is_taken(hostile):
    hostile.body = json.dumps(completion() | {"more": 1}).encode()
    found = ask(hostile)
    assert (found.token_ids, found.logprobs, found.truncated) == ([4, 5, 1], [-0.5, -1.0, 0.0], False)
    hostile.body = json.dumps(completion(tokens=(4, 5, 6), reason="length")).encode()
    assert ask(hostile).truncated


BAD = {
    "no JSON": b"<html>",
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "nested deep": b"[" * 50_000,
    "no text": b"\xff\xfe\xfd",
    "no choices": {"choices": []},
    "two choices": {"choices": completion()["choices"] * 2},
    "choices that are a text": {"choices": "hello"},
    "no tokens": completion(tokens=(), logprobs=()),
    "a token beyond the vocabulary": completion(tokens=(4, 50, 1)),
    "a negative token": completion(tokens=(4, -1, 1)),
    "a token of 70 bits": completion(tokens=(4, 2**70, 1)),
    "a token that is a text": completion(tokens=(4, "5", 1)),
    "a token that is a float": completion(tokens=(4, 5.5, 1)),
    "a token that is true": completion(tokens=(4, True, 1)),
    "a token that is null": completion(tokens=(4, None, 1)),
    "NaN": completion(logprobs=(-0.5, float("nan"), 0.0)),
    "minus infinity": completion(logprobs=(-0.5, float("-inf"), 0.0)),
    "a positive log-probability": completion(logprobs=(-0.5, 0.1, 0.0)),
    "a log-probability that is a text": completion(logprobs=(-0.5, "-1", 0.0)),
    "a log-probability that is null": completion(logprobs=(-0.5, None, 0.0)),
    "too many tokens": completion(tokens=(4, 5, 6, 1), logprobs=(-1,) * 4),
    "cut short of the limit": completion(tokens=(4, 5), logprobs=(-1, -1), reason="length"),
    "stopped without a stop token": completion(tokens=(4, 5), logprobs=(-1, -1)),
    "another reason": completion(reason="abort"),
    "a reason that is null": completion(reason=None),
    "log-probabilities of other tokens": choice(logprobs={"content": [{"token_id": 9, "logprob": -1.0}] * 3}),
    "fewer log-probabilities": choice(logprobs={"content": []}),
    "no log-probabilities": choice(logprobs=None),
}


@pytest.mark.parametrize("case", BAD)
def test_an_answer_that_cannot_be_right_counts_as_none(hostile, case):
    body = BAD[case]
    hostile.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ServerDownError) as caught:
        ask(hostile)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_completion_from_other_weights_counts_as_none_and_its_label_is_printable(hostile):
    hostile.body = json.dumps(completion(version="\x1b[31mother")).encode()
    with pytest.raises(ServerDownError, match="sampled from the weights") as caught:
        ask(hostile)
    assert str(caught.value).isprintable()


def test_an_endless_or_packed_answer_is_cut_where_it_is_too_long(hostile):
    hostile.body = b" " * (64 * 1024 + 3 * 1024 + 1)
    with pytest.raises(ServerDownError, match="longer than 68608 bytes"):
        ask(hostile)
    hostile.body = gzip.compress(b" " * 200 * 2**20)
    hostile.headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    tracemalloc.start()
    try:
        with pytest.raises(ServerDownError, match="its answer is compressed"):
            ask(hostile)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_long_error_with_escapes_is_cut_and_printable(hostile, status):
    hostile.status, hostile.body = status, "\x1b]0;title\x07\u202e".encode() * 1000
    with pytest.raises(ServerDownError) as caught:
        ask(hostile)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


CONTROL = {
    "weights": (lambda client: client.version(), [b"{}", b'{"weight_version": 5}', b'{"weight_version": null}']),
    "workers": (
        lambda client: client.workers(),
        [b'{"world_size": 0}', b'{"world_size": "1"}', b'{"world_size": 1e9}'],
    ),
    "load": (lambda client: client.load_file("a"), [b"{}", b'{"results": []}', b'{"results": [1]}']),
    "digest": (
        lambda client: client.digest(1),
        [
            b'{"results": [{"linear": "x", "other": "1"}]}',
            b'{"results": [{"linear": 1, "other": 2}]}',
            b'{"results": [{"linear": "' + b"9" * 5000 + b'", "other": "1"}]}',
        ],
    ),
    "reset": (lambda client: client.set_version("a"), [b"{}", b'{"success": "yes"}', b'{"success": false}']),
}


@pytest.mark.parametrize("name", CONTROL)
def test_every_other_answer_is_checked_as_well(hostile, name):
    call, bodies = CONTROL[name]
    for hostile.body in bodies:
        with pytest.raises(ServerDownError):
            ask(hostile, call)


def test_what_a_worker_could_not_load_is_said_in_printable_words(hostile):
    hostile.body = b'{"results": [{"error": "no \\u001b[31m file"}]}'
    with pytest.raises(RunError) as caught:
        ask(hostile, lambda client: client.load_file("a"))
    assert str(caught.value).isprintable()


# ---- the token ----


def test_a_server_that_does_not_know_the_token_is_not_sent_it(hostile):
    hostile.proof = "0" * 64
    with pytest.raises(RunError, match="does not know the token, and was not sent it"):
        ask(hostile)
    assert [path for path, _ in hostile.seen] == ["/asymgrpo/proof"]
    assert TOKEN not in str(hostile.seen)


def test_the_proof_is_asked_for_again_after_a_failure(hostile):
    """Somebody else may have taken the port."""

    async def call(client):
        for _ in range(2):
            with pytest.raises(ServerDownError):
                await client.version()

    ask(hostile, call)
    paths = [path for path, _ in hostile.seen]
    assert paths == ["/asymgrpo/proof", "/asymgrpo/info", "/weight_info", "/asymgrpo/proof", "/weight_info"]


def test_a_redirect_is_not_followed(hostile):
    hostile.status, hostile.headers = 307, {"Location": f"http://127.0.0.1:{hostile.port}/elsewhere"}
    with pytest.raises(RunError, match="answered 307"):
        ask(hostile)
    assert "/elsewhere" not in [path for path, _ in hostile.seen]


def test_no_proxy_of_the_environment_sees_the_token(hostile, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    hostile.body = json.dumps(completion()).encode()
    assert ask(hostile).token_ids == [4, 5, 1]


# ---- TLS ----


@pytest.fixture
def encrypted(tmp_path):
    server = Hostile(made_certificate(tmp_path / "certificate"))
    server.body = json.dumps(completion()).encode()
    yield server
    server.close()


def test_the_pinned_certificate_is_the_only_one_taken(encrypted, tmp_path):
    certificate = tmp_path / "certificate" / "server.pem"
    assert ask(encrypted, tls=True, pin=certificate).token_ids == [4, 5, 1]
    encrypted.seen.clear()
    other = made_certificate(tmp_path / "other").file
    with pytest.raises(ServerDownError, match="ServerFingerprintMismatch"):
        ask(encrypted, tls=True, pin=other)
    with pytest.raises(ServerDownError, match="ClientConnectorCertificateError"):
        ask(encrypted, tls=True)  # self-signed: not one that this machine trusts
    assert encrypted.seen == []


def test_weights_over_nccl_are_announced_by_the_same_rules(hostile):
    """Over a connection of its own, from another thread than that of the event loop."""
    pytest.importorskip("vllm")
    from asymgrpo_app.rollout.server.transfer import _nccl_client

    hostile.body = b"{}"

    async def call(client):
        hostile.seen.clear()
        _nccl_client(client).start_weight_update()

    ask(hostile, call)
    bearer = f"Bearer {TOKEN}"
    assert [path for path, _ in hostile.seen] == ["/asymgrpo/proof", "/start_weight_update"]
    assert [authorization == bearer for _, authorization in hostile.seen] == [False, True]
    hostile.proof = "0" * 64
    with pytest.raises(RunError, match="does not know the token, and was not sent it"):
        ask(hostile, lambda client: asyncio.to_thread(_nccl_client(client).start_weight_update))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("hello", "holds no certificate (-----BEGIN CERTIFICATE-----)"),
        ("-----BEGIN CERTIFICATE-----\n\u00e9\n-----END CERTIFICATE-----", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----", "holds no certificate"),
    ],
)
def test_what_is_no_certificate_is_said(tmp_path, content, message):
    path = tmp_path / "server.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        fingerprint(str(path), "rollout.server.certificate_file")
    assert str(caught.value).startswith(f"rollout.server.certificate_file {path} {message}")
