"""The requests that a run makes to a sampler server, and their way through its gate."""

import asyncio
import json

from asymgrpo_app.rollout.server.gate import ServerInfo

TOKEN = "a-token-for-the-tests"
RIGHT = (b"authorization", f"Bearer {TOKEN}".encode())
INFO = ServerInfo(max_model_len=32, dtype="float32", vocabulary=10)
NCCL = INFO.model_copy(update={"nccl_address": "10.0.0.1"})
SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "max_tokens": 8,
    "seed": 5,
    "ignore_eos": True,
    "stop_token_ids": [1],
    "logprobs": 0,
    "detokenize": False,
}
GENERATE = {"token_ids": [2, 3], "sampling_params": SAMPLING}
ALLOWED = [
    ("GET", "/health", b""),
    ("GET", "/weight_info", b""),
    ("GET", "/get_world_size", b""),
    ("POST", "/reset_prefix_cache", b""),
    ("POST", "/abort_requests", b"{}"),
    ("POST", "/update_weight_version", b'{"new_version": "0af3:12"}'),
    ("POST", "/collective_rpc", b'{"method": "asymgrpo_load", "kwargs": {"name": "a.safetensors"}}'),
    ("POST", "/collective_rpc", b'{"method": "asymgrpo_digest", "kwargs": {"version": 3}}'),
    ("POST", "/inference/v1/generate", json.dumps(GENERATE).encode()),
]
RENDEZVOUS = {
    "master_address": "10.0.0.1",
    "master_port": 29500,
    "rank_offset": 1,
    "world_size": 2,
    "packed": True,
    "packed_buffer_size_bytes": 2**30,
    "packed_num_buffers": 2,
}
NCCL_ALLOWED = [
    ("POST", "/init_weight_transfer_engine", json.dumps({"init_info": RENDEZVOUS}).encode()),
    ("POST", "/start_weight_update", b""),
    ("POST", "/update_weights", b'{"update_info": {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}}'),
    ("POST", "/finish_weight_update", b""),
    ("POST", "/shutdown_weight_transfer_engine", b""),
]


def answer(app, method="GET", path="/health", body=b"", headers=(RIGHT,), **scope):
    """Status and body of the answer to a request; a body that is a list comes in these chunks."""
    sent, chunks = [], body if isinstance(body, list) else [body]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks[:-1]]
    messages.append(chunks[-1] if isinstance(chunks[-1], dict) else {"type": "http.request", "body": chunks[-1]})
    messages[-1].setdefault("more_body", False)

    async def receive():
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": list(headers)} | scope
    asyncio.run(app(scope, receive, send))
    return sent[0].get("status", sent[0]["type"]), sent[-1].get("body", b"").decode()
