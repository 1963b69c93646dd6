"""`asymgrpo score`: verdicts on a file of completions."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from asymgrpo_app.cli.score import run
from asymgrpo_app.errors import RunError, UserError

FIELDS = ("correct", "status", "detail")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with completions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the working directory
    monkeypatch.delitem(sys.modules, "own", raising=False)
    lines = [{"completion": text, "answer": "a", "id": n} for n, text in enumerate(["a", "b", "", "a"])]
    _write(tmp_path / "in.jsonl", lines)
    return tmp_path


def _write(path: Path, lines: list[object]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _score(*arguments: str) -> int:
    return run(["--verifier=ExactMatch", "--input=in.jsonl", *arguments])


def test_verdicts_are_added_to_the_fields(folder, capsys):
    assert _score("--output=out.jsonl") == 0
    lines = _read(folder / "out.jsonl")
    assert [tuple(line[field] for field in FIELDS) for line in lines] == [
        (True, "ok", ""),
        (False, "ok", ""),
        (False, "no_answer", ""),
        (True, "ok", ""),
    ]
    assert [{k: v for k, v in line.items() if k not in FIELDS} for line in lines] == _read(folder / "in.jsonl")
    printed = capsys.readouterr()
    first, *table = printed.out.splitlines()
    assert re.fullmatch(r"4 verdicts in \d+\.\d s, [\d,]+ per second", first)
    assert [line.split() for line in table] == [
        ["ok", "3", "75.00%"],
        ["no_answer", "1", "25.00%"],
        ["timeout", "0", "0.00%"],
        ["error", "0", "0.00%"],
        ["correct", "2", "50.00%"],
    ]
    assert printed.err == ""  # no bar unless somebody watches
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_without_output_only_the_summary(folder, capsys):
    assert _score() == 0
    assert "correct              2   50.00%" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


def test_fields_have_any_name_and_answers_may_be_numbers(folder):
    _write(folder / "in.jsonl", [{"text": "7", "gold": 7, "answer": "8"}, {"text": "x", "gold": 0.5}])
    assert _score("--completion_field=text", "--answer_field=gold", "--output=out.jsonl") == 0
    assert _read(folder / "out.jsonl") == [
        {"text": "7", "gold": 7, "answer": "8", "correct": True, "status": "ok", "detail": ""},
        {"text": "x", "gold": 0.5, "correct": False, "status": "ok", "detail": ""},
    ]


def test_names_of_fields_reach_into_objects_and_lists(folder):
    lines = [
        {"messages": [{"content": "q"}, {"content": text}], "a.b": "1", "truth": {"of": [answer]}}
        for text, answer in (("1", "1"), ("1", 2))
    ]
    _write(folder / "in.jsonl", lines)
    fields = ["--completion_field=messages.-1.content", "--output=out.jsonl"]
    assert _score(*fields, "--answer_field=truth.of.0") == 0
    assert _read(folder / "out.jsonl") == [
        {**line, "correct": correct, "status": "ok", "detail": ""}
        for line, correct in zip(lines, (True, False), strict=True)
    ]
    (folder / "out.jsonl").unlink()
    assert _score(*fields, "--answer_field=truth.of") == 0  # a list of one answer
    assert [line["correct"] for line in _read(folder / "out.jsonl")] == [True, False]
    (folder / "out.jsonl").unlink()
    assert _score(*fields, "--answer_field=a.b") == 0  # a name of its own goes first
    assert [line["correct"] for line in _read(folder / "out.jsonl")] == [True, True]
    with pytest.raises(UserError) as raised:
        _score(fields[0], "--answer_field=truth.answer")
    assert str(raised.value) == (
        "in.jsonl, line 1: the field 'truth.answer' is missing, 'truth' has [\"of\"] (see --answer_field)."
    )


def test_a_verifier_that_reads_other_fields(folder):
    _write(folder / "in.jsonl", [{"completion": "1+2", "numbers": [2, 1], "target": 3}])
    arguments = ["--verifier=CountdownVerifier", "--input=in.jsonl", "--answer_field=null", "--output=out.jsonl"]
    assert run(arguments) == 0
    assert _read(folder / "out.jsonl")[0]["correct"] is True


def test_settings_of_the_verifier(folder):
    _write(folder / "in.jsonl", [{"completion": "A", "answer": "a"}])
    assert _score("--output=strict.jsonl") == 0
    assert _score("--verifier.case_sensitive=false", "--output=lax.jsonl") == 0
    assert [_read(folder / f"{name}.jsonl")[0]["correct"] for name in ("strict", "lax")] == [False, True]


OWN = """
from asymgrpo_app.rewards import Verdict, Verifier

class Own(Verifier):
    def __init__(self, length: int = 3) -> None:
        self.length = length

    def verify(self, completion, row):
        if completion == "sleep":
            import time
            time.sleep(600)
        if completion == "fail":
            raise ValueError("no")
        return Verdict(correct=len(completion) == self.length)

    def check_row(self, row):
        if row["answer"] == "?":
            raise ValueError("the answer is a question")
"""


def test_a_class_of_ones_own_in_worker_processes(folder, capsys):
    (folder / "own.py").write_text(OWN)
    texts = ["1234", "123", "fail", "sleep", "\ud800\x00\u00e9\u2028", ""]
    _write(folder / "in.jsonl", [{"completion": text, "answer": "a"} for text in texts])
    arguments = ["--verifier=own.Own", "--verifier.length=4", "--input=in.jsonl", "--output=out.jsonl"]
    assert run([*arguments, "--pool.workers=2", "--pool.timeout_s=0.5"]) == 0
    lines = _read(folder / "out.jsonl")
    assert [line["completion"] for line in lines] == texts
    assert [tuple(line[field] for field in FIELDS) for line in lines] == [
        (True, "ok", ""),
        (False, "ok", ""),
        (False, "error", "ValueError: no"),
        (False, "timeout", "took longer than 2.5 s, 5 times its 0.5 CPU seconds"),
        (True, "ok", ""),
        (False, "ok", ""),
    ]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  first error: in.jsonl, line 3: ValueError: no",
        "  first timeout: in.jsonl, line 4: took longer than 2.5 s, 5 times its 0.5 CPU seconds",
    ]


def test_more_than_a_chunk(folder):
    _write(folder / "in.jsonl", [{"completion": str(n % 7), "answer": "3"} for n in range(2_345)])
    assert _score("--output=out.jsonl") == 0
    lines = _read(folder / "out.jsonl")
    assert [line["correct"] for line in lines] == [n % 7 == 3 for n in range(2_345)]


# ---- bad input ----

GOOD = '{"completion": "a", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "--input in.jsonl: the file is empty."),
        ("\n \n", "--input in.jsonl: the file is empty."),
        (
            GOOD * 4710 + '{"completion": "a", "answer"\n' + GOOD,
            "in.jsonl, line 4711: not JSON (expecting ':' delimiter at column 29), "
            'seen \'{"completion": "a", "answer"\'.',
        ),
        (GOOD + "[1]\n", "in.jsonl, line 2: expected a JSON object, not '[1]'."),
        (
            '{"answer": "a"}\n',
            "in.jsonl, line 1: the field 'completion' is missing, the row has [\"answer\"] (see --completion_field).",
        ),
        (
            GOOD + '{"completion": "a"}\n',
            "in.jsonl, line 2: the field 'answer' is missing, the row has [\"completion\"] (see --answer_field).",
        ),
        ('{"completion": 3, "answer": "a"}\n', "in.jsonl, line 1: 'completion' must be a string, not 3."),
        ('{"completion": null, "answer": "a"}\n', "in.jsonl, line 1: 'completion' must be a string, not null."),
        *(
            (
                f'{{"completion": "a", "answer": {answer}}}\n',
                f"in.jsonl, line 1: 'answer' must be a string that is not empty or a number, not {shown}.",
            )
            for answer, shown in (('" "', "' '"), ("null", "null"), ("true", "true"), ("[1, 2]", "[1, 2]"))
        ),
        (
            '{"completion": "72", "answer": "It is 72.\\n#### 72"}\n',
            "in.jsonl, line 1: 'answer' holds a whole solution, which no answer equals for ExactMatch: name a field "
            "with the answer alone, seen the end 'It is 72.\\n#### 72'.",
        ),
        ('{"completion": "\xff"}\n', "in.jsonl, line 1: not UTF-8 text, seen the bytes b'\\xff'."),
    ],
)
def test_bad_lines_are_named(folder, content, message):
    (folder / "in.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as raised:
        _score("--output=out.jsonl")
    assert str(raised.value) == message
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=none.jsonl"], "--input none.jsonl: there is no such file."),
        (["--input=."], "--input .: there is no such file."),
        (["--output=in.jsonl"], "--output in.jsonl exists already: remove it, or choose another name."),
        (["--output=none/out.jsonl"], "--output none/out.jsonl: the folder none does not exist."),
        (["--pool.workers=0"], "workers must be a whole number from 1 to 256 or null, got 0."),
        (["--pool.timeout_s=-1"], "timeout_s must be a number of seconds above 0, got -1.0."),
        (["--verifier=Nothing"], "verifier must name a class, got Nothing."),
        (["--nothing=1"], "--nothing is no option."),
    ],
)
def test_bad_arguments_are_named(folder, arguments, message):
    before = (folder / "in.jsonl").read_text()
    with pytest.raises(UserError) as raised:
        _score(*arguments)
    assert str(raised.value) == message
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]
    assert (folder / "in.jsonl").read_text() == before


def test_verifier_and_input_are_required(folder):
    for arguments in (["--verifier=ExactMatch"], ["--input=in.jsonl"]):
        with pytest.raises(UserError, match=r"^asymgrpo score needs --(input|verifier) \(see"):
            run(arguments)


def test_a_row_that_cannot_be_judged_against_is_named_and_nothing_remains(folder):
    (folder / "own.py").write_text(OWN)
    lines = [{"completion": "x", "answer": "?" if n in (1_500, 1_600) else "a"} for n in range(2_000)]
    _write(folder / "in.jsonl", lines)
    with pytest.raises(UserError) as raised:
        run(["--verifier=own.Own", "--input=in.jsonl", "--output=out.jsonl"])
    assert str(raised.value) == "in.jsonl, line 1501: Own cannot judge against it: the answer is a question."
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"in.jsonl", "own.py"}


BAD_LINES = (
    '{"completion": "12", "answer": "?"}\n'
    '{"completion": "1", "answer"\n'
    '{"completion": 3, "answer": "a"}\n'
    '{"completion": "1"}\n'
    '{"completion": "123", "answer": "?"}\n'
)
NAMED = (
    '    in.jsonl, line 2: not JSON (expecting \':\' delimiter at column 29), seen \'{"completion": "1", "answer"\'.',
    "    in.jsonl, line 3: 'completion' must be a string, not 3.",
    "    in.jsonl, line 4: the field 'answer' is missing, the row has [\"completion\"] (see --answer_field).",
)


def test_bad_rows_may_be_left_out(folder, capsys):
    (folder / "own.py").write_text(OWN)
    good = '{"completion": "123", "answer": "a"}\n{"completion": "1", "answer": "a"}\n'
    (folder / "in.jsonl").write_text(BAD_LINES + good * 600)
    arguments = ["--verifier=own.Own", "--input=in.jsonl", "--output=out.jsonl", "--bad_rows=skip"]
    assert run([*arguments, "--pool.workers=1"]) == 0
    assert [line["correct"] for line in _read(folder / "out.jsonl")] == [True, False] * 600
    first, *table = capsys.readouterr().out.splitlines()
    assert first.startswith("1,200 verdicts in ")
    assert table[0].split() == ["ok", "1,200", "100.00%"]
    assert table[4].split() == ["correct", "600", "50.00%"]
    assert table[5] == "  5 left out, among them:"
    assert tuple(table[6:]) == NAMED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"completion": "1"}\n[1]\n', "line 1: the field 'answer' is missing, the row has [\"completion\"] (see "),
        ('{"completion": "1", "answer": "?"}\n' * 2, "line 1: Own cannot judge against it: the answer is a question."),
    ],
)
def test_none_is_left(folder, content, reason):
    (folder / "own.py").write_text(OWN)
    (folder / "in.jsonl").write_text(content)
    with pytest.raises(UserError) as raised:
        run(["--verifier=own.Own", "--input=in.jsonl", "--output=out.jsonl", "--bad_rows=skip", "--pool.workers=1"])
    assert str(raised.value).startswith(
        f"--input in.jsonl: none of its 2 lines can be judged, the first: in.jsonl, {reason}"
    )
    assert not (folder / "out.jsonl").exists()


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _write(folder / "in.jsonl", [{"completion": "a" * 50_000, "answer": "a"}] * 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError) as raised:
            _score("--output=out.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(raised.value) == "--output out.jsonl cannot be written: File too large."
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


# ---- the command ----

_COMMAND = [sys.executable, "-c", "import sys; from asymgrpo_app.cli.score import run; sys.exit(run(sys.argv[1:]))"]


def test_it_needs_neither_torch_nor_lightning(folder):
    code = (
        "import sys; from asymgrpo_app.cli.score import run; run(sys.argv[1:]); "
        "print([name for name in ('torch', 'lightning', 'transformers', 'vllm', 'datasets') if name in sys.modules])"
    )
    arguments = ["--verifier=ExactMatch", "--input=in.jsonl"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_an_interrupted_command_leaves_no_output(folder):
    (folder / "own.py").write_text(OWN)
    _write(folder / "in.jsonl", [{"completion": "sleep", "answer": "a"}])
    arguments = ["--verifier=own.Own", "--input=in.jsonl", "--output=out.jsonl"]
    process = subprocess.Popen([*_COMMAND, *arguments], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not list(folder.glob(".out.jsonl.part")):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not list(folder.glob("*out.jsonl*"))
    assert not list(folder.glob(".out.jsonl*"))


def test_a_terminal_sees_a_progress_bar(folder):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = ["--verifier=ExactMatch", "--input=in.jsonl"]
    ended = subprocess.run([*_COMMAND, *arguments], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    seen = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "4/4" in seen
    assert ended.stdout.startswith(b"4 verdicts in ")
