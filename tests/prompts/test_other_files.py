"""JSON arrays, CSV files and packed files, and the values that columns of Parquet and of the hub come out as."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import os
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from asymgrpo_app.prompts import BadRow, CsvFiles, HubDataset, JsonFiles, JsonLines, ParquetFiles, Reading

Refusal = Callable[..., str]
Write = Callable[..., str]

MEGABYTE = 2**20
CHUNKS = "asymgrpo_app.prompts.{}.CHUNK"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write_file


ROWS = [
    {"prompt": 'a "quote" \\ ]', "answer": "[1, 2]", "more": {"deep": [[], {}, "},{"]}},
    {"prompt": "é\u2028\n", "answer": "b"},
    {"prompt": '\\"', "answer": "\\"},
    {"prompt": "{", "answer": "}"},
]


class TestJsonFiles:
    @pytest.mark.parametrize("indent", [None, 0, 4])
    @pytest.mark.parametrize("separators", [(",", ":"), (" \r\n,\t", " : ")])
    @pytest.mark.parametrize("chunk", [1, 2, 7, MEGABYTE])
    def test_every_object_is_found(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, indent: int, separators: tuple[str, str], chunk: int
    ) -> None:
        monkeypatch.setattr(CHUNKS.format("json_files"), chunk)
        text = json.dumps(ROWS, indent=indent, separators=separators, ensure_ascii=False)
        source = JsonFiles(write("mine.json", f"\ufeff \n{text}\n "))
        assert [prompt.row for prompt in source.fixed(None)] == ROWS
        assert [prompt.uid for prompt in source.fixed(None)] == [f"mine.json/{number}" for number in (1, 2, 3, 4)]

    def test_the_line_is_that_of_the_object(self, write: Write, refusal: Refusal) -> None:
        source = JsonFiles(
            write("mine.json", '[\n  {"prompt": "p", "answer": 1},\n\n  {"prompt": "p"},\n {"prompt": 3}]')
        )
        places = [source.row(index).place for index in range(3)]
        assert places == [f"mine.json, line {line}, object {number}" for line, number in ((2, 1), (4, 2), (5, 3))]
        assert refusal(source.nth, 1).startswith("mine.json, line 4, object 2: the field 'answer' is missing")

    def test_a_large_file_has_an_index_on_disk(self, write: Write, cache_folder: Path) -> None:
        rows = [{"prompt": f"{number}", "answer": number, "filler": "x" * 100} for number in range(10_000)]
        path = write("mine.json", json.dumps(rows))
        source = JsonFiles(path)
        assert source.size == 10_000
        assert [source.nth(index).text for index in (0, 5_000, 9_999)] == ["0", "5000", "9999"]
        assert [file.suffix for file in cache_folder.iterdir()] == [".array1"]
        assert JsonFiles(path).nth(77).row == source.nth(77).row

    def test_json_lines_are_read_as_such(self, write: Write) -> None:
        content = '\n{"prompt": "p", "answer": 1}\n{"prompt": "q", "answer": 2}\n'
        name = write("mine.json", content)
        assert [prompt.uid for prompt in JsonFiles(name).fixed(None)] == ["mine.json/2", "mine.json/3"]

    @pytest.mark.parametrize("start", ['{\n"version": 1,', '\ufeff {"data": [\r\n', '{"data":\n[', '{ "data" : {\n'])
    def test_an_object_over_several_lines_is_refused(self, write: Write, refusal: Refusal, start: str) -> None:
        assert refusal(JsonFiles, write("mine.json", start + '{"prompt": "p", "answer": 1}]\n}\n')) == (
            "mine.json is one JSON object over several lines, and JsonFiles reads an array of objects, or one object "
            "per line: write the list of rows that it holds to a file of its own."
        )

    @pytest.mark.parametrize("content", ["[]", " [ \n ] ", "", "  \n"])
    def test_no_rows(self, write: Write, refusal: Refusal, content: str) -> None:
        assert refusal(JsonFiles, write("mine.json", content)) == "mine.json holds no prompts: there is no row in it."

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ('[{"prompt": "p"},\n {"prompt', "mine.json, line 2: the JSON array does not end, so the file is cut off."),
            ('[{"prompt": "p"}\n', "mine.json, line 2: the JSON array does not end, so the file is cut off."),
            ("[", "mine.json, line 1: the JSON array does not end, so the file is cut off."),
            ("[1]\n[2]", "mine.json, line 2: something follows the JSON array."),
            ("[1]]", "mine.json, line 1: something follows the JSON array."),
            ('[{"a": 1}}, 2]', "mine.json, line 1: something follows the JSON array."),
        ],
    )
    def test_what_is_no_array_is_refused(self, write: Write, refusal: Refusal, content: str, expected: str) -> None:
        assert refusal(JsonFiles, write("mine.json", content)) == expected

    @pytest.mark.parametrize(
        ("content", "number", "expected"),
        [
            ('[{"a": 1} {"b": 2}]', 0, "line 1, object 1: not JSON (extra data at column 10)"),
            ('[{"a": 1},\n,{"b": 2}]', 1, "line 2, object 2: not JSON (expecting value at column 1), seen ''"),
            ('[{"a": 1},]', 0, "line 1, object 1: not JSON (extra data at column 9)"),
            ("[1, 2]", 1, "line 1, object 2: expected a JSON object, not '2'"),
            ('[{"a": NaN}]', 0, "line 1, object 1: not JSON (nan is no json number)"),
            (b'[{"a": "\xff"}]', 0, "line 1, object 1: not UTF-8 text"),
            ('["a\\', None, "cut off"),
        ],
    )
    def test_broken_objects_are_named(
        self, write: Write, refusal: Refusal, content: str, number: int | None, expected: str
    ) -> None:
        name = write("mine.json", content)
        message = refusal(JsonFiles, name) if number is None else refusal(JsonFiles(name).row, number)
        assert expected in message

    def test_an_array_given_to_json_lines(self, write: Write, refusal: Refusal) -> None:
        source = JsonLines(write("mine.json", '[\n{"prompt": "p", "answer": 1}\n]'))
        assert refusal(source.nth, 0).endswith("seen '[' (JsonFiles reads files that are one JSON array).")


class TestCsvFiles:
    CELLS = ("plain", "a,b", 'a "q"', "two\nlines", "\r\n", '"', " x ", "é", "", "0.10", "007", "\n\n")

    @pytest.mark.parametrize("chunk", [1, 3, MEGABYTE])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_records_come_out_as_they_were_written(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, chunk: int, delimiter: str, end: str
    ) -> None:
        monkeypatch.setattr(CHUNKS.format("csv_files"), chunk)
        draw = random.Random(0)
        rows = [
            {"prompt": "p", "answer": "1", "x": draw.choice(self.CELLS), "y": draw.choice(self.CELLS)}
            for _ in range(60)
        ]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
        source = CsvFiles(write("mine.csv", "\ufeff" + text.getvalue()), delimiter=delimiter)
        assert [prompt.row for prompt in source.fixed(None)] == rows

    def test_the_line_is_where_the_record_begins(self, write: Write) -> None:
        source = CsvFiles(write("mine.csv", 'prompt,answer\n\n"two\nlines",1\nq,2'))
        assert [(p.uid, p.place, p.text) for p in source.fixed(None)] == [
            ("mine.csv/3", "mine.csv, line 3", "two\nlines"),
            ("mine.csv/5", "mine.csv, line 5", "q"),
        ]

    def test_a_large_file_has_an_index_for_each_delimiter(self, write: Write, cache_folder: Path) -> None:
        name = write("mine.csv", "prompt;answer\n" + "".join(f"{number};{'x' * 100}\n" for number in range(12_000)))
        source = CsvFiles(name, delimiter=";")
        assert (source.size, source.nth(11_999).text) == (12_000, "11999")
        with pytest.raises(BadRow):
            CsvFiles(name).nth(0)
        assert sorted(file.suffix for file in cache_folder.iterdir()) == [".csv1-44", ".csv1-59"]

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("p,1,2", "3 cells, but the header names 2 columns: 'p,1,2'."),
            ("p", "1 cells, but the header names 2 columns: 'p'."),
            ('"p"x,1', "no record of a CSV file (',' expected after '\"'), seen '\"p\"x,1'."),
            ('"p,1', "no record of a CSV file (unexpected end of data), seen '\"p,1\\nq,2'."),
            (
                ",1",
                "'prompt' must be a string (valid Unicode, not empty) or a chat (a list of messages with 'role' and",
            ),
            ("p, ", "'answer' must be a string (valid Unicode, not empty), a number or a date, not ' '."),
            (b"\xff,1", "not UTF-8 text, seen the bytes b'\\xff'."),
        ],
    )
    def test_broken_records_are_named(self, write: Write, refusal: Refusal, line: str | bytes, expected: str) -> None:
        content = line if isinstance(line, bytes) else line.encode()
        source = CsvFiles(write("mine.csv", b"prompt,answer\n" + content + b"\nq,2"))
        assert refusal(source.nth, 0).startswith(f"mine.csv, line 2: {expected}")
        if source.size > 1:
            assert source.nth(1).text == "q"

    @pytest.mark.parametrize("header", ["prompt,,answer", "prompt,prompt", ","])
    def test_every_column_needs_a_name_of_its_own(self, write: Write, refusal: Refusal, header: str) -> None:
        message = refusal(CsvFiles, write("mine.csv", f"{header}\np,1\n"))
        assert message.startswith("mine.csv, line 1: the header must give every column a name of its own, not [")

    @pytest.mark.parametrize("content", ["", "\n\n", "prompt,answer", "prompt,answer\n\n"])
    def test_no_rows(self, write: Write, refusal: Refusal, content: str) -> None:
        assert refusal(CsvFiles, write("mine.csv", content)) == "mine.csv holds no prompts: there is no row in it."

    @pytest.mark.parametrize("delimiter", ["", ", ", '"', "\n", "é"])
    def test_delimiters(self, write: Write, refusal: Refusal, delimiter: str) -> None:
        message = refusal(CsvFiles, write("mine.csv", "prompt,answer\np,1"), delimiter=delimiter)
        assert message == f"delimiter must be one ASCII character and no quote, got {delimiter!r}."


LINES = b'{"prompt": "p", "answer": 1}\n{"prompt": "q", "answer": 2}\n'


class TestPackedFiles:
    PACK: dict[str, Callable[[bytes], bytes]] = {  # noqa: RUF012
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    def test_they_are_unpacked_once_and_again_when_they_change(
        self, write: Write, cache_folder: Path, suffix: str, tmp_path: Path
    ) -> None:
        def packed(content: bytes) -> bytes:
            if suffix != ".zst":
                return self.PACK[suffix](content)
            with pa.OSFile(str(tmp_path / "t.zst"), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
                stream.write(content)
            return (tmp_path / "t.zst").read_bytes()

        name = write(f"mine.jsonl{suffix}", packed(LINES))
        prompts = JsonLines(name).fixed(None)
        assert [(p.uid, p.place, p.text) for p in prompts] == [
            (f"{name}/1", f"{name}, line 1", "p"),
            (f"{name}/2", f"{name}, line 2", "q"),
        ]
        (copy,) = cache_folder.iterdir()
        assert (copy.suffix, copy.read_bytes()) == (".unpacked1", LINES)
        copy_time = copy.stat().st_mtime_ns
        assert JsonLines(name).size == 2
        assert copy.stat().st_mtime_ns == copy_time
        write(name, packed(LINES + LINES))
        os.utime(name, ns=(1, 1))
        assert JsonLines(name).size == 4

    def test_arrays_and_csv_files(self, write: Write) -> None:
        array = write("mine.json.gz", gzip.compress(json.dumps(ROWS).encode()))
        assert [prompt.row for prompt in JsonFiles(array).fixed(None)] == ROWS
        table = write("mine.csv.gz", gzip.compress(b"prompt,answer\np,1\n"))
        assert CsvFiles(table).nth(0).row == {"prompt": "p", "answer": "1"}

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    @pytest.mark.parametrize("content", [b"no packed file at all", LINES])
    def test_what_is_not_packed_is_refused(self, write: Write, refusal: Refusal, suffix: str, content: bytes) -> None:
        name = write(f"mine.jsonl{suffix}", content)
        assert refusal(JsonLines, name).startswith(f"Cannot unpack {name!r}: ")

    @pytest.mark.parametrize("suffix", PACK)
    def test_what_is_cut_off_is_refused(self, write: Write, refusal: Refusal, suffix: str, cache_folder: Path) -> None:
        name = write(f"mine.jsonl{suffix}", self.PACK[suffix](LINES * 99)[:-9])
        assert refusal(JsonLines, name).startswith(f"Cannot unpack {name!r}: ")
        assert list(cache_folder.iterdir()) == []


class TestColumns:
    def test_decimals_dates_and_short_floats_of_parquet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        columns = {
            "prompt": ["p"],
            "decimal": [Decimal("2.50")],
            "date": [datetime.date(2024, 2, 29)],
            "float": pa.array([0.1], pa.float32()),
            "half": pa.array([0.1], pa.float16()),
            "floats": pa.array([[0.1, None, 3.0]], pa.list_(pa.float32())),
            "nested": pa.array([{"a": {"b": 0.7}}], pa.struct([("a", pa.struct([("b", pa.float32())]))])),
            "double": [0.1],
            "big": pa.array([1e30], pa.float32()),
        }
        parquet.write_table(pa.table(columns), "mine.parquet")
        read = {
            name: ParquetFiles("mine.parquet", answer_field=name).nth(0).row for name in ("decimal", "date", "float")
        }
        assert {name: row["answer"] for name, row in read.items()} == {
            "decimal": "2.50",
            "date": "2024-02-29",
            "float": "0.1",
        }
        row = read["float"]
        assert (row["half"], row["floats"], row["nested"]) == (0.1, [0.1, None, 3.0], {"a": {"b": 0.7}})
        assert (row["double"], row["big"]) == (0.1, 1e30)

    MIXED = [  # noqa: RUF012
        {"prompt": "p", "answer": 3, "more": {"a": 1}},
        {"prompt": "p", "answer": "three", "more": ["x", 0.1]},
        {"prompt": "p", "answer": '\\frac{1}{2} "q"\n', "more": None},
        {"prompt": "p", "answer": 0.5, "more": [{"b": None}]},
        *({"prompt": "p", "answer": text, "more": "[1"} for text in ("1.50", "007", "NaN", "1e3", "2", "12e")),
    ]

    def test_mixed_types_of_the_hub_come_out_as_from_the_file(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
        Path("mixed").mkdir()
        name = write("mixed/train.jsonl", "".join(json.dumps(row) + "\n" for row in self.MIXED))
        hub, lines = HubDataset("./mixed").fixed(None), JsonLines(name).fixed(None)
        assert [prompt.row for prompt in hub] == [prompt.row for prompt in lines]
        assert [prompt.row["answer"] for prompt in hub[:5]] == ["3", "three", '\\frac{1}{2} "q"\n', "0.5", "1.50"]

    def test_a_text_that_is_an_array_in_a_column_of_mixed_types_is_refused(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
        Path("mixed").mkdir()
        write("mixed/train.jsonl", '{"prompt": "p", "answer": 3}\n{"prompt": "p", "answer": "[1, 2]"}\n')
        assert refusal(HubDataset("./mixed").nth, 1) == (
            "./mixed (train), row 2: 'answer' must be a string (valid Unicode, not empty), a number or a date, not "
            "[1, 2]."
        )

    def test_chats_choices_and_extraction_from_the_hub(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
        Path("chats").mkdir()
        row = {"m": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "\\boxed{B}"}], "c": ["x", "y"]}
        write("chats/train.json", json.dumps([row, row]))
        reading = Reading(extract="box", choices="c")
        prompt = HubDataset("./chats", prompt_field="m", answer_field="m.-1.content", reading=reading).nth(1)
        assert (prompt.text, prompt.row["answer"]) == ("p\nA. x\nB. y", "B")

    def test_dates_in_json_of_the_hub(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
        Path("dates").mkdir()
        write("dates/train.jsonl", '{"prompt": "p", "answer": "2024-02-29"}\n' * 2)
        assert HubDataset("./dates").nth(0).row["answer"] == "2024-02-29"
