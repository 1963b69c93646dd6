"""`results.json` and its table."""

import json
import re
import subprocess
from math import inf, nan
from pathlib import Path

import pytest

from asymgrpo_app import __version__
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.intervals import mean_over_sets, share_interval
from asymgrpo_app.evaluation.results import (
    EvaluationProtocol,
    EvaluationRun,
    code_commit,
    distinct,
    problems_digest,
    read_results,
    results,
    set_result,
    table,
)
from tests.support.paths import REPOSITORY

RUN = EvaluationRun(model="org/model", checkpoint=None, seed=7, commit="abc")
PROTOCOL = EvaluationProtocol(problems=0, samples=4, temperature=0.4, top_p=1.0, max_tokens=512, template="MathChat")


def one_set(values, uids=None):
    uids = uids or [f"set/{number}" for number in range(len(next(iter(values.values()))))]
    return set_result(PROTOCOL, uids, values)


@pytest.fixture
def content():
    amc = one_set({"avg@4": [0.25, 1.0, 1 / 3], "maj@2": [0.5, nan, 0.1], "length": [10.0, 20.0, 45.5]})
    gsm = one_set({"avg@4": [1.0, 1.0], "maj@2": [1.0, 1.0], "length": [3.0, 4.0]}, ["a", "b"])
    return results(RUN, {"amc23": amc, "gsm8k": gsm})


def test_what_is_written_is_read_again(tmp_path, content):
    path = tmp_path / "new" / "results.json"
    write_record(path, content)
    assert read_results(path) == content
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_the_file_says_what_was_evaluated_and_how(tmp_path, content):
    write_record(tmp_path / "results.json", content)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["format"] == 1
    assert data["run"] == {"model": "org/model", "checkpoint": None, "seed": 7, "version": __version__, "commit": "abc"}
    assert data["sets"]["amc23"]["protocol"] == {
        "problems": 3,
        "samples": 4,
        "temperature": 0.4,
        "top_p": 1.0,
        "max_tokens": 512,
        "template": "MathChat",
        "digest": "",
    }
    accuracy = share_interval([0.25, 1.0, 1 / 3])
    assert data["sets"]["amc23"]["metrics"]["avg@4"] == accuracy._asdict()
    assert data["sets"]["amc23"]["uids"] == ["set/0", "set/1", "set/2"]
    assert data["sets"]["amc23"]["values"]["maj@2"] == [0.5, None, 0.1]
    assert data["sets"]["amc23"]["metrics"]["maj@2"]["n"] == 2
    # One line per field, the problems of a set on one line.
    assert len((tmp_path / "results.json").read_text().splitlines()) < 120


def test_unbounded_intervals_survive(tmp_path):
    alone = results(RUN, {"one": one_set({"avg@4": [0.5], "length": [12.0]})})
    assert alone.sets["one"].metrics["length"][1:3] == (0.0, inf)
    write_record(tmp_path / "results.json", alone)
    assert "Infinity" not in (tmp_path / "results.json").read_text()
    assert read_results(tmp_path / "results.json") == alone
    assert re.search(r"length +12\.0 tokens +\[0\.0, –\]", table(alone))


def test_the_mean_is_over_sets_and_names_what_they_share(content):
    assert list(content.mean) == ["avg@4", "maj@2", "length"]
    assert content.mean["avg@4"] == mean_over_sets([own.metrics["avg@4"] for own in content.sets.values()])
    assert content.mean["length"].value == pytest.approx((75.5 / 3 + 3.5) / 2)
    assert content.mean["avg@4"].n == 5


def test_sets_with_different_numbers_of_samples_have_a_mean_accuracy():
    sets = {"a": one_set({"avg@5": [0.2, 0.4]}), "b": one_set({"avg@10": [0.8]}), "c": one_set({"greedy": [0.0]})}
    assert {name: mean.value for name, mean in results(RUN, sets).mean.items()} == {
        "accuracy": pytest.approx((0.3 + 0.8 + 0.0) / 3)
    }


def test_an_existing_file_is_kept_unless_asked(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text("precious")
    with pytest.raises(UserError, match=r"results\.json exists already: remove it, or choose another name"):
        write_record(path, content)
    assert path.read_text() == "precious"
    write_record(path, content, overwrite=True)
    assert read_results(path) == content


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, content):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results\.json cannot be made: .*file is no folder"):
        write_record(tmp_path / "file" / "results.json", content)
    with pytest.raises(RunError, match="cannot be written: File name too long"):
        write_record(tmp_path / ("x" * 250), content)
    assert [own.name for own in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="is a folder"):
        write_record(tmp_path, content)


def changed(path: Path, content, change) -> Path:
    write_record(path, content)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("format"), "was not written by asymgrpo, or by another version (it has no 'format': 1)"),
        (lambda d: d.update(format=2), "or by another version"),
        (lambda d: d.pop("run"), "results.json: run: Field required"),
        (lambda d: d.update(extra=1), "results.json: extra: Unexpected keyword argument, got 1"),
        (lambda d: d.update(sets={}), "has no sets"),
        (lambda d: d.update(sets=[1]), "sets: Input should be a valid dictionary, got [1]"),
        (lambda d: d["run"].update(seed="x"), "run.seed: Input should be a valid integer, got 'x'"),
        (lambda d: d["run"].update(seed=True), "run.seed: Input should be a valid integer, got True"),
        (lambda d: d["run"].update(model=None), "run.model: Input should be a valid string, got None"),
        (
            lambda d: d["sets"]["amc23"]["metrics"].update({"avg@4": 0.5}),
            "amc23.metrics.avg@4: Input should be a tuple, list, dictionary or an instance of Estimate, got 0.5",
        ),
        (lambda d: d["sets"]["amc23"]["metrics"]["avg@4"].pop("n"), "amc23.metrics.avg@4.n: Field required"),
        (
            lambda d: d["sets"]["amc23"]["values"]["avg@4"].append(1),
            "values of every metric as names (3), got [3, 4]",
        ),
        (
            lambda d: d["sets"]["amc23"].update(uids=["a", "a", "b"]),
            "names (3), got [2, 3]",
        ),
        (
            lambda d: d["sets"]["amc23"]["values"].update({"avg@4": [0, "x", 1]}),
            "values.avg@4.1: Input should be a valid number, got 'x'",
        ),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(tmp_path, content, change, message):
    path = changed(tmp_path / "results.json", content, change)
    with pytest.raises(UserError) as caught:
        read_results(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": NaN}', "\xff"])
def test_what_is_not_json_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not JSON in UTF-8"):
        read_results(tmp_path / "results.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_results(tmp_path / "results.json")


def test_the_table_shows_every_metric_of_every_set_and_the_mean(content):
    lines = table(content).splitlines()
    assert re.fullmatch(r"set +metric +value +95 % interval", lines[0])
    low, high = (100 * end for end in share_interval([0.25, 1.0, 1 / 3])[1:3])
    assert re.fullmatch(rf"amc23 +avg@4 +52\.8 % +\[{low:.1f}, {high:.1f}\] +3 problems × 4 samples", lines[2])
    assert re.fullmatch(r" +maj@2 +30\.0 % +\[.*\] +temperature 0\.4, top-p 1", lines[3])
    assert re.fullmatch(r" +length +25\.2 tokens +\[0\.0, 70\.6\] +at most 512 tokens", lines[4])
    assert lines[5].startswith("gsm8k")
    assert re.match(r"mean of 2 sets +avg@4 +76\.4 %", lines[8])
    assert len(lines) == 11
    assert max(map(len, lines)) <= 120


def test_names_that_come_again_get_a_number():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


def test_the_digest_is_of_the_problems_and_of_nothing_else():
    digest = problems_digest(["1 + 1", "2 + 2"])
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert problems_digest(["2 +\n2", "1 + 1 "]) == digest
    assert problems_digest(["1 + 1", "2 + 3"]) != digest
    assert problems_digest(["1 + 1"]) != digest


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert (code_commit() or "").removesuffix("+changes") == head
