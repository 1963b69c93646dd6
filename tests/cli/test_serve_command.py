"""`asymgrpo serve` up to the moment at which it becomes vLLM, and the token in front of every route."""

import asyncio
import json
import os
import socket
import stat

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.cli import serve as serve_command
from asymgrpo_app.rollout.server.auth import TokenMiddleware
from tests.support.paths import REPOSITORY

TOKEN = "a-token-for-the-tests"


@pytest.fixture
def started(monkeypatch):
    """What `serve` would have become: the command and the environment."""
    found = {}

    def execv(program, words):
        found["command"], found["environment"] = words, dict(os.environ)

    monkeypatch.setattr(serve_command.os, "execv", execv)
    for name in ("ASYMGRPO_TOKEN", "ASYMGRPO_SERVER_INFO", "ASYMGRPO_WEIGHTS_FOLDER", "VLLM_SERVER_DEV_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serve_command.os, "environ", dict(os.environ))
    return found


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(started, port, tmp_path):
    """Runs `serve` for the quick start; returns the exit code."""

    def _serve(*options, token=True, folder=True):
        chosen = [f"--token_file={tmp_path / 'token'}"] if token else []
        chosen += [f"--weights_folder={tmp_path}"] if folder else []
        config = [
            f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
            f"--model.policy={REPOSITORY / 'data/countdown_base'}",
        ]
        try:
            return main(["serve", f"--port={port}", *chosen, *config, *options])
        except TypeError:  # execv does not return; ours returns nothing
            return None

    return _serve


def option(command, name):
    return command[command.index(name) + 1]


def test_it_becomes_vllm_with_the_settings_of_the_run(serve, started, port, tmp_path):
    serve(
        "--rollout.max_completion_tokens=20", "--trainer.precision=bf16-mixed", "--rollout.engine.extra.block_size=64"
    )
    command, environment = started["command"], started["environment"]
    assert command[1:3] == ["-m", "asymgrpo_app.rollout.server.process"]
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--port") == str(port)
    assert option(command, "--model") == str(REPOSITORY / "data/countdown_base")
    assert option(command, "--dtype") == "bfloat16"
    assert option(command, "--max-model-len") == "36"
    assert option(command, "--max-num-seqs") == "512"
    assert option(command, "--logprobs-mode") == "processed_logprobs"
    assert option(command, "--generation-config") == "vllm"
    assert option(command, "--middleware") == "asymgrpo_app.rollout.server.auth.TokenMiddleware"
    assert option(command, "--worker-extension-cls") == "asymgrpo_app.rollout.server.worker.SamplerWorker"
    assert option(command, "--block-size") == "64"
    assert "--no-trust-remote-code" in command
    assert "--no-enable-chunked-prefill" in command
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["ASYMGRPO_WEIGHTS_FOLDER"] == str(tmp_path)
    info = json.loads(environment["ASYMGRPO_SERVER_INFO"])
    assert (info["max_model_len"], info["dtype"]) == (36, "bfloat16")


def test_a_fresh_token_is_long_and_for_its_owner_alone(serve, started, tmp_path):
    serve()
    path = tmp_path / "token"
    token = path.read_text().strip()
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert started["environment"]["ASYMGRPO_TOKEN"] == token
    assert token not in " ".join(started["command"])
    serve()
    assert path.read_text().strip() == token


def test_the_token_may_come_from_the_environment(serve, started, monkeypatch):
    serve_command.os.environ["ASYMGRPO_TOKEN"] = TOKEN
    serve(token=False)
    assert started["environment"]["ASYMGRPO_TOKEN"] == TOKEN


def test_weights_over_nccl_need_no_folder(serve, started):
    serve(
        '--rollout.server={"urls": ["http://a:1"], "transfer": "nccl", "nccl_address": "10.0.0.1"}',
        "--rollout.sampler=server",
        folder=False,
    )
    assert json.loads(option(started["command"], "--weight-transfer-config")) == {"backend": "nccl"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_can_reach_takes_an_option(serve, started, host, capsys):
    assert serve(f"--host={host}") == 2
    assert f"--host {host} can be reached from other machines: add --allow_public" in capsys.readouterr().err
    assert started == {}
    serve("--host=0.0.0.0", "--allow_public")
    assert option(started["command"], "--host") == "0.0.0.0"


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ([], {"token": False}, "the environment variable ASYMGRPO_TOKEN holds none"),
        ([], {"folder": False}, "--weights_folder must be the folder that the run writes its weights to, got None"),
        (
            ["--weights_folder=/nowhere/at/all"],
            {},
            "--weights_folder must be the folder that the run writes its weights",
        ),
        (["--port=70000"], {}, "--port must be in 1 to 65535, got 70000"),
        (["--host=no.such.host.invalid"], {}, "--host no.such.host.invalid is no address"),
        (["--rollout.engine.max_num_seqs=0"], {}, "rollout.engine.max_num_seqs must be at least 1, got 0"),
        (["--rollout.engine.max_model_len=20"], {}, "rollout.engine.max_model_len is 20, but prompts and completions"),
        (["--model.policy=./nothing"], {}, "model.policy: there is no folder ./nothing"),
        (["--no_such_option=1"], {}, "no_such_option"),
        (["--token_file=/nowhere/token"], {}, "--token_file /nowhere/token cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_vllm_starts(serve, started, options, given, message, capsys):
    serve_command.os.environ.pop("ASYMGRPO_TOKEN", None)
    assert serve(*options, **given) == 2
    error = capsys.readouterr().err
    assert error.startswith("asymgrpo: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert started == {}


def test_a_port_in_use_is_said(serve, port, capsys):
    with socket.create_server(("127.0.0.1", port)):
        assert serve() == 2
    assert f"--port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_a_short_token_is_refused(serve, tmp_path, capsys):
    (tmp_path / "token").write_text("secret")
    assert serve() == 2
    assert (
        f"at least 16 printable ASCII characters without spaces, and --token_file {tmp_path / 'token'} holds none"
        in (capsys.readouterr().err)
    )


# ---- the middleware alone ----


async def inner(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def answer(app, kind="http", path="/", headers=(), extensions=()):
    """The messages that an application sends for one request."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": list(headers), "extensions": {name: {} for name in extensions}}
    asyncio.run(app(scope, None, send))
    return sent


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setenv("ASYMGRPO_TOKEN", TOKEN)
    monkeypatch.setenv("ASYMGRPO_SERVER_INFO", '{"dtype": "float32"}')
    return TokenMiddleware(inner)


RIGHT = (b"authorization", f"Bearer {TOKEN}".encode())


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", f"Bearer {TOKEN[:-1]}".encode())],
        [(b"authorization", f"Bearer {TOKEN} ".encode())],
        [(b"authorization", f"Basic {TOKEN}".encode())],
        [(b"authorization", "Bearer \u00e9".encode())],
        [RIGHT, (b"authorization", b"Bearer another")],
        [(b"x-api-key", TOKEN.encode())],
        [(b"cookie", f"authorization=Bearer {TOKEN}".encode())],
    ],
)
def test_without_the_very_token_the_answer_is_401(app, headers):
    start, body = answer(app, headers=headers, path="/collective_rpc")
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    assert b"inside" not in body["body"]


def test_with_it_the_request_passes(app):
    start, body = answer(app, headers=[(b"Authorization", RIGHT[1])])
    assert (start["status"], body["body"]) == (200, b"inside")


def test_the_server_tells_what_it_was_started_with_to_those_who_may_know(app):
    assert answer(app, path="/asymgrpo/info")[0]["status"] == 401
    assert answer(app, path="/asymgrpo/info", headers=[RIGHT])[1]["body"] == b'{"dtype": "float32"}'


def test_a_websocket_without_the_token_is_refused(app):
    for extensions in ([], ["websocket.http.response"]):
        (closed,) = answer(app, kind="websocket", extensions=extensions)
        assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


def test_without_any_token_the_server_does_not_start(monkeypatch):
    monkeypatch.delenv("ASYMGRPO_TOKEN", raising=False)
    with pytest.raises(RuntimeError, match="ASYMGRPO_TOKEN is not set"):
        TokenMiddleware(inner)
