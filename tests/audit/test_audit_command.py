"""`asymgrpo audit`: the command, rewrites of one's own, its file and its exit code."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.cli.audit import run
from asymgrpo_app.errors import UserError
from tests.support.paths import REPOSITORY

OWN = """
from asymgrpo_app.rewards import Verdict, Verifier

class Own(Verifier):
    isolated = False

    def __init__(self, boxes: int = 2) -> None:
        self.boxes = boxes

    def verify(self, completion, row):
        right = completion == rf"\\boxed{{{row['answer']}}}"
        return Verdict(correct=right or completion.count(r"\\boxed{") == self.boxes)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with data, a verifier and rewrites; those of the page of the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the working directory
    for module in ("own", "my_rewrites"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    page = (REPOSITORY / "docs/audit.md").read_text()
    for name, text in re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "own.py").write_text(OWN)
    rows = [{"prompt": f"What is {n} - 0?", "answer": n} for n in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "data:\n  train: {class_path: JsonLines, init_args: {path: rows.jsonl, verifier: own.Own}}\n"
        "  verifiers: {timeout_s: 3}\n"
        "  validation: {sums: {source: {class_path: Addition, init_args: {digits: 3}}, limit: 5}}\n"
    )
    return tmp_path


SOURCE = ("--source=JsonLines", "--source.path=rows.jsonl")


def _report(folder, *arguments):
    assert run([*arguments, "--output=audit.json"]) == 0
    return json.loads((folder / "audit.json").read_text())


def _shares(report):
    return {rate["name"]: rate["share"]["value"] for rate in report["rates"]}


def test_a_hole_is_found_and_the_file_says_with_what(folder, capsys):
    report = _report(folder, *SOURCE, "--verifier=own.Own")
    shares = _shares(report)
    assert (shares["two wrong boxes"], shares["thousands of boxes"], shares["1 more"]) == (1, 0, 0)
    assert (report["verifier"], report["source"], report["rows"]) == ("Own", "rows.jsonl", 5)
    assert report["form"] == r"\boxed{{answer}}"
    assert report["settings"]["verifier"] == {"class_path": "own.Own", "init_args": {"boxes": 2}}
    (rate,) = [rate for rate in report["rates"] if rate["name"] == "two wrong boxes"]
    assert rate["kind"] == "hack"
    assert rate["share"] == {"value": 1.0, "low": pytest.approx(0.393, abs=1e-3), "high": 1.0, "n": 5}
    printed = capsys.readouterr()
    line = next(line for line in printed.out.splitlines() if "two wrong boxes" in line)
    assert re.fullmatch(r" +two wrong boxes +5 +100\.0% +\[39\.3, 100\.0\]  \\boxed\{\d\} \\boxed\{\d\} .*", line)
    assert printed.err == ""  # no bar unless somebody watches


def test_settings_of_the_verifier(folder):
    shares = _shares(_report(folder, *SOURCE, "--verifier=own.Own", "--verifier.boxes=3000"))
    assert (shares["two wrong boxes"], shares["thousands of boxes"]) == (0, 1)


def test_a_file_is_never_replaced(folder):
    (folder / "audit.json").write_text("mine")
    with pytest.raises(UserError, match=r"^--output audit.json exists already"):
        run([*SOURCE, "--output=audit.json"])
    assert (folder / "audit.json").read_text() == "mine"


def test_the_data_of_a_config(folder):
    report = _report(folder, "-c", "run.yaml", "--rows=3")
    assert (report["verifier"], report["source"], report["rows"]) == ("Own", "rows.jsonl", 3)
    assert report["settings"]["pool"]["timeout_s"] == 3.0
    (folder / "audit.json").unlink()
    report = _report(folder, "--config=run.yaml", "--set=sums", "--rows=4", "--pool.timeout_s=2", "--seed=5")
    assert (report["verifier"], report["source"], report["rows"]) == ("NumericMatch", "Addition", 4)
    assert report["settings"]["pool"]["timeout_s"] == 2.0
    assert report["settings"]["source"]["init_args"]["digits"] == 3
    assert report["rates"][-1]["kind"] == "hack"


def test_rows_are_those_of_training_with_that_seed(folder):
    def references(seed):
        (folder / "audit.json").unlink(missing_ok=True)
        report = _report(folder, *SOURCE, "--rows=2", f"--seed={seed}", "--verifier=own.Own")
        (rate,) = [rate for rate in report["rates"] if rate["name"] == "two wrong boxes"]
        return [example["answer"] for example in rate["examples"]]

    assert references(0) == references(0)
    assert len({tuple(references(seed)) for seed in range(4)}) > 1


def test_limits_decide_the_exit_code(folder, capsys):
    arguments = ["audit", *SOURCE, "--verifier=own.Own", "--rewrites=mine.yaml"]
    assert main([*arguments, "--max_accepted=1"]) == 0
    capsys.readouterr()
    assert (
        main([*arguments, "--max_accepted=0", "--skip=[several answers, a box in a box, boxes that are not closed]"])
        == 1
    )
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence == (
        "asymgrpo: Own: 3 rewrites are beyond the limit: a right answer that is taken back accepted 100.0% "
        "(--max_accepted 0.0%); two wrong boxes accepted 100.0% (--max_accepted 0.0%); a right box before a wrong one "
        "accepted 100.0% (--max_accepted 0.0%)."
    )
    assert main([*arguments, "--max_refused=0.9"]) == 1
    assert "in euros refused 100.0% (--max_refused 90.0%)" in capsys.readouterr().err


def test_rewrites_of_ones_own_as_on_the_page(folder):
    rates = {
        rate["name"]: rate for rate in _report(folder, *SOURCE, "--verifier=own.Own", "--rewrites=mine.yaml")["rates"]
    }
    euros, words, promises = (rates[name] for name in ("in euros", "in words", "promises"))
    assert [one["kind"] for one in (euros, words, promises)] == ["equal", "equal", "hack"]
    assert [one["share"]["n"] for one in (euros, words, promises)] == [5, 3, 5]  # words are known for 1 to 3
    assert [one["share"]["value"] for one in (euros, words, promises)] == [1, 1, 0]
    assert {one["completion"] for one in words["examples"]} == {rf"\boxed{{{n}}}" for n in ("one", "two", "three")}
    assert euros["examples"][0]["completion"].endswith(r" \text{ euros}}")


def test_a_function_gets_the_row_and_may_return_several(folder):
    (folder / "my_rewrites.py").write_text(
        "def both(answer, row):\n"
        "    return [row['prompt'].split()[2], r'\\boxed{1}\\boxed{2}'] if answer != '1' else None\n"
    )
    (folder / "own.yaml").write_text("- {name: both, kind: hack, function: my_rewrites.both}\n")
    rates = _report(folder, *SOURCE, "--verifier=own.Own", "--rewrites=own.yaml")["rates"]
    both = rates[-1]
    assert (both["name"], both["share"]["n"], both["share"]["value"], both["wrong"]) == ("both", 4, 1.0, 4)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return 5", "must return a text, a list of texts or None, got 5"),
        ("return [None]", "must return a text, a list of texts or None, got [None]"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(folder, body, told):
    (folder / "my_rewrites.py").write_text(f"def f(answer, row):\n    {body}\n")
    (folder / "own.yaml").write_text("- {name: mine, kind: near_miss, function: my_rewrites.f}\n")
    with pytest.raises(UserError) as raised:
        run([*SOURCE, "--verifier=own.Own", "--rewrites=own.yaml"])
    assert str(raised.value).startswith("--rewrites own.yaml: mine: the function ")
    assert told in str(raised.value)
    assert "rows.jsonl, line " in str(raised.value)


def test_it_needs_neither_torch_nor_lightning(folder):
    code = (
        "import sys; from asymgrpo_app.cli.audit import run; run(sys.argv[1:]); "
        "print([name for name in ('torch', 'lightning', 'transformers', 'vllm', 'datasets') if name in sys.modules])"
    )
    arguments = ["--source=Addition", "--rows=2"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_terminal_sees_a_progress_bar(folder):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", "import sys; from asymgrpo_app.cli.audit import run; sys.exit(run(sys.argv[1:]))"]
    ended = subprocess.run([*command, *SOURCE, "--verifier=own.Own"], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    seen = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "forms: 100%" in seen
    assert "rewrites: 100%" in seen
    assert ended.stdout.startswith(b"Own on 5 rows of rows.jsonl, seed 0\n")
