"""The gate in front of a sampler server, without vLLM behind it: who gets in, to which routes, with which bodies."""

import json
import os
from itertools import product

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rollout.server import gate as gate_module
from asymgrpo_app.rollout.server.auth import proof_of
from asymgrpo_app.rollout.server.gate import Gate, ServerInfo
from tests.support.server_requests import (
    ALLOWED,
    GENERATE,
    INFO,
    NCCL,
    NCCL_ALLOWED,
    RENDEZVOUS,
    RIGHT,
    SAMPLING,
    TOKEN,
    answer,
)

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", ""]


class Inner:
    """Stands where vLLM's server is; keeps the bodies that got through."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def inner():
    return Inner()


@pytest.fixture
def gate(inner, monkeypatch):
    return opened(inner, monkeypatch, INFO)


def opened(inner, monkeypatch, info):
    monkeypatch.setenv("ASYMGRPO_TOKEN", TOKEN)
    monkeypatch.delenv("ASYMGRPO_TOKEN_FILE", raising=False)
    monkeypatch.setenv("ASYMGRPO_SERVER_INFO", info.model_dump_json())
    return Gate(inner)


# ---- the token ----

WRONG = [
    [],
    [(b"authorization", b"")],
    [(b"authorization", b"Bearer")],
    [(b"authorization", TOKEN.encode())],
    [(b"authorization", f"Bearer {TOKEN[:-1]}".encode())],
    [(b"authorization", f"Bearer {TOKEN} ".encode())],
    [(b"authorization", f"Basic {TOKEN}".encode())],
    [(b"authorization", "Bearer \u00e9".encode())],
    [(b"authorization", b"Bearer \xff\xfe")],
    [(b"authorization", b"Proof ")],
    [(b"authorization", f"Proof {'0' * 64}:{'0' * 64}".encode())],
    [RIGHT, (b"authorization", b"Bearer another")],
    [(b"x-api-key", TOKEN.encode())],
    [(b"cookie", f"authorization=Bearer {TOKEN}".encode())],
]


@pytest.mark.parametrize("headers", WRONG)
def test_without_the_very_token_the_answer_is_401(gate, inner, headers):
    paths = ["/", "/health", "/collective_rpc", "/asymgrpo/info", "/asymgrpo/proof", "/nowhere"]
    for method, path in product(METHODS, paths):
        status, text = answer(gate, method, path, headers=headers)
        assert (status, text) == (401, '{"error":"a token is required"}'), (method, path)
    assert inner.bodies == []


def test_a_client_that_proves_the_token_gets_the_servers_proof_and_no_more(gate, inner):
    nonce = "ab" * 32
    header = (b"authorization", f"Proof {nonce}:{proof_of(TOKEN, 'client', nonce)}".encode())
    status, text = answer(gate, path="/asymgrpo/proof", headers=[header])
    assert (status, json.loads(text)) == (200, {"proof": proof_of(TOKEN, "server", nonce)})
    assert answer(gate, path="/health", headers=[header])[0] == 401
    assert inner.bodies == []


def test_a_new_token_takes_effect_at_once_and_an_unreadable_one_never(inner, monkeypatch, tmp_path):
    path = tmp_path / "token"
    monkeypatch.setenv("ASYMGRPO_TOKEN_FILE", str(path))
    monkeypatch.setenv("ASYMGRPO_SERVER_INFO", INFO.model_dump_json())

    def write(text):
        with os.fdopen(os.open(tmp_path / "new", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        (tmp_path / "new").replace(path)

    write(TOKEN)
    gate = Gate(inner)
    assert answer(gate)[0] == 200
    write("another-token-here")
    assert answer(gate)[0] == 401
    assert answer(gate, headers=[(b"authorization", b"Bearer another-token-here")])[0] == 200
    write("short")
    assert answer(gate, headers=[(b"authorization", b"Bearer another-token-here")])[0] == 200
    assert answer(gate, headers=[(b"authorization", b"Bearer short")])[0] == 401
    path.unlink()
    assert answer(gate, headers=[(b"authorization", b"Bearer another-token-here")])[0] == 200


def test_without_any_token_the_server_does_not_start(inner, monkeypatch):
    monkeypatch.delenv("ASYMGRPO_TOKEN", raising=False)
    monkeypatch.delenv("ASYMGRPO_TOKEN_FILE", raising=False)
    with pytest.raises(UserError, match="ASYMGRPO_TOKEN holds none"):
        Gate(inner)


# ---- routes ----


@pytest.mark.parametrize(("method", "path", "body"), ALLOWED)
def test_what_a_run_asks_for_gets_through_with_every_field(gate, inner, method, path, body):
    assert answer(gate, method, path, body) == (200, "inside")
    assert answer(gate, method, path, [body[:7], b"", body[7:]]) == (200, "inside")
    sent = json.loads(body or b"{}") if method == "POST" else b""
    assert [json.loads(inside) if method == "POST" else inside for inside in inner.bodies] == [sent, sent]


def test_of_a_key_given_twice_the_server_gets_the_one_that_was_checked(gate, inner):
    body = json.dumps(GENERATE).encode().replace(b"{", b'{"token_ids": [99999999], ', 1)
    assert json.loads(body)["token_ids"] != [99999999]
    assert answer(gate, "POST", "/inference/v1/generate", body) == (200, "inside")
    assert inner.bodies[0].count(b'"token_ids"') == 1


@pytest.mark.parametrize(("method", "path", "body"), NCCL_ALLOWED)
def test_routes_of_the_nccl_transfer_are_there_for_a_server_that_uses_it(gate, inner, monkeypatch, method, path, body):
    assert answer(gate, method, path, body)[0] == 404
    assert answer(opened(inner, monkeypatch, NCCL), method, path, body) == (200, "inside")


def test_the_server_tells_its_settings(gate, inner):
    status, text = answer(gate, path="/asymgrpo/info")
    assert (status, ServerInfo.model_validate_json(text), inner.bodies) == (200, INFO, [])


OTHERS = [
    *["/", "//health", "/health/", "/Health", "/health%2f", "/./health", "/v1/../health", "/docs", "/openapi.json"],
    *["/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/tokenize", "/metrics"],
    *["/sleep", "/wake_up", "/pause", "/resume", "/server_info", "/start_profile", "/stop_profile", "/ping"],
    *["/scale_elastic_ep", "/is_sleeping", "/update_weights", "/init_weight_transfer_engine", "/version"],
    *["/inference/v1/generate/", "/asymgrpo", "/asymgrpo/", "/asymgrpo/info/", "/collective_rpc/", "/load"],
]


def test_nothing_else_is_there(gate, inner):
    for method, path in product(METHODS, OTHERS):
        assert answer(gate, method, path)[0] == 404, (method, path)
    assert inner.bodies == []


@pytest.mark.parametrize(("method", "path", "body"), ALLOWED)
def test_a_route_has_one_method_and_no_query(gate, inner, method, path, body):
    assert answer(gate, {"GET": "POST", "POST": "GET"}[method], path, body)[0] == 404
    assert answer(gate, method, path, body, query_string=b"a=1")[0] == 404
    assert inner.bodies == []


def test_there_are_no_websockets(gate, inner):
    for headers in ((), (RIGHT,)):
        assert answer(gate, type="websocket", headers=headers)[0] == "websocket.close"
    assert inner.bodies == []


# ---- bodies ----


def generate(**changes):
    return json.dumps(GENERATE | changes).encode()


def sampling(**changes):
    return generate(sampling_params=SAMPLING | changes)


def without(name):
    return generate(sampling_params={key: value for key, value in SAMPLING.items() if key != name})


BAD_GENERATE = {
    "no JSON": (b"{", "Invalid JSON"),
    "no object": (b"[1]", "the body: Input should be an object"),
    "no body": (b"", "token_ids"),
    "no text": (b"\xff\xfe", "Invalid JSON"),
    "deep": (b"[" * 60_000, "Invalid JSON"),
    "no prompt": (generate(token_ids=[]), "token_ids"),
    "a token beyond the vocabulary": (generate(token_ids=[2, 10]), "a token id is not in 0 to 9"),
    "a negative token": (generate(token_ids=[-1]), "a token id is not in 0 to 9"),
    "a token of 70 bits": (generate(token_ids=[2**70]), "a token id is not in 0 to 9"),
    "a token that is text": (generate(token_ids=["2"]), "token_ids.0"),
    "a token that is a float": (generate(token_ids=[2.0]), "token_ids.0"),
    "a token that is true": (generate(token_ids=[True]), "token_ids.0"),
    "a prompt that is text": (generate(token_ids="hello"), "token_ids"),
    "a long prompt": (generate(token_ids=[2] * 25), "have up to 33 tokens, this server takes 32"),
    "a long completion": (sampling(max_tokens=31), "have up to 33 tokens, this server takes 32"),
    "an endless completion": (sampling(max_tokens=None), "max_tokens"),
    "a stop token beyond the vocabulary": (sampling(stop_token_ids=[10]), "a token id is not in 0 to 9"),
    "many stop tokens": (sampling(stop_token_ids=[1] * 1025), "stop_token_ids"),
    "all log-probabilities": (sampling(logprobs=-1), "logprobs"),
    "text": (sampling(detokenize=True), "detokenize"),
    "NaN": (sampling(temperature=float("nan")), "temperature"),
    "infinity": (sampling(temperature=float("inf")), "temperature"),
    "a negative temperature": (sampling(temperature=-1), "temperature"),
    "top_p of 0": (sampling(top_p=0.0), "top_p"),
    "a seed of 64 bits": (sampling(seed=2**64), "seed"),
    "several completions": (sampling(n=1000), "n: Extra inputs"),
    "a processor": (sampling(logits_processors=["os.system"]), "logits_processors"),
    "a grammar": (sampling(structured_outputs={"regex": "(a+)+"}), "structured_outputs"),
    "arguments of extensions": (sampling(extra_args={"a": 1}), "extra_args"),
    "another model": (generate(model="x"), "model: Extra inputs"),
    "an adapter": (generate(lora_request={"lora_path": "/"}), "lora_request"),
    "images": (generate(features={}), "features"),
    "a stream": (generate(stream=True), "stream"),
    "a cache of another machine": (generate(kv_transfer_params={"host": "x"}), "kv_transfer_params"),
    "a priority": (generate(priority=-1), "priority"),
    **{f"no {name}": (without(name), name) for name in SAMPLING},
}


@pytest.mark.parametrize("case", BAD_GENERATE)
def test_a_request_that_is_not_a_runs_does_not_reach_the_engine(gate, inner, case):
    body, reason = BAD_GENERATE[case]
    status, text = answer(gate, "POST", "/inference/v1/generate", body)
    assert (status, inner.bodies) == (400, [])
    assert reason in json.loads(text)["error"]


def call(method, **kwargs):
    return json.dumps({"method": method, "kwargs": kwargs}).encode()


BAD_CALLS = [
    *[call(name) for name in ("save_sharded_state", "update_config", "reload_weights", "update_environment_variables")],
    *[call(name) for name in ("__init__", "asymgrpo_load.__call__", "asymgrpo_", "execute_model", "shutdown", "")],
    call("asymgrpo_load"),
    call("asymgrpo_load", name=5),
    call("asymgrpo_load", name="a" * 256),
    call("asymgrpo_load", name="a.safetensors", path="/"),
    call("asymgrpo_digest", version=-1),
    call("asymgrpo_digest", version="1"),
    call("asymgrpo_digest", version=2**63),
    b'{"method": "asymgrpo_digest", "kwargs": {"version": 1}, "args": [1]}',
    b'{"method": "asymgrpo_digest", "kwargs": {"version": 1}, "timeout": 1}',
    b'{"method": ["asymgrpo_digest"], "kwargs": {"version": 1}}',
]


@pytest.mark.parametrize("body", BAD_CALLS)
def test_workers_are_called_by_two_methods_alone(gate, inner, body):
    assert answer(gate, "POST", "/collective_rpc", body)[0] == 400
    assert inner.bodies == []


@pytest.mark.parametrize("version", [5, None, "", "a b", "a\nb", "\x1b[31m", "v" * 65])
def test_a_label_of_weights_is_one_plain_word(gate, inner, version):
    assert answer(gate, "POST", "/update_weight_version", json.dumps({"new_version": version}).encode())[0] == 400
    assert inner.bodies == []


@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/abort_requests"])
@pytest.mark.parametrize("body", [b'{"request_ids": ["a"]}', b"[]", b"1", b"null"])
def test_a_route_without_a_body_takes_none(gate, inner, path, body):
    assert answer(gate, "POST", path, body)[0] == 400
    assert inner.bodies == []


def test_weights_come_from_the_address_of_the_config_alone(inner, monkeypatch):
    """Whoever names the address has vLLM unpickle what a store at that address holds."""
    gate = opened(inner, monkeypatch, NCCL)
    route = "POST", "/init_weight_transfer_engine"
    status, text = answer(
        gate, *route, json.dumps({"init_info": RENDEZVOUS | {"master_address": "10.0.0.66"}}).encode()
    )
    assert (status, json.loads(text)["error"]) == (400, "weights come from 10.0.0.1 alone")
    elsewhere = {"nccl_unique_id_b64": "A" * 172}
    for info in ({}, {"master_address": "10.0.0.1"}, RENDEZVOUS | elsewhere, RENDEZVOUS | {"master_port": 0}):
        assert answer(gate, *route, json.dumps({"init_info": info}).encode())[0] == 400
    update = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}
    for change in ({"dtype_names": ["__loader__"]}, {"ipc_handles_pickled": "gASV"}, {"names": 5}):
        assert answer(gate, "POST", "/update_weights", json.dumps({"update_info": update | change}).encode())[0] == 400
    assert inner.bodies == []


def test_a_body_is_read_up_to_what_the_longest_request_needs(gate, inner):
    largest = 64 * 1024 + 24 * 32
    fits = generate() + b" " * (largest - len(generate()))
    assert answer(gate, "POST", "/inference/v1/generate", fits)[0] == 200
    assert answer(gate, "POST", "/inference/v1/generate", fits + b" ")[0] == 413
    assert answer(gate, "POST", "/inference/v1/generate", [fits, b" "])[0] == 413
    assert answer(gate, "POST", "/reset_prefix_cache", b" " * 65 * 1024)[0] == 413
    assert answer(gate, "GET", "/health", b" " * 65 * 1024)[0] == 413
    assert len(inner.bodies) == 1


def test_a_body_that_does_not_end_is_given_up(gate, inner, monkeypatch):
    monkeypatch.setattr(gate_module, "_BODY_TIMEOUT_S", 0.05)
    unfinished = {"type": "http.request", "body": b"{", "more_body": True}
    assert answer(gate, "POST", "/inference/v1/generate", [unfinished])[0] == 408
    assert answer(gate, "POST", "/inference/v1/generate", [b"{", {"type": "http.disconnect"}])[0] == 400
    assert inner.bodies == []
