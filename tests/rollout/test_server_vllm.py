"""A real vLLM server: the same completions as in process, every route closed, and a run that outlives it."""

import stat
import threading
import time
from pathlib import Path

import psutil
import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import named_weights
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.engine import ServerEngine
from asymgrpo_app.rollout.types import SamplingSettings
from asymgrpo_app.rollout.vllm_engine import sampling_arguments
from tests.support.certificate import made_certificate
from tests.support.engine_contract import EngineContract
from tests.support.paths import QUICKSTART
from tests.support.recorder import recorded
from tests.support.served import Served
from tests.support.shared_engine import kept
from tests.support.states import assert_same, weights


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("server"), "--rollout.engine.max_model_len=32")
    server.wait()
    yield server
    server.close()
    assert server.members() == []


class TestServerEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy, server):
        config = ServerConfig([server.url], str(server.token_file), weights_folder=str(server.weights))
        engine = ServerEngine(config, "float32", 32, 17, "the contract")
        engine.load_weights(named_weights(policy))
        yield engine
        engine.close()


# Routes of vLLM's own with which a token's holder could do more than sample; with its own key some are open to all.
ROUTES = [
    *[("/openapi.json", "GET"), ("/docs", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/version", "GET")],
    *[("/server_info", "GET"), ("/is_sleeping", "GET"), ("/nothing/here", "GET"), ("/", "PUT"), ("/load", "GET")],
    *[("/v1/completions", "POST"), ("/v1/chat/completions", "POST"), ("/tokenize", "POST"), ("/invocations", "POST")],
    *[("/pause", "POST"), ("/resume", "POST"), ("/sleep", "POST"), ("/wake_up", "POST"), ("/weight_checker", "POST")],
    *[("/update_weights", "POST"), ("/init_weight_transfer_engine", "POST"), ("/start_weight_update", "POST")],
    *[("/inference/v1/abort_requests", "POST"), ("/render", "POST"), ("/reset_mm_cache", "POST")],
]
OURS = [
    *[("/health", "GET"), ("/weight_info", "GET"), ("/get_world_size", "GET"), ("/asymgrpo/info", "GET")],
    *[("/collective_rpc", "POST"), ("/inference/v1/generate", "POST"), ("/update_weight_version", "POST")],
]


def test_every_route_asks_for_the_token(server):
    for path, method in ROUTES + OURS:
        status, text = server.ask(path, token=False, method=method)
        assert (status, text) == (401, '{"error":"a token is required"}'), (path, method)
    assert server.ask("/weight_info", token=False, method="OPTIONS")[0] == 401


def test_with_the_token_there_are_the_routes_of_a_run_alone(server):
    for path, method in ROUTES:
        assert server.ask(path, method=method) == (404, '{"error":"there is no such route"}'), (path, method)


GENERATE = {
    "token_ids": [2, 3],
    "sampling_params": sampling_arguments(5, SamplingSettings(temperature=1.0, max_tokens=4, stop_token_ids=(1,))),
}


def test_requests_that_would_break_it_do_not_reach_it_and_it_lives_on(server, tmp_path):
    sampling = GENERATE["sampling_params"]
    for body, reason in [
        (GENERATE | {"token_ids": [2, 17]}, "a token id is not in 0 to 16"),
        (GENERATE | {"token_ids": [2, 2**70]}, "a token id is not in 0 to 16"),
        (GENERATE | {"token_ids": [2, -1]}, "a token id is not in 0 to 16"),
        (GENERATE | {"token_ids": [2] * 33}, "have up to 37 tokens, this server takes 32"),
        (GENERATE | {"sampling_params": sampling | {"stop_token_ids": [10**6]}}, "a token id is not in 0 to 16"),
        (GENERATE | {"sampling_params": sampling | {"logprobs": -1}}, "sampling_params.logprobs"),
    ]:
        status, text = server.ask("/inference/v1/generate", method="POST", body=body)
        assert (status, reason in text) == (400, True), (body, text)
    large = GENERATE | {"token_ids": [2] * 10**6}
    assert server.ask("/inference/v1/generate", method="POST", body=large)[0] == 413
    written = tmp_path / "written"
    for method, kwargs in [
        ("save_sharded_state", {"path": str(written)}),
        ("update_environment_variables", {"envs_list": [{"A": "b"}]}),
        ("asymgrpo_load", {"name": "a", "path": str(written)}),
    ]:
        status, _ = server.ask("/collective_rpc", method="POST", body={"method": method, "kwargs": kwargs})
        assert status == 400, method
    status, text = server.ask(
        "/collective_rpc", method="POST", body={"method": "asymgrpo_load", "kwargs": {"name": "/x"}}
    )
    assert (status, "finds no weights '/x'" in text) == (200, True)
    assert not written.exists()
    assert server.ask("/inference/v1/generate", method="POST", body=GENERATE)[0] == 200


def test_its_processes_listen_on_the_loopback_and_their_files_are_private(server):
    listening = [
        connection.laddr.ip
        for pid in server.members()
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5  # the server, and those between its processes
    assert set(listening) == {"127.0.0.1"}
    assert psutil.Process(server.process.pid).children()[0].environ()["GLOO_SOCKET_IFNAME"] == "lo"
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "asymgrpo-vllm-" in line]
    folders = {Path(socket).parent for socket in sockets}
    assert folders
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in folder.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("seconds", [2.0, 8.0, 14.0, 20.0])
def test_a_signal_while_it_starts_ends_it_soon_and_nothing_is_left(tmp_path, seconds):
    before = set(Path("/tmp").glob("asymgrpo-vllm-*"))
    server = Served(tmp_path / "server")
    try:
        time.sleep(seconds)
        server.process.terminate()
        assert server.process.wait(12) == 143
        assert server.members() == []
        assert set(Path("/tmp").glob("asymgrpo-vllm-*")) <= before
    finally:
        server.close()


@pytest.mark.long
def test_a_run_through_tls_pins_the_certificate(quickstart, in_process, tmp_path, capsys):
    server = Served(tmp_path / "server", certificate=made_certificate(tmp_path / "certificate"))
    try:
        server.wait()
        run = tmp_path / "run"
        assert fit(quickstart, run, *server.for_the_run) == 0
        assert completions(run) == completions(in_process)
        other = made_certificate(tmp_path / "other").file
        options = [f"--rollout.server.certificate_file={other}", "--rollout.server.max_outage_s=1"]
        assert fit(quickstart, tmp_path / "other run", *server.for_the_run, *options) == 1
        assert "no sampler server answered for 1 s" in (error := capsys.readouterr().err)
        assert "ServerFingerprintMismatch" in error
    finally:
        server.close()


def fit(quickstart: list[str], run: Path, *options: str) -> int:
    """A short run that records its completions beside its folder."""
    recorder = ["--trainer.callbacks=tests.support.recorder.Recorder", f"--trainer.callbacks.path={run}.jsonl"]
    return main([*quickstart, *SMALL, *recorder, *options, f"--run_dir={run}"])


def completions(run: Path) -> list[list[list[list[int]]]]:
    """The tokens of every completion: [step][prompt][sample]."""
    lines = recorded(Path(f"{run}.jsonl"))
    return [[[tokens for tokens, _, _ in group] for group in line["groups"]] for line in lines]


SMALL = [
    "--steps=6",
    "--data.prompts_per_step=16",
    "--data.validation={}",
    "--checkpoint.every_n_steps=1",
    "--checkpoint.keep=null",
    "--model.optimizer.lr=1e-3",
]


@pytest.fixture(scope="module")
def in_process(engine, tmp_path_factory):
    """The run that samples in its own process, with the engine that the module's runs share."""
    from asymgrpo_app.callbacks import rollout

    run = tmp_path_factory.mktemp("in process") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", lambda *arguments: kept(engine))
        assert fit(["fit", *QUICKSTART], run) == 0
    return run


def test_a_run_through_a_server_has_the_weights_of_one_in_process(server, quickstart, in_process, tmp_path):
    run = tmp_path / "run"
    assert fit(quickstart, run, *server.for_the_run) == 0
    assert completions(run) == completions(in_process)
    assert_same(weights(run, 6), weights(in_process, 6))
    assert list(server.weights.iterdir()) == []


@pytest.mark.long
def test_two_servers_are_as_one(server, quickstart, in_process, tmp_path):
    second = Served(server.folder)  # with the same token and the same folder for weights
    try:
        second.wait()
        both = f"--rollout.server.urls=[{server.url},{second.url}]"
        run = tmp_path / "run"
        assert fit(quickstart, run, *server.for_the_run, both) == 0
        assert completions(run) == completions(in_process)
        assert_same(weights(run, 6), weights(in_process, 6))
    finally:
        second.close()


@pytest.mark.long
def test_a_server_killed_in_the_middle_of_a_step_and_started_anew_costs_nothing_but_time(
    quickstart, in_process, tmp_path, monkeypatch, capsys
):
    server = Served(tmp_path / "server")
    orphans = []

    def kill_and_restart():
        """Kill it while it samples the fourth step, and play the supervisor."""
        first = server.members()
        server.kill()
        time.sleep(1)
        orphans.extend(pid for pid in server.members() if pid in first)
        server.start()

    generate, calls = ServerEngine.generate, []

    def watched(self, requests, settings):
        calls.append(len(requests))
        if len(calls) == 4:
            threading.Timer(0.05, kill_and_restart).start()
        return generate(self, requests, settings)

    monkeypatch.setattr(ServerEngine, "generate", watched)
    try:
        server.wait()
        run = tmp_path / "run"
        assert fit(quickstart, run, *server.for_the_run) == 0
    finally:
        server.close()
    said = capsys.readouterr().out
    assert f"The sampler server {server.url} does not answer" in said
    assert f"The sampler server {server.url} answers again" in said
    assert orphans == []
    for step in range(1, 7):
        assert_same(weights(run, step), weights(in_process, step), f"step {step}")


@pytest.mark.long
def test_no_process_of_a_killed_server_lives_on(tmp_path):
    server = Served(tmp_path / "server")
    try:
        server.wait()
        assert len(server.members()) >= 3  # the server, its engine and a worker
        server.kill()
        time.sleep(1)
        assert server.members() == []
    finally:
        server.close()


@pytest.mark.long
def test_a_server_that_stays_dead_ends_the_run_with_the_reason_and_loses_no_step(
    quickstart, tmp_path, monkeypatch, capsys
):
    server = Served(tmp_path / "server")
    generate, calls = ServerEngine.generate, []

    def watched(self, requests, settings):
        calls.append(len(requests))
        if len(calls) == 4:
            threading.Timer(0.05, server.kill).start()
        return generate(self, requests, settings)

    monkeypatch.setattr(ServerEngine, "generate", watched)
    try:
        server.wait()
        run = tmp_path / "run"
        limit = "--rollout.server.max_outage_s=3"
        assert fit(quickstart, run, *server.for_the_run, limit) == 1
    finally:
        server.close()
    error = capsys.readouterr().err
    assert f"no sampler server answered for 3 s (rollout.server.max_outage_s): {server.url}: Client" in error
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000003.ckpt"
