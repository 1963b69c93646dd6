import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asymgrpo_app.prompts import BadRow, JsonLines
from asymgrpo_app.rewards import CountdownVerifier, ExactMatch, Verdict

Write = Callable[..., str]
Refusal = Callable[..., str]

MEGABYTE = 2**20


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes, name: str = "mine.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write_file


def numbered(count: int) -> bytes:
    return b"".join(b'{"prompt": "%d", "answer": %d}\n' % (number, number) for number in range(count))


def large(count: int = 10_000) -> bytes:
    """More than a megabyte, with a blank line after every hundredth line and a byte order mark."""
    filler = b"x" * 100
    lines = [b'{"prompt": "%d", "answer": 1, "filler": "%s"}\n' % (number, filler) for number in range(count)]
    return b"\xef\xbb\xbf" + b"".join(line + b" \r\n" * (index % 100 == 99) for index, line in enumerate(lines))


def test_reads_prompt_answer_and_every_other_field(write: Write) -> None:
    source = JsonLines(write(b'{"prompt": "2 + 2 =", "answer": "4", "level": 1}\n{"prompt": "\\u00e9", "answer": "b"}'))
    first, second = source.fixed(None)
    assert (first.uid, first.text, first.place) == ("mine.jsonl/1", "2 + 2 =", f"{source.path}, line 1")
    assert first.verifier is source.verifier
    assert first.row == {"prompt": "2 + 2 =", "answer": "4", "level": 1}
    assert (second.uid, second.text) == ("mine.jsonl/2", "é")
    assert isinstance(source.verifier, ExactMatch)
    assert source.verifier.verify(" 4", first.row) == Verdict(correct=True)


def test_field_names_and_verifier_can_be_chosen(write: Write) -> None:
    path = write(b'{"q": "3 5 8>", "solution": "3+5", "answer": "other", "numbers": [3, 5], "target": 8}\n')
    source = JsonLines(path, prompt_field="q", answer_field="solution", verifier=CountdownVerifier())
    prompt = source.at(0, seed=0)
    assert (prompt.text, prompt.row["answer"]) == ("3 5 8>", "3+5")
    assert source.verifier.verify("5+3", prompt.row) == Verdict(correct=True)


@pytest.mark.parametrize(("written", "read"), [("42", "42"), ("-0.5", "-0.5"), ("1e3", "1000.0"), ('"042"', "042")])
def test_numbers_become_strings(write: Write, written: str, read: str) -> None:
    source = JsonLines(write(b'{"prompt": "p", "answer": %s}' % written.encode()))
    assert source.at(0, seed=0).row["answer"] == read


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_fine(write: Write) -> None:
    path = write(b'\xef\xbb\xbf{"prompt": "a", "answer": "1"}\r\n\r\n{"prompt": "b\\u2028c", "answer": "2"}\r\n\n  \n')
    assert [prompt.uid for prompt in JsonLines(path).fixed(None)] == ["mine.jsonl/1", "mine.jsonl/3"]


def test_a_line_separator_inside_a_string_does_not_end_the_line(write: Write) -> None:
    path = write(json.dumps({"prompt": "a\u2028b\x85c", "answer": "1"}, ensure_ascii=False).encode())
    assert JsonLines(path).at(0, seed=0).text == "a\u2028b\x85c"


def test_equal_prompts_are_kept(write: Write) -> None:
    source = JsonLines(write(b'{"prompt": "a", "answer": "1"}\n' * 2))
    assert [prompt.uid for prompt in source.fixed(None)] == ["mine.jsonl/1", "mine.jsonl/2"]


def test_a_carriage_return_alone_does_not_end_the_line(write: Write) -> None:
    source = JsonLines(write(b'{"prompt": "a",\r"answer": "1"}\r\n{"prompt": "b", "answer": "2"}'))
    assert [prompt.uid for prompt in source.fixed(None)] == ["mine.jsonl/1", "mine.jsonl/2"]


def test_each_epoch_has_every_prompt_once_in_an_order_of_its_own(write: Write) -> None:
    source = JsonLines(write(numbered(50)))
    epochs = [[source.at(50 * epoch + place, seed=0).text for place in range(50)] for epoch in range(4)]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(50)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_pure_function_of_seed_and_position(write: Write) -> None:
    path = write(numbered(20))
    source = JsonLines(path)
    forwards = [source.at(position, seed=7).uid for position in range(100)]
    other = JsonLines(path)
    jumps = {
        position: other.at(position, seed=7).uid
        for position in sorted(range(100), key=lambda position: position * 37 % 101)
    }
    assert [jumps[position] for position in range(100)] == forwards
    assert [source.at(position, seed=8).uid for position in range(100)] != forwards


def test_the_order_does_not_change_between_versions(write: Write) -> None:
    source = JsonLines(write(numbered(8)))
    assert "".join(source.at(position, seed=0).text for position in range(16)) == "5264370145162730"


def test_all_places_are_equally_likely(write: Write) -> None:
    source = JsonLines(write(numbered(4)))
    firsts = [source.at(4 * epoch, seed=0).text for epoch in range(2_000)]
    # 500 expected each, standard deviation 19
    assert all(400 < firsts.count(text) < 600 for text in "0123")


def test_fixed_is_in_the_order_of_the_file(write: Write) -> None:
    source = JsonLines(write(numbered(10)))
    assert [prompt.text for prompt in source.fixed(3)] == ["0", "1", "2"]
    assert [prompt.text for prompt in source.fixed(None)] == [str(number) for number in range(10)]
    assert len(source.fixed(99)) == 10
    assert [source.nth(index) for index in range(10)] == source.fixed(None)


GOOD = b'{"prompt": "p", "answer": "a"}\n'
PROMPT = (
    "'prompt' must be a string (valid Unicode, not empty) or a chat (a list of messages with 'role' and 'content'), "
    "not "
)
ANSWER = "'answer' must be a string (valid Unicode, not empty), a number or a date, not "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "p", "answer": "a"', "not JSON (expecting ',' delimiter at column 30), seen"),
        (b"prompt,answer", "not JSON (expecting value at column 1), seen 'prompt,answer'"),
        (b'{"prompt": "p"} {"answer": "a"}', "not JSON (extra data at column 17)"),
        (b'{"prompt": "p", "answer": NaN}', "not JSON (nan is no json number)"),
        (b'{"prompt": "p", "answer": -Infinity}', "not JSON (-infinity is no json number)"),
        (b'{"prompt": "p", "answer": ' + b"9" * 5_000 + b"}", "not JSON (exceeds the limit"),
        (b"[" * 100_000, "not JSON (maximum recursion depth exceeded"),
        (b'["p", "a"]', 'expected a JSON object, not \'["p", "a"]\''),
        (b"null", "expected a JSON object, not 'null'"),
        (b'{"answer": "a"}', "the field 'prompt' is missing, the row has [\"answer\"]"),
        (b'{"prompt": "p", "Answer": "a"}', 'the field \'answer\' is missing, the row has ["prompt", "Answer"]'),
        (b'{"prompt": 3, "answer": "a"}', PROMPT + "3"),
        (b'{"prompt": "", "answer": "a"}', PROMPT + "''"),
        (b'{"prompt": " \\n", "answer": "a"}', PROMPT + "' \\n'"),
        (b'{"prompt": null, "answer": "a"}', PROMPT + "null"),
        (b'{"prompt": ["' + b"x" * 999 + b'"], "answer": "a"}', 'not ["' + "x" * 55 + "...."),
        (b'{"prompt": "\\ud800", "answer": "a"}', PROMPT + "'\\ud800'"),
        (b'{"prompt": "p", "answer": "\\udfff"}', ANSWER + "'\\udfff'"),
        (b'{"prompt": "p", "answer": ""}', ANSWER + "''"),
        (b'{"prompt": "p", "answer": "  "}', ANSWER + "'  '"),
        (b'{"prompt": "p", "answer": null}', ANSWER + "null"),
        (b'{"prompt": "p", "answer": true}', ANSWER + "true"),
        (b'{"prompt": "p", "answer": [1, 2]}', ANSWER + "[1, 2]"),
        (b'{"prompt": "p", "answer": 1e999}', ANSWER + "Infinity"),
        (b'{"prompt": "\xff\xfe", "answer": "a"}', "not UTF-8 text, seen the bytes b'\\xff'"),
        (GOOD.strip().decode().encode("utf-16"), "not UTF-8 text, seen the bytes b'\\xff'"),
    ],
)
def test_a_broken_line_is_named_with_the_value_seen(write: Write, line: bytes, expected: str) -> None:
    path = write(GOOD + b"\n" + line + b"\n" + GOOD)
    source = JsonLines(path)
    assert source.size == 3
    with pytest.raises(BadRow) as caught:
        source.nth(1)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert expected in message
    assert message.isprintable()
    assert message.endswith(".")
    assert len(message) < 300 + len(path)
    assert [source.nth(index).text for index in (0, 2)] == ["p", "p"]


@pytest.mark.parametrize("depth", [100, 900, 990, 1_500, 3_000])
def test_a_deeply_nested_answer_is_refused_and_not_a_crash(write: Write, depth: int, refusal: Refusal) -> None:
    source = JsonLines(write(b'{"prompt": "p", "answer": ' + b"[" * depth + b"]" * depth + b"}"))
    assert "line 1: " in refusal(source.nth, 0)


@pytest.mark.parametrize("field", ["reward_model.ground_truth", "a.b"])
def test_a_field_within_a_field(write: Write, field: str) -> None:
    path = write(b'{"prompt": "p", "reward_model": {"ground_truth": 4}, "a.b": "4", "a": {"b": "5"}}')
    assert JsonLines(path, answer_field=field).nth(0).row["answer"] == "4"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("m.truth", "the field 'm.truth' is missing, 'm' has [\"style\"]"),
        ("x.truth", 'the field \'x.truth\' is missing, the row has ["prompt", "m"]'),
        ("m.style.x", "the field 'm.style.x' is missing, 'style' is 'rule'"),
    ],
)
def test_what_a_field_within_a_field_lacks_is_named(write: Write, field: str, expected: str, refusal: Refusal) -> None:
    path = write(b'{"prompt": "p", "m": {"style": "rule"}}')
    assert refusal(JsonLines(path, answer_field=field).nth, 0) == f"{path}, line 1: {expected}."


def test_a_chat_of_one_message_of_the_user_is_a_prompt(write: Write) -> None:
    path = write(b'{"prompt": [{"role": "user", "content": "2 + 2 ="}], "answer": "4"}')
    assert JsonLines(path).nth(0).text == "2 + 2 ="


def test_the_verifier_is_not_asked_about_rows(write: Write) -> None:
    path = write(b'{"prompt": "3 5 8>", "answer": "3+5", "numbers": "no", "target": "8"}\n')
    assert JsonLines(path, verifier=CountdownVerifier()).nth(0).row["target"] == "8"


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf", b" " * 3 * MEGABYTE])
def test_an_empty_file_is_refused(write: Write, content: bytes, refusal: Refusal) -> None:
    path = write(content)
    assert refusal(JsonLines, path) == f"{path} holds no prompts: there is no row in it."


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, write: Write, refusal: Refusal) -> None:
    missing = str(tmp_path / "missing.jsonl")
    assert refusal(JsonLines, missing) == f"Cannot read the prompt file {missing!r}: No such file or directory."
    assert refusal(JsonLines, str(tmp_path)) == f"Cannot read the prompt file {str(tmp_path)!r}: Not a regular file."
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    assert refusal(JsonLines, pipe) == f"Cannot read the prompt file {pipe!r}: Not a regular file."


def test_fields_must_have_names(write: Write, refusal: Refusal) -> None:
    assert refusal(JsonLines, write(GOOD), answer_field="") == "answer_field is empty: name a field of the rows."


def test_a_line_that_is_no_line_is_refused_unread(write: Write, refusal: Refusal) -> None:
    path = write(GOOD)
    with Path(path).open("r+b") as file:
        file.truncate(65 * MEGABYTE)  # zeros, which take no space on the disk
    size = 65 * MEGABYTE - len(GOOD)
    assert refusal(JsonLines(path).nth, 1) == (
        f"{path}, line 2: the line has {size:,} bytes, more than {64 * MEGABYTE:,}: write one JSON object per line."
    )


class TestSeveralFiles:
    def test_a_pattern_reads_its_matches_in_order(self, write: Write, tmp_path: Path) -> None:
        write(numbered(2), "b.jsonl")
        write(b"", "c.jsonl")
        write(numbered(3), "a.jsonl")
        (tmp_path / "d.jsonl").mkdir()
        source = JsonLines(str(tmp_path / "*.jsonl"))
        uids = ["a.jsonl/1", "a.jsonl/2", "a.jsonl/3", "b.jsonl/1", "b.jsonl/2"]
        assert [prompt.uid for prompt in source.fixed(None)] == uids
        assert source.nth(3).place == f"{tmp_path / 'b.jsonl'}, line 1"
        assert sorted(source.at(position, seed=0).uid for position in range(5)) == uids

    def test_a_list_keeps_its_order_and_equal_names_get_their_folders(self, write: Write) -> None:
        paths = [write(numbered(1), name) for name in ("z/one.jsonl", "a/two.jsonl", "a/b/one.jsonl")]
        uids = [prompt.uid for prompt in JsonLines(paths).fixed(None)]
        assert uids == ["z/one.jsonl/1", "a/two.jsonl/1", "a/b/one.jsonl/1"]

    def test_a_name_that_looks_like_a_pattern_is_a_name_if_it_exists(self, write: Write) -> None:
        assert JsonLines(write(numbered(2), "data[1].jsonl")).size == 2

    def test_what_no_file_matches_is_refused(self, tmp_path: Path, write: Write, refusal: Refusal) -> None:
        pattern = str(tmp_path / "*.jsonl")
        assert refusal(JsonLines, pattern) == f"No file matches {pattern!r}."
        assert refusal(JsonLines, []) == "The list of prompt files is empty: name at least one file."
        path = write(GOOD)
        assert refusal(JsonLines, [path, pattern]) == f"The prompt file {path!r} is named twice."
        empty = [write(b"", "a.jsonl"), write(b"", "b.jsonl")]
        assert refusal(JsonLines, empty) == f"{empty[0]}, {empty[1]} holds no prompts: there is no row in it."

    def test_more_files_than_a_process_may_open(self, write: Write) -> None:
        import resource

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        paths = [write(GOOD, f"{number}.jsonl") for number in range(400)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
        try:
            source = JsonLines(paths)
            assert sorted(source.at(position, 0).uid for position in range(400)) == sorted(
                f"{number}.jsonl/1" for number in range(400)
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def build(path: str) -> list[str]:
    source = JsonLines(path)
    return [source.at(position, seed=3).uid for position in range(50)]


def read_some(source: JsonLines) -> list[str]:
    return [source.at(position, seed=3).uid for position in range(50)]


class TestIndexOnDisk:
    def test_it_finds_what_a_plain_reading_finds(self, write: Write) -> None:
        path = write(large())
        source = JsonLines(path)
        numbers = [number + number // 100 + 1 for number in range(10_000)]
        assert source.size == 10_000
        assert [prompt.text for prompt in source.fixed(None)] == [str(number) for number in range(10_000)]
        assert [source.nth(index).uid for index in range(10_000)] == [f"mine.jsonl/{number}" for number in numbers]

    def test_lines_across_the_pieces_in_which_a_file_is_read(self, write: Write) -> None:
        """Lines that end just before, at and after each boundary of 2 MiB, and one that is longer than a piece."""
        for shift in (-1, 0, 1):
            lengths = [2 * MEGABYTE + shift, 5 * MEGABYTE, 100, 3 * MEGABYTE - 100 - shift]
            lines = [b'{"prompt": "p", "answer": "1"}'.ljust(length - 1) + b"\n" for length in lengths]
            path = write(b"".join(lines) + b" " * MEGABYTE + b"\n" + GOOD, f"{shift}.jsonl")
            uids = [prompt.uid for prompt in JsonLines(path).fixed(None)]
            assert uids == [f"{shift}.jsonl/{number}" for number in (1, 2, 3, 4, 6)]

    def test_it_is_made_once_and_again_when_the_file_changes(self, write: Write, cache_folder: Path) -> None:
        path = write(large())
        JsonLines(path)
        (index,) = cache_folder.iterdir()
        assert index.stat().st_size == 16 * 10_001
        made = index.stat()
        assert JsonLines(path).nth(9_999).text == "9999"
        assert index.stat().st_mtime_ns == made.st_mtime_ns
        assert index.stat().st_ino == made.st_ino
        with Path(path).open("ab") as file:
            file.write(GOOD)
        assert JsonLines(path).nth(10_000).text == "p"
        assert len(list(cache_folder.iterdir())) == 2
        os.utime(path, ns=(0, 0))
        assert JsonLines(path).size == 10_001
        assert len(list(cache_folder.iterdir())) == 3

    def test_small_files_have_none(self, write: Write, cache_folder: Path) -> None:
        assert JsonLines(write(numbered(100))).size == 100
        assert not cache_folder.exists()

    def test_the_folder_in_the_home_directory_is_the_default(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ASYMGRPO_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        JsonLines(write(large()))
        assert len(list((tmp_path / "home/.cache/asymgrpo").iterdir())) == 1

    def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(
        self, write: Write, cache_folder: Path
    ) -> None:
        cache_folder.write_text("a file where the folder should be")
        source = JsonLines(write(large()))
        assert source.nth(9_999).text == "9999"
        assert pickle.loads(pickle.dumps(source)).nth(9_999).text == "9999"  # noqa: S301

    def test_several_processes_may_make_it_at_once(self, write: Write, cache_folder: Path) -> None:
        path = write(large(50_000))
        with multiprocessing.get_context("fork").Pool(6) as pool:
            results = pool.map(build, [path] * 12, chunksize=1)
        assert results == [build(path)] * 12
        assert len(list(cache_folder.iterdir())) == 1

    def test_nothing_is_left_of_an_index_that_could_not_be_made(
        self, write: Write, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
    ) -> None:
        path = write(large())
        original = os.pread

        def pread(descriptor: int, length: int, start: int) -> bytes:
            with Path(path).open("ab") as file:  # somebody writes to the file meanwhile
                file.write(b"\n")
            return original(descriptor, length, start)

        monkeypatch.setattr(os, "pread", pread)
        message = refusal(JsonLines, path)
        assert message == f"{path} changed while it was in use: start again, or use a copy that stays as it is."
        assert list(cache_folder.iterdir()) == []


class TestUse:
    @pytest.mark.parametrize("content", [numbered(500), large(10_000)], ids=["in memory", "on disk"])
    def test_pickles_forks_and_threads_read_the_same(self, write: Write, content: bytes) -> None:
        source = JsonLines(write(content))
        expected = read_some(source)
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(read_some, [source] * 4, chunksize=1) == [expected] * 4
        results: list[list[str]] = []
        threads = [threading.Thread(target=lambda: results.append(read_some(source))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 8

    @pytest.mark.parametrize("content", [numbered(500), large(10_000)], ids=["in memory", "on disk"])
    def test_a_file_that_changes_in_use_is_noticed(self, write: Write, content: bytes, refusal: Refusal) -> None:
        path = write(content)
        source = JsonLines(path)
        source.nth(0)
        with Path(path).open("r+b") as file:
            file.truncate(len(content) - 1)
        message = refusal(source.nth, 0)
        assert message == f"{path} changed while it was in use: start again, or use a copy that stays as it is."

    def test_a_file_replaced_by_another_is_noticed_by_new_processes_and_harmless_to_old_ones(
        self, write: Write, refusal: Refusal
    ) -> None:
        path = write(numbered(500))
        source = JsonLines(path)
        Path(write(numbered(600), "other.jsonl")).rename(path)
        assert source.nth(499).text == "499"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            message = refusal(pool.apply, read_some, [source])
        assert message == f"{path} changed while it was in use: start again, or use a copy that stays as it is."

    def test_the_working_directory_may_change(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(numbered(3))
        monkeypatch.chdir(tmp_path)
        source = JsonLines("mine.jsonl")
        monkeypatch.chdir("/")
        source = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert source.nth(2).place == "mine.jsonl, line 3"
