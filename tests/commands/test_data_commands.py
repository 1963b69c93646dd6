"""`asymgrpo check` and what `fit` says about its data, through the command."""

import json
from pathlib import Path

import pytest
import transformers

from asymgrpo_app.cli import main


@pytest.fixture(autouse=True)
def _no_model(monkeypatch, tmp_path):
    def must_not_load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", must_not_load)


@pytest.fixture
def check(quickstart):
    return ["check", *quickstart[1:], "--data.validation={}"]


def write(rows: list[object]) -> list[str]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("mine.jsonl").write_text("\n".join(lines) + "\n")
    return ["--data.train=JsonLines", "--data.train.path=mine.jsonl"]


GOOD = [{"prompt": f"{n} 1 1 1 {n}>", "answer": str(n)} for n in range(1, 10)]


def test_a_sound_config_shows_what_the_policy_sees_and_writes_nothing(check, capsys):
    before = sorted(Path.cwd().rglob("*"))
    assert main(check) == 0
    out = capsys.readouterr().out
    assert "100 RL steps; a step is 64 prompts x 8 completions = 512 completions" in out
    assert "  countdown/train/0/0, " in out
    assert "\n    | " in out
    assert out.endswith("Nothing stands in the way of this run.\n")
    assert sorted(Path.cwd().rglob("*")) == before


def test_all_rows_are_looked_at_and_all_faults_told(check, capsys):
    long = {"prompt": "1" * 30, "answer": "1"}
    assert main([*check, *write([*GOOD, {"prompt": "1"}, long, "{"])]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "asymgrpo: error: 2 of the rows of data.train cannot be used (repair them, or set data.bad_rows: skip), the "
        "first: mine.jsonl, line 10: the field 'answer' is missing, the row has [\"prompt\"]. "
        "mine.jsonl, line 12: not JSON (expecting property name enclosed in double quotes at column 2), seen '{'.\n"
    )


def test_skipped_rows_are_counted(check, capsys):
    long = {"prompt": "1" * 30, "answer": "1"}
    assert main([*check, *write([*GOOD, {"prompt": "1"}, long, GOOD[0]]), "--data.bad_rows=skip"]) == 0
    out = capsys.readouterr().out
    assert "data.train: 12 rows of mine.jsonl, 10 of them can be used." in out
    assert "data.train: 1 of the first 12 rows cannot be used, the first: mine.jsonl, line 10: " in out
    assert "data.train: 1 of the first 12 rows left out for too many tokens, the first: mine.jsonl, line 11: " in out
    assert "data.train: 1 of the first 12 rows with the prompt of an earlier row." in out


CLASS_NAMES = {
    "data.train": ["--data.train=JsonLines", "--data.train.path=mine.jsonl"],
    "verifier": ["--data.train=JsonLines", "--data.train.path=mine.jsonl", "--data.train.verifier=MathVerifier"],
    "template": ["--data.template=PlainTemplate", "--data.template.format=1 {prompt}"],
}


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_classes_go_by_their_names_alone(name, check):
    write(GOOD)
    assert main([*check, *CLASS_NAMES[name]]) == 0


def test_a_verifier_of_ones_own_from_a_file_beside_the_config(check, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("my_verifiers.py").write_text(
        "from asymgrpo_app.rewards import Verdict, Verifier\n\n"
        "class Even(Verifier):\n"
        "    def verify(self, completion, row):\n"
        "        return Verdict(completion.strip().isdigit() and int(completion) % 2 == 0)\n\n"
        "    def check_row(self, row):\n"
        "        if row['answer'] == '7':\n"
        "            raise ValueError('seven is odd')\n"
    )
    arguments = [*check, *write(GOOD), "--data.train.verifier=my_verifiers.Even"]
    assert main(arguments) == 2
    assert "mine.jsonl, line 7: Even cannot judge this row: seven is odd." in capsys.readouterr().err


OLD = {
    "a limit on failures": (["--rollout.max_verifier_failures=2"], "rollout.max_verifier_failures", "2"),
    "workers": (["--data.verifiers.workers=0"], "workers", "0"),
    "a timeout": (["--data.verifiers.timeout_s=-1"], "timeout_s", "-1"),
    "what bad rows do": (["--data.bad_rows=ignore"], "data.bad_rows", "ignore"),
    "a template without a place": (["--data.template=PlainTemplate", "--data.template.format=x"], "{prompt}", "'x'"),
    "a template for chat models": (["--data.template=ChatTemplate"], "no chat template"),
    "a mixture of nothing": (["--data.train=Mixture", "--data.train.sources=[]"], "at least one source"),
    "no matching file": (["--data.train=JsonLines", "--data.train.path=none/*.jsonl"], "none/*.jsonl"),
    "no Parquet file": (["--data.train=ParquetFiles", "--data.train.path=none.parquet"], "none.parquet"),
    "a task that is refused": (
        ["--data.train=ReasoningGym", "--data.train.task=simple_integration"],
        "simple_integration",
    ),
    "a task that is none": (["--data.train=ReasoningGym", "--data.train.task=no_such"], "no_such"),
    "a shaping term without texts": (
        ["--model.shaping=[{class_path: FormatPenalty, init_args: {required: []}}]"],
        "FormatPenalty",
        "required",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_one_sentence_and_code_2(name, check, capsys):
    arguments, *expected = OLD[name]
    assert main([*check, *arguments]) == 2
    captured = capsys.readouterr()
    (sentence,) = captured.err.strip().splitlines()
    for part in expected:
        assert part in sentence
