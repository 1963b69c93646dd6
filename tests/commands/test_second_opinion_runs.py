"""A hole in a verifier: a second opinion stops the run, and changes nothing of one that goes on."""

import re

import pytest

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from tests.support.events import repeated_scalars, scalars
from tests.support.hole import SECOND, THROUGH, FindingEngine, MixedEngine, arguments
from tests.support.states import assert_same, differs, saved_steps, state, weights
from tests.support.stopping import signal_at
from tests.support.two_processes import on_two_processes

HALF = [
    SECOND,
    "--rollout.second_opinion.share=0.5",
    "--rollout.second_opinion.max_disagreement=0.9",
    "--rollout.second_opinion.window=30",
]
"""Second opinions that stop no run."""

STEPS = "--steps=4"


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", MixedEngine)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", MixedEngine)
        assert main([*arguments(folder), *HALF, STEPS]) == 0
    return folder / "run"


@pytest.mark.parametrize("found_in", [1, 4])
def test_a_hole_that_all_accepted_answers_use_is_seen_in_the_step_in_which_they_begin(
    found_in, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(rollout, "VLLMEngine", FindingEngine)
    monkeypatch.setattr(FindingEngine, "found_in", found_in)
    assert main([*arguments(tmp_path), SECOND, "--steps=20", "--checkpoint.every_n_steps=100"]) == 1
    error = capsys.readouterr().err
    begin = f"asymgrpo: stopped: in RL step {found_in} the second opinion, NumericMatch, calls "
    assert error.startswith(begin)
    assert len(error.splitlines()) == 1
    assert "more than rollout.second_opinion.max_disagreement (0.1) allows: the policy may have found a hole" in error
    example = r"problems.jsonl, line \d+, problem '\d+>', reference '1', completion ending in '(\S+)'"
    told = re.findall(f"TwoBoxes right, NumericMatch wrong at {tmp_path}/{example}", error)
    assert told == [ascii(THROUGH)[1:-1]] * 3
    assert saved_steps(tmp_path / "run") == ([found_in - 1] if found_in > 1 else [])


def test_weights_and_all_other_metrics_are_those_without(undisturbed, tmp_path):
    assert main([*arguments(tmp_path), STEPS]) == 0
    plain = tmp_path / "run"
    found, expected = state(undisturbed, 4), state(plain, 4)
    own = [key for key in found["callbacks"] if key not in expected["callbacks"]]
    assert own == ["VLLMRolloutCallback"]
    del found["callbacks"][own[0]]
    assert_same(found, expected)
    assert differs(weights(plain, 4), weights(plain, 1))
    values = repeated_scalars(undisturbed)
    assert {tag: v for tag, v in values.items() if not tag.startswith("second_opinion/")} == repeated_scalars(plain)


def test_what_a_run_writes_of_its_second_opinions(undisturbed):
    values = scalars(undisturbed)
    drawn, disagreement = (values[f"second_opinion/{name}"] for name in ("drawn", "disagreement"))
    assert [step for step, _ in drawn] == [1, 2, 3, 4]
    assert all(0.3 < value < 0.7 for _, value in drawn)
    assert all(0.3 < value < 0.7 for _, value in disagreement)
    assert {value for name in ("refused", "failed") for _, value in values[f"second_opinion/{name}"]} == {0.0}
    assert all(0 < low < 0.5 for _, low in values["second_opinion/lower_end"])
    kept = state(undisturbed, 4)["callbacks"]["VLLMRolloutCallback"]
    assert kept["verifier"] == "asymgrpo_app.rewards.numeric.NumericMatch"
    assert len(kept["values"]) == 30


@pytest.mark.parametrize("moment", ["backward", "end of the step"])
def test_a_run_that_goes_on_has_the_second_opinions_of_the_undisturbed_one(moment, undisturbed, tmp_path, monkeypatch):
    command = [*arguments(tmp_path), *HALF, STEPS]
    with signal_at(monkeypatch, moment, 3):
        assert main(command) == 143
    assert max(saved_steps(tmp_path / "run")) == (2 if moment == "backward" else 3)
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_same(state(tmp_path / "run", 4), state(undisturbed, 4))
    assert repeated_scalars(tmp_path / "run") == repeated_scalars(undisturbed)


def test_a_checkpoint_without_second_opinions_goes_on_with_them_and_back(tmp_path):
    for steps, options in ((1, []), (2, HALF), (3, [])):
        resumed = ["--ckpt_path=last"] if steps > 1 else []
        assert main([*arguments(tmp_path), *options, f"--steps={steps}", *resumed]) == 0
    assert [step for step, _ in scalars(tmp_path / "run")["second_opinion/lower_end"]] == [2]


def test_the_config_that_a_run_keeps_is_a_config(undisturbed, tmp_path, capsys):
    assert main(["check", f"--config={undisturbed / 'config.yaml'}", f"--run_dir={tmp_path}"]) == 0
    assert "Nothing stands in the way of this run." in capsys.readouterr().out


@pytest.mark.long
def test_two_processes_stop_together_and_with_what_one_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rollout, "VLLMEngine", FindingEngine)
    command = [*arguments(tmp_path), SECOND]
    assert main(command) == 1
    expected = capsys.readouterr().err
    two = on_two_processes("tests.support.hole", *command, "--trainer.devices=2", "--trainer.strategy=ddp")
    assert two.returncode == 1
    assert [line for line in two.stderr.splitlines() if "second opinion" in line] == 2 * expected.splitlines()
