"""`asymgrpo compare`."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from asymgrpo_app.cli import compare as compare_command
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.compare import compare, comparison_table
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.intervals import (
    difference_interval,
    mean_interval,
    mean_over_sets,
    share_interval,
)
from asymgrpo_app.evaluation.outcomes import MetricChoice, Prediction
from asymgrpo_app.evaluation.predictions import PredictionHeader, PredictionWriter, header_path
from asymgrpo_app.evaluation.results import (
    EvaluationProtocol,
    EvaluationRun,
    results,
    set_result,
)
from asymgrpo_app.rewards import Status

PROTOCOL = EvaluationProtocol(problems=0, samples=4, temperature=1.0, top_p=1.0, max_tokens=512, digest="0123")
UIDS = ["x/1", "x/2", "x/3", "x/4", "x/5"]
FIRST, SECOND = [0.0, 0.25, 0.5, 1.0, 1.0], [0.25, 0.25, 1.0, 1.0, 0.75]
LENGTHS = [10.0, 20.0, 30.0, 40.0, 50.0], [12.0, 19.0, 33.0, 44.0, 50.0]


def result(values, uids=UIDS, protocol=PROTOCOL, **more):
    return set_result(protocol, uids, {"avg@4": values, **more})


def saved(path, **sets):
    write_record(path, results(EvaluationRun(str(path), None, 0), sets))
    return path


@pytest.fixture
def pair(tmp_path):
    """Two evaluations on two sets, the second with its problems in another order."""
    shuffled = [3, 1, 4, 0, 2]
    second = result(
        [SECOND[i] for i in shuffled], [UIDS[i] for i in shuffled], length=[LENGTHS[1][i] for i in shuffled]
    )
    easy = ["e/1", "e/2"]
    return (
        saved(
            tmp_path / "a" / "results.json",
            amc=result(FIRST, length=LENGTHS[0]),
            easy=result([0.5, 1.0], easy, length=[1.0, 2.0]),
        ),
        saved(tmp_path / "b" / "results.json", amc=second, easy=result([1.0, 1.0], easy, length=[1.0, 3.0])),
    )


def test_problems_are_paired_by_name(pair):
    found = compare(pair)
    amc, easy, mean = found.differences
    assert (found.baseline, amc.label, amc.set, amc.metric) == ("a", "b", "amc", "avg@4")
    assert amc.difference == difference_interval([0.25, 0.0, 0.5, 0.0, -0.25])
    assert amc.difference.value == pytest.approx(0.1)
    assert (amc.baseline, amc.value) == (share_interval(FIRST), share_interval(SECOND))
    assert easy.difference == difference_interval([0.5, 0.0])
    assert mean.set == "mean of 2 sets"
    assert mean.difference == mean_over_sets([amc.difference, easy.difference])
    assert found.notes == []


def test_a_metric_in_tokens_has_students_interval(pair):
    amc = compare(pair, "length", "amc").differences
    assert [own.difference for own in amc] == [mean_interval([2.0, -1.0, 3.0, 4.0, 0.0])]


def test_what_problems_share_does_not_blur_the_difference(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.choice([0.0, 0.25, 0.5, 0.75], size=200)
    uids = [f"p/{number}" for number in range(200)]
    gain = np.where(rng.random(200) < 0.2, 0.25, 0.0)
    paths = [
        saved(tmp_path / name / "results.json", s=result(values.tolist(), uids))
        for name, values in (("a", base), ("b", base + gain))
    ]
    (found,) = compare(paths).differences
    assert found.baseline.high > found.value.low  # apart, the two intervals overlap
    assert found.verdict == "higher"
    assert found.difference == difference_interval(gain.tolist())
    (back,) = compare(paths[::-1]).differences
    assert back.verdict == "lower"
    assert back.difference == pytest.approx(
        (-found.difference.value, -found.difference.high, -found.difference.low, 200), abs=1e-12
    )


def test_an_evaluation_does_not_differ_from_itself(pair):
    found = compare([pair[0], pair[0], pair[1]]).differences
    assert [own.difference.value for own in found] == pytest.approx([0, 0.1, 0, 0.25, 0, 0.175])
    assert [own.verdict for own in found if own.difference.value == 0] == ["undecided"] * 3


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (result([0.5] * 4, UIDS[:4]), "1 problems are in one of them only, the first is 'x/5'"),
        (result([0.5] * 5, [*UIDS[:4], "x/6"]), "2 problems are in one of them only, the first is 'x/5'"),
        (result([0.5] * 5, protocol=replace(PROTOCOL, digest="4567")), "the same names and different texts"),
    ],
)
def test_other_problems_are_refused(tmp_path, second, message):
    paths = [
        saved(tmp_path / "a.json", amc=result(FIRST)),
        saved(tmp_path / "b.json", amc=second),
    ]
    with pytest.raises(UserError) as caught:
        compare(paths)
    assert "set amc is not the same in" in str(caught.value)
    assert message in str(caught.value)


def test_other_settings_are_said_aloud(tmp_path):
    other = replace(PROTOCOL, temperature=0.4, max_tokens=1024, digest="")
    paths = [
        saved(tmp_path / "a.json", amc=result(FIRST), old=result(FIRST)),
        saved(tmp_path / "b.json", amc=result(SECOND, protocol=other), new=result(FIRST)),
    ]
    notes = [
        "Not compared, since not all have it: old of a.",
        "Not compared, since not all have it: new of b.",
        "Set amc was not evaluated alike in a and b: temperature is 1.0 and 0.4, max_tokens is 512 and 1024.",
    ]
    assert compare(paths).notes == notes
    assert comparison_table(compare(paths)).splitlines()[-3:] == [f"Note: {note}" for note in notes]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}"], "there is nothing to compare with 1 file"),
        (["{a}", "{b}", "--metric=pass@3"], "set amc has no metric 'pass@3', it has avg@4, length"),
        (["{a}", "{b}", "--set=gsm"], "has no set 'gsm', it has amc, easy"),
        (["{a}", "missing.json"], "missing.json cannot be read: No such file"),
        (["{a}", "{b}", "--plot=plot.pdf"], "--plot plot.pdf: the plot is a PNG file"),
        (["{a}", "{b}", "--output={a}"], "exists already"),
        (["{a}", "{b}", "--metrik=x"], "metrik"),
        ([], "files"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(pair, arguments, message):
    with pytest.raises(UserError) as caught:
        compare_command.run([argument.format(a=pair[0], b=pair[1]) for argument in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_without_a_common_set_are_refused(tmp_path):
    paths = [saved(tmp_path / "a.json", amc=result(FIRST)), saved(tmp_path / "b.json", gsm=result(FIRST))]
    with pytest.raises(UserError, match=r"no set in common: .*a\.json has amc; .*b\.json has gsm"):
        compare(paths)


def test_the_command_writes_a_table_a_plot_and_a_file(pair, tmp_path, capsys):
    outputs = [f"--plot={tmp_path / 'plot.png'}", f"--output={tmp_path / 'difference.json'}"]
    # A folder stands for the results.json in it.
    assert compare_command.run([str(pair[0].parent), str(pair[1]), *outputs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["set", "metric", "evaluation", "a", "value", "difference", "95", "%", "interval"]
    assert lines[2].split()[:9] == ["amc", "avg@4", "b", "55.0", "%", "65.0", "%", "+10.0", "pp"]
    assert lines[2].endswith("]  undecided")
    assert lines[4].startswith("mean of 2 sets")
    data = json.loads((tmp_path / "difference.json").read_text())
    assert data["differences"][0]["difference"] == difference_interval([0.25, 0.0, 0.5, 0.0, -0.25])._asdict()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"--plot .*plot\.png exists already"):
        compare_command.run([*map(str, pair), *outputs])
    assert compare_command.run([*map(str, pair), *outputs, "--overwrite"]) == 0


def test_an_interval_without_an_end_is_null_in_the_file_and_left_out_of_the_plot(tmp_path):
    paths = [
        saved(tmp_path / f"{name}.json", amc=result([0.5], UIDS[:1], length=[length]))
        for name, length in (("a", 10.0), ("b", 12.0))
    ]
    outputs = [f"--plot={tmp_path / 'plot.png'}", f"--output={tmp_path / 'difference.json'}"]
    assert compare_command.run([*map(str, paths), "--metric=length", *outputs]) == 0
    (entry,) = json.loads((tmp_path / "difference.json").read_text())["differences"]
    assert entry["difference"] == {"value": 2.0, "low": None, "high": None, "n": 1}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def predictions(path, correct, header=True):
    """Predictions of `correct` [problems][samples]; right answers are class 0, wrong ones all different."""
    protocol = replace(PROTOCOL, problems=len(correct), samples=len(correct[0]))
    run = PredictionHeader(EvaluationRun(str(path), None, 0), {"amc": protocol})
    with closing(PredictionWriter(path, run)) as writer:
        for index, own in enumerate(correct):
            for sample, right in enumerate(own):
                answer = 0 if right else sample + 1
                writer.write(
                    [Prediction("amc", f"x/{index}", index, sample, "", bool(right), Status.OK, False, 8, -2.0, answer)]
                )
    if not header:
        header_path(path).unlink()
    return path


def test_predictions_give_any_k(tmp_path):
    first = predictions(tmp_path / "a.jsonl", [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    second = predictions(tmp_path / "b.jsonl", [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    found = {metric: compare([first, second], metric).differences[0] for metric in ("accuracy", "pass@2", "maj@4")}
    assert found["accuracy"].difference == difference_interval([0.25, 0.25, 0.25])
    assert found["pass@2"].difference.value == pytest.approx((5 / 6 - 1 / 2 + 1 - 5 / 6 + 1 / 2) / 3)
    # One right vote among four different ones wins in a quarter of the ties, two or three win.
    assert found["maj@4"].difference.value == pytest.approx((1 - 1 / 4 + 1 - 1 + 1 / 4) / 3)
    with pytest.raises(UserError, match=r"set amc has no metric 'pass@5', it has .* and maj@k for k up to 4"):
        compare([first, second], "pass@5")
    with pytest.raises(UserError, match=r"set amc has no metric 'avg@3', it has avg@4, truncated"):
        compare([first, second], "avg@3")


def test_predictions_and_results_of_one_evaluation_are_equal(tmp_path):
    right = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    path = predictions(tmp_path / "a.jsonl", right)
    values = [MetricChoice().names(4), [0.25, 0.5, 0.0]]
    other = saved(tmp_path / "b.json", amc=result(values[1], ["x/0", "x/1", "x/2"]))
    (found,) = compare([path, other]).differences
    assert (found.metric, found.difference.value) == ("avg@4", 0.0)
    assert compare([path, other]).notes == []


def test_predictions_without_a_description_say_so(tmp_path):
    first = predictions(tmp_path / "a.jsonl", [[1, 0], [1, 1]])
    second = predictions(tmp_path / "b.jsonl", [[1, 1], [1, 1]], header=False)
    assert compare([first, second]).notes == [
        "The sampling settings of b are not known: there is no .run.json beside it."
    ]


def test_problems_without_a_value_are_left_out_and_counted(tmp_path):
    nan = float("nan")
    paths = [
        saved(tmp_path / f"{name}.json", amc=result(FIRST, **{"maj@2": values}))
        for name, values in (("a", [nan, 0.5, 0.5, 0.0, 1.0]), ("b", [1.0, 1.0, nan, 0.0, 1.0]))
    ]
    found = compare(paths, "maj@2")
    assert found.differences[0].difference == difference_interval([0.5, 0.0, 0.0])
    assert found.notes == ["Set amc: 2 problems without maj@2 are left out."]


def test_labels_are_the_shortest_that_differ(tmp_path):
    paths = [tmp_path / "runs" / name / "eval" / "results.json" for name in ("grpo", "asym")]
    for path in paths:
        saved(path, amc=result(FIRST))
    found = compare(paths)
    assert (found.baseline, found.differences[0].label) == ("grpo/eval", "asym/eval")


def test_neither_torch_nor_lightning_nor_vllm_is_imported(pair):
    program = (
        "import sys; from asymgrpo_app.cli import compare as compare_command; code = compare_command.run(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'vllm', 'transformers', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, pair)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
