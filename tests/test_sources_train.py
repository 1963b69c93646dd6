"""Every kind of source trains on real vLLM, with its own kind of answer."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asymgrpo_app.cli import main
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.small_chat_policy import make

ROWS = [{"problem": f"What is {n} + {n}?", "solution": {"text": n + n}} for n in range(20)]
FIELDS = {"prompt_field": "problem", "answer_field": "solution.text"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(policy):
    """Takes the place of the common engine: the policy is another one."""
    engine = VLLMEngine(policy, VLLMEngineConfig(max_num_seqs=64), "float32", max_model_len=408)
    yield engine
    engine.close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's own cache with one data set in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    repository, commit = tmp_path / "hub/datasets--someone--sums", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def json_lines(folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "class_path": "JsonLines",
        "init_args": {"path": str(folder / "*.jsonl"), **FIELDS, "verifier": "NumericMatch"},
    }


def parquet_files(folder):
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    arguments = {"path": str(folder / "rows.parquet"), **FIELDS, "verifier": "MathVerifier"}
    return {"class_path": "ParquetFiles", "init_args": arguments}


def hub_dataset(folder):
    return {"class_path": "HubDataset", "init_args": {"name": "someone/sums", **FIELDS, "verifier": "ExactMatch"}}


def reasoning_gym(folder):
    return {"class_path": "ReasoningGym", "init_args": {"task": "chain_sum", "answer": "last_line"}}


def countdown(folder):
    return {"class_path": "Countdown"}


def mixture(folder):
    makers = (json_lines, parquet_files, reasoning_gym, countdown)
    return {"class_path": "Mixture", "init_args": {"sources": [{"source": make(folder)} for make in makers]}}


SOURCES = {make.__name__: make for make in (json_lines, parquet_files, hub_dataset, reasoning_gym, countdown, mixture)}


@pytest.mark.usefixtures("shared_engine", "hub")
@pytest.mark.parametrize("name", SOURCES)
def test_two_steps(name, quickstart, policy, tmp_path):
    source = SOURCES[name](tmp_path)
    settings = {
        "steps": 2,
        "data": {
            "train": source,
            "validation": {"held_out": {"source": source, "limit": 4, "samples": 2, "pass_at": [2]}},
            "template": {"class_path": "ChatTemplate", "init_args": {"system": "Be brief."}},
            "max_prompt_tokens": 400,
            "prompts_per_step": 4,
        },
        "rollout": {"group_size": 4, "max_completion_tokens": 8, "truncated": "wrong"},
        "trainer": {"val_check_interval": 2},
    }
    (tmp_path / "source.yaml").write_text(json.dumps(settings))
    run = tmp_path / "run"
    options = [f"--config={tmp_path / 'source.yaml'}", f"--model.policy={policy}", f"--run_dir={run}"]
    assert main([*quickstart, *options]) == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    values = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(values["reward/mean"]) == 2
    assert values["reward/error"] == values["reward/timeout"] == values["data/bad_row"] == [0, 0]
    assert max(values["rollout_corr/logprob_abs_diff_max"]) < 1e-4
    assert len(values["val/held_out/avg@2"]) == 2
