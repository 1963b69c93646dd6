"""A real vLLM server: the same completions as in process, every route closed, and a run that outlives it."""

import json
import re
import threading
import time
from pathlib import Path

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import named_weights
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.engine import ServerEngine
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
        engine = ServerEngine(config, "float32", 32, "the contract")
        engine.load_weights(named_weights(policy))
        yield engine
        engine.close()


def test_every_route_asks_for_the_token(server):
    status, text = server.ask("/openapi.json")
    assert status == 200
    routes = [(path, method.upper()) for path, methods in json.loads(text)["paths"].items() for method in methods]
    names = {path for path, _ in routes}
    # Those that change weights or call into the workers are among them: vLLM's own key leaves them open.
    assert {"/collective_rpc", "/update_weights", "/update_weight_version", "/pause", "/sleep"} <= names
    assert len(routes) > 40
    unlisted = [("/docs", "GET"), ("/metrics", "GET"), ("/openapi.json", "GET"), ("/nothing/here", "GET"), ("/", "PUT")]
    for path, method in [*routes, *unlisted]:
        status, text = server.ask(re.sub(r"\{.*?\}", "x", path), token=False, method=method)
        assert (status, "a token is required" in text) == (401, True), (path, method)
    assert server.ask("/weight_info", token=False, method="OPTIONS")[0] == 401


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
