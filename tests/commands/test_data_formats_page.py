"""The examples of docs/data_formats.md: what is read of each, `check`, and two steps of training."""

import csv
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import yaml
from jsonargparse import ArgumentParser
from pyarrow import parquet

from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.prompts import CsvFiles, Prompt, PromptSource, Reading
from asymgrpo_app.rewards import MultipleChoice
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support import small_chat_policy
from tests.support.events import scalars
from tests.support.paths import QUICKSTART, REPOSITORY

PAGE = (REPOSITORY / "docs/data_formats.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LAYOUTS = [name for name, section in SECTIONS.items() if "```yaml" in section]
QUICK = ("OpenRLHF", "MMLU")  # no worker of theirs imports a library of mathematics
BY_HAND = {
    "Make 8 from [3, 5, 1, 1], each used once:": "3+5*1*1",
    "Make 16 from [4, 2, 2, 1], each used once:": "4*2*2*1",
}
WRONG = "I do not know."
SEEN = {
    "OpenRLHF": "<system>Be brief.<user>What is 8 - 3?<assistant>",
    "TRL": "<user>What is 1 + 1?<assistant>\\boxed{2}<user>What is 2 + 3?<assistant>",
    "verl": "<system>Put the final answer within \\boxed{}.<user>Tom has 3 bags of 5 apples. How many apples has he?",
    "MMLU": "Question: Which planet is the largest?\n    | A. Mars\n",
}
"""What of the preview shows how turns and template stand around a problem."""

SMALL = {
    "steps": 2,
    "data": {"prompts_per_step": 2, "max_prompt_tokens": 600, "validation": {}, "verifiers": {"workers": 1}},
    "rollout": {"group_size": 4, "max_completion_tokens": 32, "canary": {"digest": False, "completions": 0}},
    "checkpoint": {"every_n_steps": 100},
    "tensorboard": {"every_n_steps": 100},
    "trainer": {"accelerator": "cpu"},
}


def block(layout: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[layout], re.DOTALL | re.MULTILINE)
    return str(found)


def write(layout: str, path: Path) -> None:
    """The rows of an example in the kind of file that its config names."""
    if path.suffix == ".csv":
        path.write_text(block(layout, "csv"))
        return
    rows = json.loads(block(layout, "json"))
    rows = rows if isinstance(rows, list) else [rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    match path.suffix:
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        case ".gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            path.write_text(lines)


def right(prompt: Prompt) -> str:
    return BY_HAND.get(prompt.text) or f"\\boxed{{{prompt.row['answer']}}}"


class HalfRight:
    """An engine whose every second completion is right."""

    keeps_weights = True
    prompts: ClassVar[Sequence[Prompt]] = ()

    def __init__(self, model: str, *_: Any) -> None:
        self.tokenizer = load_tokenizer(model)

    def load_weights(self, weights: Any) -> None:
        assert dict(weights)

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        completions = []
        for number, request in enumerate(requests):
            asked = self.tokenizer.decode(request.prompt_token_ids)
            (answer,) = [right(prompt) for prompt in self.prompts if prompt.text in asked]
            token_ids = [*self.tokenizer.encode(WRONG if number % 2 else answer), self.tokenizer.eos_token_id]
            completions.append(Completion(token_ids, [-2.0] * len(token_ids), truncated=False))
        return completions

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_chat_policy.make(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("asymgrpo_app.prompts.templates.takes_too_much", lambda *_: False)  # starts an interpreter
    Path("small.yaml").write_text(json.dumps(SMALL))
    return tmp_path


def prompts_of(layout: str) -> Sequence[Prompt]:
    """Write an example's files, and read its prompts."""
    Path("example.yaml").write_text(block(layout, "yaml"))
    train = yaml.safe_load(block(layout, "yaml"))["data"]["train"]
    write(layout, Path(train["init_args"]["path"]))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=PromptSource)
    source: PromptSource = parser.instantiate_classes(parser.parse_object({"train": train})).train
    return source.fixed(None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_is_read_as_it_says(layout: str, folder: Path) -> None:
    prompts = prompts_of(layout)
    text, _, reference = block(layout, "text").removesuffix("\n").partition("\nreference: ")
    assert prompts[0].text == text
    assert prompts[0].row.get("answer", "") == reference


@pytest.mark.parametrize(
    "layout", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in LAYOUTS]
)
def test_an_example_passes_check_and_trains(
    layout: str, folder: Path, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = prompts_of(layout)
    configs = ["--config=small.yaml", "--config=example.yaml", f"--model.policy={policy}", "--run_dir=run"]
    assert main(["check", *QUICKSTART, *configs]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Nothing stands in the way of this run.\n")
    assert "WARNING: data.train" not in out
    assert SEEN.get(layout, "") in out
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", HalfRight)
    monkeypatch.setattr(HalfRight, "prompts", prompts)
    assert main(["fit", *QUICKSTART, *configs]) == 0
    assert scalars(folder / "run")["reward/mean"] == [(1, 0.5), (2, 0.5)]


def test_every_layout_has_an_example() -> None:
    table = re.findall(r"^\| \[(.+?)\]\(#", PAGE, re.MULTILINE)
    assert table == LAYOUTS
    assert len(LAYOUTS) == 12


def test_every_setting_is_on_the_page() -> None:
    named = " ".join(re.findall(r"^\| (`.+?) \|", SECTIONS["reading"], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", named)) == {field.name for field in fields(Reading)}


def test_a_csv_file_of_mmlu(folder: Path) -> None:
    row = json.loads(block("MMLU", "json"))
    cells = dict(zip("ABCD", row["choices"], strict=True))
    with Path("mmlu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", *cells, "answer"])
        writer.writeheader()
        writer.writerow({"question": row["question"], **cells, "answer": "C"})
    settings: Any = {"prompt_field": "question", "verifier": MultipleChoice()}
    prompt = CsvFiles("mmlu.csv", **settings, reading=Reading(choices=list("ABCD"))).nth(0)
    assert f"{prompt.text}\nreference: {prompt.row['answer']}\n" == block("MMLU", "text")
