"""The sampler that asks servers, against servers that fail in every way but have no model."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import torch
from aiohttp import web

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.server import engine as engine_module
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.engine import ServerEngine
from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings
from tests.support.fake_server import TOKEN, FakeServer, completion_of

SETTINGS = SamplingSettings(temperature=1.0, max_tokens=10, stop_token_ids=(1,))
REQUESTS = [SampleRequest([5, prompt], 100 * prompt + number) for prompt in range(16) for number in range(8)]
WEIGHTS = [("embedding", torch.ones(3, 2)), ("norm", torch.zeros(2))]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def servers(tmp_path):
    started = [FakeServer(tmp_path / "weights") for _ in range(2)]
    yield started
    for server in started:
        server.close()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def start(tmp_path, token_file):
    """Starts an engine on some servers and gives it weights."""
    engines = []

    def _start(servers, label="a run", **options):
        settings = {
            "token_file": token_file,
            "weights_folder": str(tmp_path / "weights"),
            "max_outage_s": 2.0,
        } | options
        engine = ServerEngine(ServerConfig([s.url for s in servers], **settings), "float32", 32, 50, label)
        engines.append(engine)
        engine.load_weights(WEIGHTS)
        return engine

    yield _start
    for engine in engines:
        engine.close()
        engine.close()  # a second time does no harm


def tokens(completions) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


EXPECTED = [completion_of(request.seed) for request in REQUESTS]


def test_completions_come_in_the_order_of_the_requests_from_one_server_or_two(servers, start):
    assert tokens(start(servers[:1]).generate(REQUESTS, SETTINGS)) == EXPECTED
    completions = start(servers).generate(REQUESTS, SETTINGS)
    assert tokens(completions) == EXPECTED
    assert completions[0].logprobs == [-0.5, -1.5, -2.5]
    assert not completions[0].truncated


def test_prompts_are_spread_over_the_servers_and_each_stays_on_one(servers, start):
    start(servers).generate(REQUESTS, SETTINGS)
    first, second = ({tuple(prompt) for prompt in server.prompts} for server in servers)
    assert not first & second
    assert len(first) + len(second) == 16
    assert min(len(server.prompts) for server in servers) >= 32  # of 128: neither idles


def test_no_more_requests_are_in_flight_than_allowed(servers, start):
    start(servers[:1], max_in_flight=5).generate(REQUESTS, SETTINGS)
    assert servers[0].held == 5


def test_weights_travel_in_one_file_that_replaces_the_one_before(servers, start, tmp_path):
    engine = start(servers)
    engine.load_weights(WEIGHTS)
    (file,) = (tmp_path / "weights").iterdir()
    assert [server.loaded[-1] for server in servers] == [file.name] * 2
    assert [len(server.loaded) for server in servers] == [2, 2]
    engine.generate(REQUESTS, SETTINGS)
    assert [len(server.loaded) for server in servers] == [2, 2]  # only where other weights are held
    engine.close()
    assert list((tmp_path / "weights").iterdir()) == []


def test_what_a_run_that_died_left_in_the_folder_is_removed(servers, start, tmp_path):
    engine = start(servers)
    (left,) = (tmp_path / "weights").iterdir()
    kept = left.read_bytes()
    engine.close()
    left.write_bytes(kept)
    (tmp_path / "weights" / "other.safetensors").write_bytes(kept)
    start(servers)
    names = {path.name for path in (tmp_path / "weights").iterdir()}
    assert names == {left.name, "other.safetensors"}  # its own first file has the same name as the one that was left


def test_a_server_that_is_killed_and_started_anew_gets_the_weights_again_and_no_completion_is_lost(servers, start):
    server = servers[0]
    engine = start([server], max_in_flight=16)
    assert engine.digest(1) == WeightDigest(11, 22)
    killed = threading.Event()

    async def die_once(fake, body):
        if not killed.is_set() and len(fake.prompts) >= 40:
            killed.set()
            threading.Thread(target=restart).start()
            await asyncio.sleep(30)

    def restart():
        server.kill()
        time.sleep(0.2)
        server.start()

    server.fault = die_once
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert killed.is_set()
    assert len(server.loaded) == 2
    assert server.loaded[0] == server.loaded[1]


def test_the_other_server_takes_over_what_a_dead_one_had(servers, start, capsys):
    engine = start(servers, max_in_flight=16)

    async def die(fake, body):
        if len(fake.prompts) >= 10:
            threading.Thread(target=fake.kill).start()
            await asyncio.sleep(30)

    servers[0].fault = die
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert f"The sampler server {servers[0].url} does not answer" in capsys.readouterr().out
    servers[0].fault = None
    servers[0].start()
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert f"The sampler server {servers[0].url} answers again" in capsys.readouterr().out
    assert len(servers[0].loaded) == 2


def test_a_dead_server_ends_the_run_within_the_limit_and_with_the_reason(servers, start):
    engine = start(servers[:1], max_outage_s=0.5)
    servers[0].kill()
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"no sampler server answered for 0.5 s .*{servers[0].url}: Client"):
        engine.generate(REQUESTS, SETTINGS)
    assert time.monotonic() - began < 5
    servers[0].start()


def test_a_request_that_never_ends_is_given_up_and_asked_again(servers, start):
    stuck = []

    async def hang_once(fake, body):
        if len(stuck) < 3:
            stuck.append(body)
            await asyncio.sleep(60)

    servers[0].fault = hang_once
    engine = start(servers[:1], request_timeout_s=0.3)
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert len(stuck) == 3


def test_a_request_that_fails_each_time_stops_the_run_with_the_reason(servers, start):
    async def fail(fake, body):
        return web.Response(status=500, text="out of memory") if body["token_ids"] == [5, 3] else None

    for server in servers:
        server.fault = fail
    with pytest.raises(RunError, match=r"a completion failed 3 times .* it answered 500: out of memory"):
        start(servers).generate(REQUESTS, SETTINGS)


def test_completions_from_other_weights_are_thrown_away(servers, start):
    server = servers[0]
    old = []

    async def sample_from_old_weights(fake, body):
        if len(old) < 20:
            old.append(body)
            return fake.answer(body | {"sampling_params": {"seed": 1}}, version="an older one")
        return None

    server.fault = sample_from_old_weights
    assert tokens(start([server], max_attempts=20).generate(REQUESTS, SETTINGS)) == EXPECTED
    assert old


def test_a_server_that_always_samples_from_other_weights_stops_the_run(servers, start):
    async def sample_from_old_weights(fake, body):
        return fake.answer(body, version="another run's")

    servers[0].fault = sample_from_old_weights
    with pytest.raises(RunError, match=r"sampled from the weights another run's in place of \w+:1"):
        start(servers[:1]).generate(REQUESTS, SETTINGS)


def test_two_runs_on_one_server_push_in_turn_and_neither_trains_on_the_others(servers, start):
    first, second = start(servers[:1], "one run"), start(servers[:1], "another run")
    for _ in range(2):
        assert tokens(first.generate(REQUESTS, SETTINGS)) == EXPECTED
        assert tokens(second.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert len(servers[0].loaded) == 6  # each at its start, and then at each change of hands


def test_an_aborted_completion_is_sampled_again(servers, start):
    aborted = []

    async def abort_once(fake, body):
        if not aborted:
            aborted.append(body)
            return fake.answer(body, reason="abort")
        return None

    servers[0].fault = abort_once
    assert tokens(start(servers[:1]).generate(REQUESTS, SETTINGS)) == EXPECTED


def test_a_server_that_came_back_with_other_weights_than_it_was_sent_stops_the_run(servers, start):
    engine = start(servers[:1])
    engine.digest(1)
    servers[0].kill()
    servers[0].digest["linear"] = "12"
    servers[0].start()
    with pytest.raises(
        RunError, match=r"sent the weights again, but their digest is 0+b-0+16 and the server's 0+c-0+16"
    ):
        engine.generate(REQUESTS, SETTINGS)


def test_a_server_that_came_back_with_other_settings_stops_the_run(servers, start):
    engine = start(servers[:1])
    servers[0].kill()
    servers[0].info["dtype"] = "bfloat16"
    servers[0].start()
    with pytest.raises(RunError, match=r"computes in bfloat16 .*, this run in float32"):
        engine.generate(REQUESTS, SETTINGS)
    assert len(servers[0].loaded) == 1


def test_servers_that_hold_different_weights_stop_the_run(servers, start):
    engine = start(servers)
    servers[1].digest["other"] = "23"
    with pytest.raises(RunError, match=r"hold different weights, by their digests: http.* 0+b-0+16, http.* 0+b-0+17"):
        engine.digest(1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": []}, "could not be read"),
        ({}, "could not be read: choices: Field required"),
        ({"choices": [{"finish_reason": "stop", "token_ids": ["x"]}]}, "could not be read"),
    ],
)
def test_an_answer_that_makes_no_sense_stops_the_run(servers, start, answer, reason):
    async def babble(fake, body):
        return web.json_response(answer)

    servers[0].fault = babble
    with pytest.raises(RunError, match=rf"a completion failed 3 times .*{reason}"):
        start(servers[:1]).generate(REQUESTS, SETTINGS)


def test_a_request_that_the_server_refuses_is_not_repeated(servers, start):
    async def refuse(fake, body):
        return web.json_response({"error": "the prompt is too long"}, status=400)

    servers[0].fault = refuse
    with pytest.raises(RunError, match=r"answered 400 to /inference/v1/generate: .*the prompt is too long"):
        start(servers[:1]).generate(REQUESTS[:1], SETTINGS)
    assert servers[0].counts["/inference/v1/generate"] == 1


def test_a_wrong_token_is_said_at_once(servers, start, tmp_path):
    (tmp_path / "other").write_text("another-token-of-some-length")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(RunError, match=r"refused the token \(rollout.server.token_file\)"):
        start(servers, token_file=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (
            {"max_model_len": 31, "dtype": "float32", "vocabulary": 50},
            "with at most 31 tokens, this run .* with up to 32",
        ),
        (
            {"max_model_len": 32, "dtype": "bfloat16", "vocabulary": 50},
            "computes in bfloat16 .*, this run in float32",
        ),
        (
            {"max_model_len": 32, "dtype": "float32", "vocabulary": 51},
            "has a model of 51 token ids, this run's policy knows 50",
        ),
    ],
)
def test_a_server_with_other_settings_is_refused(servers, start, info, reason):
    servers[0].info = info
    with pytest.raises(RunError, match=reason):
        start(servers)


def test_a_server_that_keeps_answering_nonsense_is_as_one_that_is_down(servers, start, capsys):
    servers[0].info = {"object": "list"}
    engine = start(servers)  # the other one samples
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    nonsense = "its answer to /asymgrpo/info could not be read: max_model_len: Field required"
    assert f"The sampler server {servers[0].url} does not answer ({nonsense})" in capsys.readouterr().out
    with pytest.raises(RunError, match=f"no sampler server answered for 0.3 s .*: {nonsense}"):
        start(servers[:1], max_outage_s=0.3)


def test_a_server_that_was_not_started_by_serve_is_refused(servers, start):
    servers[0].proves = False
    with pytest.raises(RunError, match="was not started by `asymgrpo serve`"):
        start(servers)


def test_a_token_that_changes_on_both_sides_costs_no_completion(servers, start, token_file):
    engine = start(servers[:1])
    servers[0].token = "the-token-after-this-one"
    threading.Timer(0.3, lambda: Path(token_file).write_text("the-token-after-this-one")).start()
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED
    assert len(servers[0].loaded) == 1


def test_a_folder_that_the_server_does_not_see_is_said(servers, start, tmp_path):
    servers[0].weights = tmp_path / "elsewhere"
    with pytest.raises(RunError, match="could not load weights: there is no file asymgrpo-"):
        start(servers[:1])


def test_an_exception_from_a_signal_leaves_the_engine_at_once_and_usable(servers, start):
    class Stop(BaseException): ...

    engine = start(servers[:1])

    async def hang(fake, body):
        await asyncio.sleep(60)

    def stop(*_):
        raise Stop

    import signal

    servers[0].fault = hang
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Stop):
            engine.generate(REQUESTS, SETTINGS)
    finally:
        signal.signal(signal.SIGALRM, before)
    servers[0].fault = None
    assert tokens(engine.generate(REQUESTS, SETTINGS)) == EXPECTED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": []}, "rollout.server.urls is empty"),
        ({"urls": ["localhost:8000"]}, "localhost:8000 is no address like"),
        ({"urls": ["http://a:1/?x=1"]}, "http://a:1/?x=1 is no address like"),
        ({"urls": ["http://me:secret@a:1"]}, "is no address like"),
        ({"urls": ["http://:secret@a:1"]}, "is no address like"),
        ({"certificate_file": "a.pem"}, "rollout.server.certificate_file is set, but http://a:1 has none: use https"),
        ({"urls": ["http://a:99999"]}, "http://a:99999 is no address like"),
        ({"urls": ["http://a:1", "http://a:1"]}, "names a server twice"),
        ({"weights_folder": None}, "rollout.server.weights_folder is not set"),
        ({"transfer": "nccl"}, "rollout.server.nccl_address is not set"),
        ({"max_in_flight": 0}, "rollout.server.max_in_flight must be at least 1, got 0"),
        ({"max_attempts": 0}, "rollout.server.max_attempts must be at least 1, got 0"),
        ({"request_timeout_s": 0.0}, "rollout.server.request_timeout_s must be a finite number > 0, got 0.0"),
        ({"max_outage_s": float("inf")}, "rollout.server.max_outage_s must be a finite number > 0, got inf"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError) as caught:
        ServerConfig(**{"urls": ["http://a:1"], "weights_folder": "/tmp", **options})
    assert message in str(caught.value)


def test_a_weights_folder_that_cannot_be_written_is_refused(servers, start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"rollout.server.weights_folder .*file cannot be written \(File exists\)"):
        start(servers, weights_folder=str(tmp_path / "file"))
