"""`asymgrpo serve` up to the moment at which it becomes vLLM."""

import json
import os
import socket
import stat
import subprocess

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.cli import serve as serve_command
from tests.support.certificate import made_certificate
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
def certificate(tmp_path):
    return made_certificate(tmp_path / "certificate")


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
    (value,) = [word.partition("=")[2] for word in command if word.partition("=")[0] == name]
    return value


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
    assert option(command, "--middleware") == "asymgrpo_app.rollout.server.gate.Gate"
    assert option(command, "--worker-extension-cls") == "asymgrpo_app.rollout.server.worker.SamplerWorker"
    assert option(command, "--block-size") == "64"
    assert "--no-trust-remote-code" in command
    assert "--no-enable-chunked-prefill" in command
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["ASYMGRPO_WEIGHTS_FOLDER"] == str(tmp_path)
    info = json.loads(environment["ASYMGRPO_SERVER_INFO"])
    assert info == {"max_model_len": 36, "dtype": "bfloat16", "vocabulary": 17, "nccl_address": None}
    assert [word.partition("=")[0] for word in command[-2:]] == ["--host", "--port"]  # the last one counts


def test_a_fresh_token_is_long_and_for_its_owner_alone(serve, started, tmp_path):
    serve()
    path = tmp_path / "token"
    token = path.read_text().strip()
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    environment = started["environment"]
    assert (environment["ASYMGRPO_TOKEN_FILE"], environment["ASYMGRPO_TOKEN"]) == (str(path), "")
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
    assert json.loads(started["environment"]["ASYMGRPO_SERVER_INFO"])["nccl_address"] == "10.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_can_reach_takes_an_option(serve, started, host, capsys):
    assert serve(f"--host={host}") == 2
    error = capsys.readouterr().err
    assert f"--host {host} can be reached from other machines: add --allow_public" in error
    assert "the token travels unencrypted" in error
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
        (["--key_file=key.pem"], {}, "--certificate_file and --key_file belong together"),
        (
            ["--certificate_file=/nowhere", "--key_file=/nowhere"],
            {},
            "--certificate_file /nowhere cannot be read (No su",
        ),
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
    (tmp_path / "token").chmod(0o600)
    assert serve() == 2
    assert (
        f"at least 16 printable ASCII characters without spaces, and --token_file {tmp_path / 'token'} holds none"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_token_that_others_can_read_or_change_is_refused(serve, started, tmp_path, mode, capsys):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(mode)
    assert serve() == 2
    assert f"--token_file {path} is open to other users: chmod 600 {path}." in capsys.readouterr().err
    path.chmod(0o640)  # a volume of Kubernetes, which its group may read
    serve()
    assert started


def test_a_pipe_in_the_place_of_the_token_does_not_hang(serve, tmp_path, capsys):
    os.mkfifo(tmp_path / "token", 0o600)
    assert serve() == 2
    assert f"--token_file {tmp_path / 'token'} is no regular file" in capsys.readouterr().err


# ---- TLS ----


def test_a_certificate_and_its_key_make_it_https(serve, started, certificate, capsys):
    serve(f"--certificate_file={certificate.file}", f"--key_file={certificate.key}")
    assert option(started["command"], "--ssl-certfile") == str(certificate.file)
    assert option(started["command"], "--ssl-keyfile") == str(certificate.key)
    assert "Starting vLLM on https://127.0.0.1:" in capsys.readouterr().out


def test_with_tls_nothing_is_said_of_an_unencrypted_token(serve, certificate, capsys):
    assert serve("--host=0.0.0.0", f"--certificate_file={certificate.file}", f"--key_file={certificate.key}") == 2
    error = capsys.readouterr().err
    assert "--host 0.0.0.0 can be reached from other machines: add --allow_public if that is what you want.\n" in error


def test_a_key_of_another_certificate_or_with_a_password_is_refused(serve, started, certificate, tmp_path, capsys):
    other = made_certificate(tmp_path / "other")
    locked = tmp_path / "locked.pem"
    words = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", certificate.key, "-out", locked]
    subprocess.run(words, check=True, capture_output=True)
    locked.chmod(0o600)
    for key in (other.key, locked):
        assert serve(f"--certificate_file={certificate.file}", f"--key_file={key}") == 2
        assert f"--key_file {key} is not the unencrypted key of --certificate_file" in capsys.readouterr().err
    other.key.chmod(0o644)
    assert serve(f"--certificate_file={other.file}", f"--key_file={other.key}") == 2
    assert f"--key_file {other.key} is open to other users" in capsys.readouterr().err
    assert started == {}


# ---- its environment ----


def test_its_processes_listen_on_the_loopback_unless_the_user_wants_another_place(serve, started):
    for name in ("GLOO_SOCKET_IFNAME", "VLLM_HOST_IP"):
        serve_command.os.environ.pop(name, None)
    serve()
    found = started["environment"]
    assert (found["GLOO_SOCKET_IFNAME"], found["VLLM_HOST_IP"]) == ("lo", "127.0.0.1")
    serve_command.os.environ["GLOO_SOCKET_IFNAME"] = "eth7"
    serve()
    assert started["environment"]["GLOO_SOCKET_IFNAME"] == "eth7"
