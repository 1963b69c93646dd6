"""Texts of files, models and servers are shown on the terminal, which never obeys them."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.utilities import rank_zero_only

from asymgrpo_app.checkpoints.config_changes import config_changes
from asymgrpo_app.cli import command, main
from asymgrpo_app.cli.resume import compare_with_checkpoint
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, results, set_result, table
from asymgrpo_app.runtime import console
from asymgrpo_app.runtime.console import complain, lines_of, printable, quiet_libraries, say
from tests.support.checkpoint_files import state
from tests.support.crafted_archives import label, saved, sealed
from tests.support.paths import POLICY, QUICKSTART

ESCAPES = {
    "clear the screen": "\x1b[2J",
    "a link": "\x1b]8;;https://evil.example\x1b\\x\x1b]8;;\x1b\\",
    "the title": "\x1b]0;x\x07",
    "a title in 8 bits": "\x9d0;x\x9c",
    "a colour in 8 bits": "\x9b31m",
    "back over the line": "ok\rasymgrpo: done",
    "backspaces": "x\b\b\b\b",
    "a second line": "x\nasymgrpo: all is well",
    "a line of Unicode": "x\u2028y\u2029z\x85",
    "from right to left": "\u202ecba\u202c\u2066\u200f",
    "nothing to see": "a\u200b\u200d\ufeffb",
    "half a pair": "\ud83d",
    "a null": "\0",
    "delete": "\x7f",
    "a tag": "\U000e0041",
}
IN_FILES = [name for name in ESCAPES if name != "half a pair"]  # no Unicode, which files hold
BAD = set("".join(ESCAPES.values())) - set("\n\\" + "".join(map(chr, range(33, 127))) + " ")


def assert_shown(text: str) -> None:
    assert not BAD & set(text), ascii(text)


@pytest.mark.parametrize("name", ESCAPES)
def test_what_is_said_and_complained_of_is_printable(capsys, name):
    text = ESCAPES[name]
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    say(f"one {printable(text)}\ntwo {text.replace(chr(10), ' ')}")
    complain(f"asymgrpo: error: {text}")
    out, error = capsys.readouterr()
    assert_shown(out + error)
    assert (out.count("\n"), error.count("\n")) == (2, 1)


@pytest.mark.parametrize("kind", [UserError, RunError])
@pytest.mark.parametrize("name", ESCAPES)
def test_a_command_ends_with_one_line(monkeypatch, capsys, name, kind):
    def failing(_: object) -> int:
        raise kind(f"{ESCAPES[name]} is wrong.")

    monkeypatch.setattr("asymgrpo_app.cli.compare.run", failing)
    assert main(["compare"]) == (2 if kind is UserError else 1)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert_shown(error)


def test_recursion_in_other_code_is_no_bad_input(monkeypatch):
    def failing(_: object) -> int:
        raise RecursionError("in an advantage")

    monkeypatch.setattr("asymgrpo_app.cli.compare.run", failing)
    with pytest.raises(RecursionError, match="in an advantage"):
        main(["compare"])


def test_of_a_very_long_line_beginning_and_end_are_shown(capsys):
    console.complain("begin " + "\x1b" * 2_000 + " end.")
    line = capsys.readouterr().err
    assert len(line) == 2_001
    assert line.startswith("begin \\x1b\\x1b")
    assert line.endswith("\\x1b end.\n")


def test_values_nested_too_deeply_end_a_command_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr("asymgrpo_app.cli.compare.run", lambda _: json.loads("[" * 100_000))
    assert main(["compare"]) == 2
    assert capsys.readouterr().err == (
        "asymgrpo: error: a value in one of the files is nested too deeply to be read.\n"
    )


@pytest.mark.parametrize("name", ESCAPES)
def test_a_traceback_and_a_warning_quote_texts_of_files_too(capsys, name):
    try:
        raise ValueError(ESCAPES[name])
    except ValueError as error:
        console.show_failure(ValueError, error, error.__traceback__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        quiet_libraries()
        text = warnings.formatwarning(ESCAPES[name], UserWarning, "file.py", 1)
    out, error = capsys.readouterr()
    assert_shown(out + error + text)
    assert "ValueError: " in error
    assert text.startswith("file.py:1: UserWarning: ")
    assert text.count("\n") == 1


def test_the_program_shows_failures_so(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(command, "main", lambda: 0)
    with pytest.raises(SystemExit):
        command.entry_point()
    assert sys.excepthook is console.show_failure


# ---- through the commands ----


def run(arguments: list[str], capsys) -> tuple[int, str, str]:
    code = main(arguments)
    out, error = capsys.readouterr()
    assert_shown(out + error)
    return code, out, error


CONFIGS = {
    "a key": lambda text: {text: 1},
    "a key of a section": lambda text: {"data": {text: 1}},
    "a value": lambda text: {"steps": text},
    "a folder": lambda text: {"model": {"policy": f"./{text}"}},
    "a class": lambda text: {"data": {"train": {"class_path": text}}},
    "a file of data": lambda text: {"data": {"train": {"class_path": "JsonLines", "init_args": {"path": text}}}},
    "a section": lambda text: {"data": [text]},
    "the name of a set": lambda text: {"data": {"validation": {text: {"source": "Countdown", "limit": 3}}}},
}
SOME = ["clear the screen", "a second line", "from right to left", "a colour in 8 bits"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("place", CONFIGS)
def test_a_config_of_a_stranger(tmp_path, monkeypatch, capsys, place, name):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIGS[place](ESCAPES[name])))
    code, _, error = run(["check", *QUICKSTART, "--config=mine.yaml"], capsys)
    assert code == 2
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", SOME)
def test_yaml_that_cannot_be_read(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for content in (
        f"steps: [{ESCAPES[name]}",
        f'"{ESCAPES[name]}": 1\n"{ESCAPES[name]}": 2\n',
        f"- {ESCAPES[name]}\n",
    ):
        Path("mine.yaml").write_text(content)
        code, _, error = run(["check", *QUICKSTART, "--config=mine.yaml"], capsys)
        assert (code, error.count("\n")) == (2, 1)


class _Section:
    steps = 9
    ckpt_path = ""


@pytest.mark.parametrize("name", IN_FILES)
def test_the_config_in_a_checkpoint(tmp_path, capsys, name):
    config = yaml.safe_dump({"steps": 3, "model": {"beta": ESCAPES[name]}, ESCAPES[name]: 1, "seed_everything": 1})
    content = state(1, 4) | {"asymgrpo": {"completed_steps": 1, "config": config}}
    section = _Section()
    section.ckpt_path = str(sealed(tmp_path / "step-00000001.ckpt", saved(content), label()))
    compare_with_checkpoint(section, "steps: 3\nmodel: {beta: 1}\nseed_everything: 1\n")
    out = capsys.readouterr().out
    assert_shown(out)
    assert len(out.splitlines()) == 3
    assert all(str(change).isprintable() for change in config_changes(config, "steps: 4\n"))


@pytest.mark.parametrize("name", IN_FILES)
def test_names_in_results(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    own = set_result(EvaluationProtocol(1, 2, 1.0, 1.0, 16), ["a"], {"avg@2": [0.5], ESCAPES[name]: [1.0]})
    content = results(EvaluationRun("m", None, 0), {ESCAPES[name]: own})
    assert_shown(table(content))
    assert len(table(content).splitlines()) == 4
    for file in ("a.json", "b.json"):
        write_record(Path(file), content)
    code, out, _ = run(["compare", "a.json", "b.json"], capsys)
    assert (code, len(out.splitlines())) == (0, 3)
    code, out, error = run(["compare", "a.json", "b.json", "--set=x"], capsys)
    assert (code, error.count("\n")) == (2, 1)
    code, out, error = run(["compare", "a.json", "b.json", "--metric=x"], capsys)
    assert (code, error.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", SOME)
def test_completions_that_are_judged(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    verifier = (
        "from asymgrpo_app.rewards import Verdict, Verifier\n"
        "class Own(Verifier):\n    def verify(self, completion, row):\n        raise ValueError(completion)\n"
    )
    Path("own_terminal.py").write_text(verifier)
    Path("in.jsonl").write_text(json.dumps({"completion": ESCAPES[name], "answer": "4"}) + "\n")
    code, out, _ = run(["score", "--verifier=own_terminal.Own", "--input=in.jsonl", "--pool.workers=1"], capsys)
    assert code == 0
    assert "first error: in.jsonl, line 1" in out
    Path("in.jsonl").write_text(json.dumps({ESCAPES[name]: 1}) + "\n")
    code, _, error = run(["score", "--verifier=ExactMatch", "--input=in.jsonl", "--pool.workers=1"], capsys)
    assert (code, error.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", SOME)
def test_an_export_of_a_stranger(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    content = state(1, 4) | {"asymgrpo": {"completed_steps": 1, "config": ""}}
    content["state_dict"] = {f"policy.{printable(ESCAPES[name])}": content["state_dict"]["policy.weight"]}
    path = sealed(Path("run/checkpoints/step-00000001.ckpt"), saved(content), label())
    for config in (
        f"a: {ESCAPES[name]}",
        yaml.safe_dump({"model": {"policy": ESCAPES[name]}}),
        f"model: {{policy: {POLICY}}}",
    ):
        Path("run/config.yaml").write_text(config)
        code, _, error = run(["export", f"--ckpt_path={path}"], capsys)
        assert (code, error.count("\n")) == (2, 1)


def test_only_the_first_process_says_anything(monkeypatch, capsys):
    assert console.rank_zero_only is rank_zero_only  # Lightning's
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        console.say(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_lines_of_keeps_our_own():
    assert lines_of("a\nb\tc\n") == "a\nb\\tc\n"
