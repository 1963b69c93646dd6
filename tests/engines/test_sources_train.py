"""Every kind of source trains, with its own kind of answer."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from asymgrpo_app.cli import main
from asymgrpo_app.evaluation.results import read_results
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.support.events import values
from tests.support.seeded_engine import SeededEngine
from tests.support.shared_engine import kept
from tests.support.small_chat_policy import make

ROWS = [{"problem": f"What is {n} + {n}?", "solution": {"text": n + n}} for n in range(20)]
FIELDS = {"prompt_field": "problem", "answer_field": "solution.text"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module", params=["seeded", pytest.param("vllm", marks=pytest.mark.long)])
def sampler(request, policy):
    """Answers by seed, or real vLLM: what makes the engine of a run, and the run's options for it."""
    if request.param == "seeded":
        # No policy gives these log-probabilities.
        yield SeededEngine, ["--rollout.canary.digest=false", "--rollout.canary.completions=0"]
        return
    engine = VLLMEngine(policy, VLLMEngineConfig(max_num_seqs=64), "float32", max_model_len=408)
    yield lambda *_: kept(engine), []
    engine.close()


@pytest.fixture
def options(sampler, monkeypatch) -> list[str]:
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", sampler[0])
    return sampler[1]


def in_hub_cache(cache, name, path, rows):
    """Lay a data set of one file out as the hub's own cache has it."""
    repository, commit = cache / f"datasets--{name.replace('/', '--')}", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    file = repository / "snapshots" / commit / path
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file.parent


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's own cache, with one data set in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    in_hub_cache(tmp_path / "hub", "someone/sums", "train.jsonl", ROWS)
    return tmp_path / "hub"


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
QUICK = ("json_lines", "hub_dataset", "countdown")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SOURCES],
)
def test_two_steps(name, quickstart, policy, options, tmp_path):
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
    arguments = [f"--config={tmp_path / 'source.yaml'}", f"--model.policy={policy}", f"--run_dir={run}"]
    assert main([*quickstart, *arguments, *options]) == 0
    found = values(run)
    assert len(found["reward/mean"]) == 2
    assert found["reward/error"] == found["reward/timeout"] == found["data/bad_row"] == [0, 0]
    assert options or max(found["rollout_corr/logprob_abs_diff_max"]) < 1e-4
    assert len(found["val/held_out/avg@2"]) == 2


PAPER_SETS = {
    "HuggingFaceH4/MATH-500": ("test.jsonl", {"problem": "1 + 1", "answer": "2"}),
    "HuggingFaceH4/aime_2024": ("train.jsonl", {"problem": "1 + 2", "answer": "3"}),
    "math-ai/aime25": ("test.jsonl", {"problem": "1 + 3", "answer": "4"}),
    "math-ai/amc23": ("test.jsonl", {"question": "1 + 4", "answer": 5.0}),
    "Hothan/OlympiadBench": ("train.jsonl", {"question": "1 + 5", "final_answer": ["$6$"]}),
}


def test_the_papers_protocol_from_the_hubs_cache(hub, policy, options, repository, tmp_path):
    for name, (path, row) in PAPER_SETS.items():
        folder = in_hub_cache(hub, name, path, [row] * 2)
        if name == "Hothan/OlympiadBench":  # this one has configurations
            card = {
                "configs": [{"config_name": "OE_TO_maths_en_COMP", "data_files": [{"split": "train", "path": path}]}]
            }
            (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    paper = f"--config={repository / 'configs/eval/paper.yaml'}"
    small = ["--data.max_prompt_tokens=400", "--rollout.max_completion_tokens=8", "--trainer.precision=32-true"]
    output = tmp_path / "paper"
    assert main(["predict", paper, *small, *options, f"--model.policy={policy}", f"--output={output}"]) == 0
    found = read_results(output / "results.json")
    samples = {name: (own.protocol.samples, own.protocol.temperature) for name, own in found.sets.items()}
    assert samples == {
        "math500": (5, 0.4),
        "olympiadbench": (5, 0.4),
        "aime24": (10, 0.4),
        "aime25": (10, 0.4),
        "amc23": (10, 0.4),
    }
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2 * (5 + 5 + 10 + 10 + 10)
    assert found.mean["accuracy"].value == pytest.approx(
        sum(own.metrics[f"avg@{own.protocol.samples}"].value for own in found.sets.values()) / 5
    )
