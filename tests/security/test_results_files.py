"""Files of evaluations and of completions by strangers: what is wrong with them is one sentence."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from asymgrpo_app.checkpoints.run_folder import claimed
from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.predictions import PredictionHeader, header_path
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, results, set_result
from tests.support.paths import QUICKSTART

PROTOCOL = EvaluationProtocol(problems=2, samples=2, temperature=1.0, top_p=1.0, max_tokens=16)
SET = set_result(PROTOCOL, ["a", "b"], {"avg@2": [0.5, 1.0], "length": [3.0, 4.0]})
LINE = {
    "set": "s",
    "uid": "a",
    "index": 0,
    "sample": 0,
    "completion": "4",
    "correct": True,
    "status": "ok",
    "truncated": False,
    "length": 3,
    "logprob_sum": -0.5,
    "answer_class": 0,
}
HUGE = "1" + "0" * 4_000
NUMBERS = ["1e999", "-1e999", "1e308", "-1e308", "1e200", HUGE, "9" * 5_000, "NaN", "Infinity", "1e-999", "0"]
VALUES = [
    *NUMBERS,
    "null",
    "true",
    '"x"',
    "[]",
    "{}",
    "[[1]]",
    "[" * 100_000,
    '{"a":' * 20_000,
    '"\\ud800"',
    '"\\u001b[2J"',
]
BY_TIME = [
    text if text in ("1e999", HUGE, "null", '"\\u001b[2J"') else pytest.param(text, marks=pytest.mark.long)
    for text in VALUES
]


def good() -> str:
    path = Path("good.json")
    if not path.exists():
        write_record(path, results(EvaluationRun("m", None, 0), {"s": SET}))
    return path.read_text()


def paths_of(value, prefix=()):
    """The places of all values in JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*prefix, key)
        yield from paths_of(inner, (*prefix, key))


MARK = "put-it-here"


def changed(content: str, place: tuple, text: str) -> str:
    """A JSON text with another text in the place of a value."""
    data = json.loads(content)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = MARK
    return json.dumps(data).replace(f'"{MARK}"', text)


def said(arguments, capsys) -> tuple[int, str]:
    """Code and output of a command that may work or refuse, but never fail in another way."""
    began = time.process_time()
    code = main(arguments)
    out, error = capsys.readouterr()
    assert time.process_time() - began < 10
    assert code in (0, 2), error
    assert "\x1b" not in out + error
    if code:
        (line,) = error.splitlines()
        assert line.startswith("asymgrpo: error: ")
        assert len(line) < 1_000
    return code, out + error


@pytest.mark.parametrize("text", BY_TIME, ids=lambda text: text[:12])
def test_compare_takes_or_refuses_any_value_in_any_place_of_results(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    content = good()
    for place in paths_of(json.loads(content)):
        Path("bad.json").write_text(changed(content, place, text))
        for pair in (["good.json", "bad.json"], ["bad.json", "good.json"]):
            for metric in ("accuracy", "length"):
                said(["compare", *pair, f"--metric={metric}"], capsys)


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:12])
def test_compare_takes_or_refuses_any_value_in_any_place_of_predictions(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    for name in LINE:
        lines = [json.dumps(LINE), changed(json.dumps(LINE | {"sample": 1}), (name,), text)]
        for file in ("one.jsonl", "two.jsonl"):
            Path(file).write_text("".join(f"{line}\n" for line in lines))
        for metric in ("accuracy", "length", "entropy_estimate", "maj@2"):
            said(["compare", "one.jsonl", "two.jsonl", f"--metric={metric}"], capsys)


@pytest.mark.parametrize("samples", [10**12, 2**53, 2**60, -1, 0])
def test_a_number_of_samples_in_a_header_costs_no_memory(tmp_path, monkeypatch, capsys, samples):
    monkeypatch.chdir(tmp_path)
    protocol = EvaluationProtocol(1, samples, 1.0, 1.0, 16)
    for file in map(Path, ("one.jsonl", "two.jsonl")):
        file.write_text(f"{json.dumps(LINE)}\n")
        write_record(header_path(file), PredictionHeader(EvaluationRun("m", None, 0), {"s": protocol}))
    before = psutil.Process().memory_info().rss
    assert said(["compare", "one.jsonl", "two.jsonl"], capsys)[0] == 2
    assert psutil.Process().memory_info().rss - before < 2**25


@pytest.mark.parametrize(
    "name", ["$\\frac$", "$", "\x1b[2J", "\ud800", "a\nb", "<b>", "", "\u202eabc", "%s{0}"], ids=ascii
)
def test_any_name_is_shown_and_drawn(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for file in ("one.json", "two.json"):
        Path(file).write_text(good().replace('"s"', json.dumps(name)))
    code, text = said(["compare", "one.json", "two.json", "--plot=p.png", "--output=o.json"], capsys)
    if code == 0:
        assert Path("p.png").read_bytes().startswith(b"\x89PNG")
        assert len(text.splitlines()) == 3
    else:
        assert name == "\ud800"  # no Unicode, which files hold


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:12])
@pytest.mark.parametrize("field", ["completion", "answer", "other"])
def test_score_takes_or_refuses_any_value(tmp_path, monkeypatch, capsys, text, field):
    monkeypatch.chdir(tmp_path)
    line = changed('{"completion": "4", "answer": "4", "other": 1}', (field,), text)
    Path("in.jsonl").write_text(f"{line}\n")
    said(["score", "--verifier=ExactMatch", "--input=in.jsonl", "--output=out.jsonl", "--pool.workers=1"], capsys)


@pytest.mark.parametrize("depth", [200, 900, 950, 975, 990, 1_000])
def test_score_takes_or_refuses_values_of_any_depth(tmp_path, monkeypatch, capsys, depth):
    monkeypatch.chdir(tmp_path)
    deep = "[" * depth + "]" * depth
    Path("in.jsonl").write_text(f'{{"completion": "4", "answer": "4", "other": {deep}}}\n')
    said(["score", "--verifier=ExactMatch", "--input=in.jsonl", "--output=out.jsonl", "--pool.workers=1"], capsys)


def test_an_export_refuses_results_of_strangers_with_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text(changed(good(), ("sets", "s", "metrics", "avg@2", "value"), '"\\u001b[2J"'))
    assert said(["compare", "bad.json", "bad.json"], capsys)[0] == 2


# ---- one writer ----


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_second_evaluation_into_a_folder_is_told_at_once(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    with claimed("results", "--output", "writes its results there"):
        assert main([command, *QUICKSTART, "--output=results", "--run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "asymgrpo: error: --output results is in use, another process writes its results there: wait for its end, or "
        "choose another folder with --output.\n"
    )
    assert [own.name for own in tmp_path.rglob("*")] == ["results"]


def test_the_second_score_into_a_file_is_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"completion": "4", "answer": "4"}\n')
    code = (
        "import sys; from asymgrpo_app.evaluation.files import whole_file\n"
        "from pathlib import Path\n"
        "with whole_file(Path('out.jsonl')) as file: print('open', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as first:
        assert first.stdout.readline() == "open\n"
        arguments = ["score", "--verifier=ExactMatch", "--input=in.jsonl", "--output=out.jsonl", "--pool.workers=1"]
        assert main(arguments) == 1
        sentence = "asymgrpo: stopped: --output out.jsonl cannot be written: another process is writing it."
        assert capsys.readouterr().err.splitlines()[-1] == sentence
        first.stdin.close()
    assert Path("out.jsonl").read_bytes() == b""


def test_a_folder_is_free_again_after_an_evaluation(tmp_path):
    with (
        claimed(tmp_path, "--output", "writes"),
        pytest.raises(UserError, match="writes"),
        claimed(tmp_path, use="writes"),
    ):
        pass
    with claimed(tmp_path):
        pass
