import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import JsonLines
from asymgrpo_app.rewards import CountdownVerifier, ExactMatch, Verdict

Write = Callable[[bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes) -> str:
        path = tmp_path / "mine.jsonl"
        path.write_bytes(content)
        return str(path)

    return write_file


def numbered(count: int) -> bytes:
    return b"".join(b'{"prompt": "%d", "answer": %d}\n' % (number, number) for number in range(count))


def refusal(path: str, **arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        JsonLines(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 300 + 2 * len(path)
    assert message.endswith(".")
    return message


def test_reads_prompt_answer_and_every_other_field(write: Write) -> None:
    source = JsonLines(write(b'{"prompt": "2 + 2 =", "answer": "4", "level": 1}\n{"prompt": "\\u00e9", "answer": "b"}'))
    first, second = source.fixed(None)
    assert (first.uid, first.text) == ("mine.jsonl/1", "2 + 2 =")
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


def test_of_equal_prompts_the_first_is_kept(write: Write) -> None:
    source = JsonLines(
        write(b'{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2"}\n{"prompt": "a", "answer": "3"}')
    )
    assert [(prompt.text, prompt.row["answer"]) for prompt in source.fixed(None)] == [("a", "1"), ("b", "2")]


def test_each_epoch_has_every_prompt_once_in_an_order_of_its_own(write: Write) -> None:
    source = JsonLines(write(numbered(50)))
    epochs = [[source.at(50 * epoch + place, seed=0).text for place in range(50)] for epoch in range(4)]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(50)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_pure_function_of_seed_and_position(write: Write) -> None:
    path = write(numbered(20))
    source = JsonLines(path)
    forwards = [source.at(position, seed=7) for position in range(100)]
    other = JsonLines(path)
    jumps = {
        position: other.at(position, seed=7)
        for position in sorted(range(100), key=lambda position: position * 37 % 101)
    }
    assert [jumps[position] for position in range(100)] == forwards
    assert [source.at(position, seed=8) for position in range(100)] != forwards


def test_the_order_does_not_change_between_versions(write: Write) -> None:
    source = JsonLines(write(numbered(8)))
    assert "".join(source.at(position, seed=0).text for position in range(16)) == "1624537057130246"


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
    with pytest.raises(UserError, match="limit of 0 leaves no prompts"):
        source.fixed(0)


GOOD = b'{"prompt": "p", "answer": "a"}\n'


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
        (b'["p", "a"]', "expected a JSON object with the fields 'prompt' and 'answer', not '[\"p\", \"a\"]'"),
        (b"null", "expected a JSON object with the fields 'prompt' and 'answer', not 'null'"),
        (b'{"answer": "a"}', "the field 'prompt' is missing, the line has [\"answer\"]"),
        (b'{"prompt": "p", "Answer": "a"}', 'the field \'answer\' is missing, the line has ["prompt", "Answer"]'),
        (b'{"prompt": 3, "answer": "a"}', "'prompt' must be a string that is not empty, not 3"),
        (b'{"prompt": "", "answer": "a"}', "'prompt' must be a string that is not empty, not ''"),
        (b'{"prompt": " \\n", "answer": "a"}', "'prompt' must be a string that is not empty, not ' \\n'"),
        (b'{"prompt": null, "answer": "a"}', "'prompt' must be a string that is not empty, not null"),
        (b'{"prompt": ["' + b"x" * 999 + b'"], "answer": "a"}', 'not ["' + "x" * 55 + "...."),
        (b'{"prompt": "\\ud800", "answer": "a"}', "'prompt' holds half a surrogate pair, which is no text: '\\ud800'"),
        (b'{"prompt": "p", "answer": "\\udfff"}', "'answer' holds half a surrogate pair, which is no text: '\\udfff'"),
        (b'{"prompt": "p", "answer": ""}', "'answer' must be a string that is not empty or a number, not ''"),
        (b'{"prompt": "p", "answer": "  "}', "'answer' must be a string that is not empty or a number, not '  '"),
        (b'{"prompt": "p", "answer": null}', "'answer' must be a string that is not empty or a number, not null"),
        (b'{"prompt": "p", "answer": true}', "'answer' must be a string that is not empty or a number, not true"),
        (b'{"prompt": "p", "answer": [1]}', "'answer' must be a string that is not empty or a number, not [1]"),
        (b'{"prompt": "p", "answer": 1e999}', "'answer' must be a string that is not empty or a number, not Infinity"),
        (b'{"prompt": "\xff\xfe", "answer": "a"}', "not UTF-8 text, seen the bytes b'\\xff'"),
        (GOOD.strip().decode().encode("utf-16"), "not UTF-8 text, seen the bytes b'\\xff'"),
    ],
)
def test_a_broken_line_is_named_with_the_value_seen(write: Write, line: bytes, expected: str) -> None:
    path = write(GOOD + b"\n" + line + b"\n" + GOOD)
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: ")
    assert expected in message


@pytest.mark.parametrize("depth", [100, 900, 990, 1_500, 3_000])
def test_a_deeply_nested_answer_is_refused_and_not_a_crash(write: Write, depth: int) -> None:
    message = refusal(write(b'{"prompt": "p", "answer": ' + b"[" * depth + b"]" * depth + b"}"))
    assert "line 1: " in message


def test_what_the_verifier_cannot_judge_is_refused(write: Write) -> None:
    path = write(b'{"prompt": "3 5 8>", "answer": "3+5", "numbers": [3, 5], "target": "8"}\n')
    message = refusal(path, verifier=CountdownVerifier())
    assert message.startswith(
        f'{path}, line 1: CountdownVerifier cannot judge this line: "target" must be a whole number'
    )
    assert JsonLines(path).at(0, seed=0).text == "3 5 8>"


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(write: Write, content: bytes) -> None:
    path = write(content)
    assert refusal(path) == f"{path} holds no prompts: write one JSON object per line."


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jsonl")
    assert refusal(missing) == f"Cannot read the prompt file {missing!r}: No such file or directory."
    assert refusal(str(tmp_path)) == f"Cannot read the prompt file {str(tmp_path)!r}: Is a directory."
