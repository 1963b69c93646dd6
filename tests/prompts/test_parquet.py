import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from asymgrpo_app.prompts import ParquetFiles

Write = Callable[..., str]
Refusal = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(columns: dict[str, object], name: str = "mine.parquet", group: int = 1_000) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path, row_group_size=group)
        return str(path)

    return write_file


def numbered(count: int) -> dict[str, object]:
    return {"prompt": [str(number) for number in range(count)], "answer": list(range(count))}


@pytest.mark.parametrize("count", [1, 127, 128, 129, 2_560, 20_001])
@pytest.mark.parametrize("group", [50, 100_000])
def test_every_row_is_found_whatever_the_row_groups(write: Write, count: int, group: int) -> None:
    source = ParquetFiles(write(numbered(count), group=group))
    assert source.size == count
    rows = [*range(0, count, 97), count - 1]
    prompts = [source.nth(index) for index in rows]
    assert [prompt.text for prompt in prompts] == [str(index) for index in rows]
    assert [prompt.uid for prompt in prompts] == [f"mine.parquet/{index + 1}" for index in rows]
    assert prompts[-1].row == {"prompt": str(count - 1), "answer": str(count - 1)}
    assert prompts[-1].place == f"{source.path}, row {count}"
    assert prompts[0].verifier is source.verifier


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(write: Write) -> None:
    source = ParquetFiles(write(numbered(300)))
    epochs = [[source.at(300 * epoch + place, seed=0).text for place in range(300)] for epoch in range(3)]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(300)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [prompt.text for prompt in source.fixed(3)] == ["0", "1", "2"]


def test_columns_of_every_kind_become_plain_values(write: Write) -> None:
    question = pa.array(["a", "b", "a"]).dictionary_encode()
    extra = pa.array([{"level": 1, "tags": ["x", None]}] * 3)
    chat = pa.array([[{"role": "user", "content": text}] for text in "pqr"])
    path = write({"question": question, "extra": extra, "chat": chat, "number": [1, 2, 3], "half": [0.5, 1.0, 2.0]})
    row = ParquetFiles(path, prompt_field="question", answer_field="extra.level").nth(2).row
    assert row == {
        "question": "a",
        "extra": {"level": 1, "tags": ["x", None]},
        "chat": [{"role": "user", "content": "r"}],
        "number": 3,
        "half": 2.0,
        "answer": "1",
    }
    source = ParquetFiles(path, prompt_field="chat", answer_field="half")
    assert (source.nth(1).text, source.nth(1).row["answer"]) == ("q", "1.0")


def test_dictionaries_that_differ_between_row_groups(write: Write) -> None:
    texts = [f"text {number // 2}" for number in range(3_000)]
    nested = pa.StructArray.from_arrays([pa.array(texts).dictionary_encode()], ["inner"])
    path = write({"prompt": pa.array(texts).dictionary_encode(), "answer": nested}, group=100)
    source = ParquetFiles(path, answer_field="answer.inner")
    prompts = source.fixed(None)
    assert [prompt.text for prompt in prompts] == texts
    assert [prompt.row["answer"] for prompt in prompts] == texts


def test_several_files_may_have_different_columns(write: Write, tmp_path: Path) -> None:
    write(numbered(2), "b/part.parquet")
    write({"prompt": pa.array([], pa.string())}, "a/empty.parquet")
    write({"prompt": ["x"], "answer": ["y"], "more": [1]}, "a/part.parquet")
    source = ParquetFiles(str(tmp_path / "*/*.parquet"))
    assert [prompt.uid for prompt in source.fixed(None)] == ["a/part.parquet/1", "b/part.parquet/1", "b/part.parquet/2"]
    assert source.nth(0).row == {"prompt": "x", "answer": "y", "more": 1}


PROMPT = (
    "'prompt' must be a string (valid Unicode, not empty) or a chat (a list of messages with 'role' and 'content'), "
    "not "
)
ANSWER = "'answer' must be a string (valid Unicode, not empty), a number or a date, not "


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": ["p"]}, "the field 'answer' is missing, the row has [\"prompt\"]"),
        ({"prompt": [None], "answer": ["a"]}, PROMPT + "null"),
        ({"prompt": [b"p"], "answer": ["a"]}, PROMPT + "b'p'"),
        ({"prompt": ["p"], "answer": [True]}, ANSWER + "true"),
        ({"prompt": ["p"], "answer": [float("nan")]}, ANSWER + "NaN"),
        ({"prompt": ["p"], "answer": pa.array([1], pa.duration("s"))}, ANSWER + '"datetime.timedelta(seconds=1)"'),
        (
            {"prompt": pa.array([b"\xff"]).cast(pa.string(), safe=False), "answer": ["a"]},
            "not UTF-8 text, seen the bytes b'\\xff'",
        ),
    ],
)
def test_a_broken_row_is_named(write: Write, columns: dict[str, list[object]], expected: str, refusal: Refusal) -> None:
    path = write(columns)
    assert refusal(ParquetFiles(path).nth, 0) == f"{path}, row 1: {expected}."


def test_files_that_cannot_be_read_are_refused(
    write: Write, tmp_path: Path, cache_folder: Path, refusal: Refusal
) -> None:
    missing = str(tmp_path / "missing.parquet")
    assert refusal(ParquetFiles, missing) == f"Cannot read the prompt file {missing!r}: No such file or directory."
    text = tmp_path / "text.parquet"
    text.write_text('{"prompt": "p", "answer": "a"}\n')
    assert refusal(ParquetFiles, str(text)) == (
        f"Cannot read the Parquet file {str(text)!r}: Parquet magic bytes not found in footer. Either the file is "
        "corrupted or this is not a parquet file."
    )
    path = Path(write(numbered(5_000)))
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(1_000) + content[1_020:])
    assert refusal(ParquetFiles, str(path)).startswith(f"Cannot read the Parquet file {str(path)!r}: ")
    assert list(cache_folder.iterdir()) == []  # nothing half done is taken for the file later
    empty = write({"prompt": pa.array([], pa.string())})
    assert refusal(ParquetFiles, empty) == f"{empty} holds no prompts: there is no row in it."


def test_it_is_converted_once_and_again_when_the_file_changes(write: Write, cache_folder: Path) -> None:
    path = write(numbered(1_000))
    ParquetFiles(path)
    (converted,) = cache_folder.iterdir()
    made = converted.stat()
    assert ParquetFiles(path).size == 1_000
    assert (converted.stat().st_ino, converted.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    write({"prompt": ["new"], "answer": ["1"]})
    assert ParquetFiles(path).nth(0).text == "new"
    os.utime(path, ns=(0, 0))
    assert ParquetFiles(path).nth(0).text == "new"
    assert len(list(cache_folder.iterdir())) == 3


CONVERT = """
import pickle, sys
from asymgrpo_app.prompts import ParquetFiles
path, pickled = sys.argv[1:]
with open(pickled, "rb") as file:
    sources = [ParquetFiles(path), pickle.load(file)]
print([source.at(position, seed=3).uid for source in sources for position in range(50)])
"""


def test_processes_may_convert_at_once_and_share_a_source(write: Write, tmp_path: Path, cache_folder: Path) -> None:
    source = ParquetFiles(write(numbered(20)))
    (tmp_path / "pickled").write_bytes(pickle.dumps(source))
    path = write(numbered(20_000), "large.parquet")
    command = [sys.executable, "-c", CONVERT, path, str(tmp_path / "pickled")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in running]
    uids = [each.at(position, seed=3).uid for each in (ParquetFiles(path), source) for position in range(50)]
    assert outputs == [f"{uids}\n"] * 3
    assert len(list(cache_folder.iterdir())) == 2
