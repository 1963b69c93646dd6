import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from asymgrpo_app.prompts import HubDataset

Refusal = Callable[..., str]

NEW, OLD = "a" * 40, "b" * 40


def write_lines(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"{number} + 1", "solution": {"text": number + 1}} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set with two configurations, one of them with two splits, in a local folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    root = tmp_path / "sums"
    write_lines(root / "easy/train.jsonl", 300)
    write_lines(root / "easy/test.jsonl", 5)
    (root / "hard").mkdir()
    parquet.write_table(pa.table({"prompt": ["h"], "answer": [1]}), root / "hard/train.parquet")
    card = {
        "configs": [
            {
                "config_name": "easy",
                "default": True,
                "data_files": [{"split": split, "path": f"easy/{split}.jsonl"} for split in ("train", "test")],
            },
        ]
    }
    (root / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return str(root)


FIELDS = {"prompt_field": "question", "answer_field": "solution.text"}


def test_a_folder_laid_out_like_a_data_set(folder: str) -> None:
    source = HubDataset(folder, **FIELDS)
    assert source.size == 300
    prompt = source.nth(299)
    assert (prompt.uid, prompt.place) == (f"{folder}/train/300", f"{folder} (train), row 300")
    assert prompt.text == "299 + 1"
    assert prompt.row == {"question": "299 + 1", "solution": {"text": 300}, "answer": "300"}
    assert prompt.verifier is source.verifier
    epoch = [source.at(position, seed=4).uid for position in range(300, 600)]
    assert sorted(epoch) == sorted(f"{folder}/train/{number}" for number in range(1, 301))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [copy.at(position, seed=4).uid for position in range(300, 600)] == epoch


def test_splits_and_parts_of_splits(folder: str) -> None:
    assert [prompt.text for prompt in HubDataset(folder, split="test", **FIELDS).fixed(2)] == ["0 + 1", "1 + 1"]
    part = HubDataset(folder, split="train[10:20]", config="easy", **FIELDS)
    assert (part.size, part.nth(0).text) == (10, "10 + 1")


def test_what_is_not_there_is_named_with_what_is(folder: str, refusal: Refusal) -> None:
    assert refusal(HubDataset, folder, split="validation", **FIELDS) == (
        f"Cannot load the data set {folder!r} (split 'validation', config None, revision None): ValueError: Unknown "
        "split \"validation\". Should be one of ['train', 'test']."
    )
    assert refusal(HubDataset, folder, config="other", **FIELDS) == (
        f"Cannot load the data set {folder!r} (split 'train', config 'other', revision None): ValueError: "
        "BuilderConfig 'other' not found. Available: ['easy']."
    )
    assert refusal(HubDataset(folder, prompt_field="question").nth, 0) == (
        f'{folder} (train), row 1: the field \'answer\' is missing, the row has ["question", "solution"].'
    )
    source = HubDataset(folder, prompt_field="question", answer_field="solution.value")
    assert refusal(source.nth, 4) == (
        f"{folder} (train), row 5: the field 'solution.value' is missing, 'solution' has [\"text\"]."
    )


def test_odd_names_are_refused(folder: str, tmp_path: Path, refusal: Refusal) -> None:
    missing = str(tmp_path / "missing")
    assert refusal(HubDataset, missing) == (
        f"Cannot load the data set {missing!r} (split 'train', config None, revision None): there is no folder "
        f"{missing}."
    )
    assert refusal(HubDataset, folder, revision="v1") == (
        f"{folder} is a folder, and a folder has no revision 'v1': leave it out."
    )


OFFLINE = """
import json, sys
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import HubDataset
for arguments in json.loads(sys.argv[1]):
    try:
        source = HubDataset(**arguments)
        print(source.size, source.nth(0).uid, source.nth(0).row["answer"])
    except UserError as error:
        print(error)
"""

NOT_THERE = (
    f"there is no folder {{}} here (working directory {Path.cwd()}), and it is not in the local cache of the hub, "
    "which HF_HUB_OFFLINE says not to ask: a relative path, also one in a config, starts at the working directory, so "
    "change to the folder that it is meant from, or give the whole path."
)


def test_data_sets_of_the_hub_come_from_its_cache_by_revision(tmp_path: Path) -> None:
    """In a process of its own: the libraries look at the environment when they are imported."""
    repository = tmp_path / "home/hub/datasets--someone--sums"
    for commit, name, count in ((NEW, "main", 7), (OLD, "v1", 4)):
        write_lines(repository / "snapshots" / commit / "train.jsonl", count)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    cases = [
        {"name": "someone/sums", **FIELDS},
        {"name": "someone/sums", "revision": "v1", **FIELDS},
        {"name": "someone/sums", "revision": NEW, **FIELDS},
        {"name": "someone/sums", "revision": "v2", **FIELDS},
        {"name": "someone/sums", "split": "test", "revision": "v1", **FIELDS},
        {"name": "someone/others"},
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(cases)], env=environment, capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        "7 someone/sums/train/1 1",
        "4 someone/sums/train/1 1",
        "7 someone/sums/train/1 1",
        "Cannot load the data set 'someone/sums' (split 'train', config None, revision 'v2'): "
        + NOT_THERE.format("someone/sums"),
        "Cannot load the data set 'someone/sums' (split 'test', config None, revision 'v1'): ValueError: Unknown split "
        "\"test\". Should be one of ['train'].",
        "Cannot load the data set 'someone/others' (split 'train', config None, revision None): "
        + NOT_THERE.format("someone/others"),
    ]


def test_importing_the_sources_is_light() -> None:
    code = "import sys, asymgrpo_app.prompts; print([m for m in ('datasets', 'pyarrow', 'torch') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"
