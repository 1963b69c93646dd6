"""The blocks of docs/own_variants.md: saved next to the user, chosen by `class_path`, and run."""

import importlib
import math
import re
import sys
from itertools import count

import pytest
import torch

from asymgrpo_app.algorithm.advantages import GroupRewards, checked_advantages
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.objective import ObjectiveOutput
from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.cli.run import check_fit, prepared
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.module import AsymGRPOModule
from tests.support.events import repeated_scalars
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import ScriptedEngine, command
from tests.support.table_policy import UPDATES_PER_STEP, Table, judged, rollout_batch, run_steps

PAGE = (REPOSITORY / "docs/own_variants.md").read_text()
BLOCKS = dict(re.findall(r"as\s+`([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def _users_folder(monkeypatch, tmp_path):
    """Work where the page's files are; afterwards nothing of it can be imported any more."""
    for name, content in BLOCKS.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def parse(quickstart):
    """Run the command up to where training would start, and return what it built."""
    numbers = count()

    def run(*arguments: str) -> AsymGRPOModule:
        made = prepared([*quickstart, *arguments, f"--run_dir=runs/{next(numbers)}"])
        check_fit(made, dry_run=False)
        return made.module

    return run


def test_the_page_has_variants_of_about_twenty_lines():
    names = {
        "focal.py",
        "focal.yaml",
        "test_focal.py",
        "running.py",
        "softclip.py",
        "softclip.yaml",
        "counting.py",
        "counting.yaml",
    }
    assert BLOCKS.keys() == names
    for name in names:
        assert len([line for line in BLOCKS[name].splitlines() if line.strip()]) <= 23


def test_a_state_goes_on_in_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", ScriptedEngine)
    arguments = [*command(tmp_path), "--model.advantage=running.RunningMean", "--model.advantage.decay=0.5"]
    arguments += ["--data.prompts_per_step=8"]
    means = {}
    for name, parts in {
        "whole": (["--steps=3"],),
        "parted": (["--steps=2"], ["--steps=3", "--ckpt_path=last"]),
    }.items():
        for part in parts:
            assert main([*arguments, f"--run_dir={tmp_path / name}", *part]) == 0
        means[name] = repeated_scalars(tmp_path / name)["advantages/running_mean"]
    assert means["whole"] == means["parted"]
    accuracies = [value for _, value in repeated_scalars(tmp_path / "whole")["reward/mean"]]
    assert accuracies[0] != 0.5
    expected = [0.5]
    for accuracy in accuracies[:2]:
        expected.append(0.5 * expected[-1] + 0.5 * accuracy)
    assert [value for _, value in means["whole"]] == pytest.approx(expected)


def test_own_sampler(tmp_path, capsys):
    run = [*command(tmp_path), "--config=counting.yaml", "--steps=1", f"--run_dir={tmp_path / 'own'}"]
    assert main(["check", *run[1:]]) == 0
    assert main(run) == 0
    counting = sys.modules["counting"]
    drawn = counting.CountingEngine.drawn
    assert drawn > 0
    assert main([*run, f"--run_dir={tmp_path / 'named'}", "--rollout.sampler=transformers"]) == 0
    assert counting.CountingEngine.drawn == drawn
    own, named = (repeated_scalars(tmp_path / name)["reward/mean"] for name in ("own", "named"))
    assert own == named
    assert main([*run, "--rollout.sampler=counting.CountingEngine"]) == 2
    assert "rollout.sampler" in capsys.readouterr().err


def test_own_advantage(parse):
    module = parse("--config=focal.yaml")
    assert type(module.advantage).__module__ == "focal"
    rewards = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4, [True] * 4])
    expected = [
        [0.5**1.5 * 0.5, 0.5**1.5 * 0.5, -(0.5**1.5) * 0.5, -(0.5**1.5) * 0.5],
        [0.5**1.5 * 0.5, -(0.5**1.5) * 0.5, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    torch.testing.assert_close(
        checked_advantages(module.advantage, GroupRewards(rewards, valid)), torch.tensor(expected)
    )
    assert parse("--config=focal.yaml", "--model.advantage.gamma=0.5").advantage.gamma == 0.5


def test_the_test_of_the_page():
    sys.path.append(".")
    importlib.import_module("test_focal").test_at_gamma_0_it_is_dr_grpo()


def test_own_arguments_are_checked_like_all_others(quickstart, capsys):
    assert main([*quickstart, "--config=focal.yaml", "--model.advantage.gamma=-1"]) == 2
    assert capsys.readouterr().err == "asymgrpo: error: model.advantage: gamma is -1.0: give an exponent >= 0\n"
    assert main([*quickstart, "--config=focal.yaml", "--model.advantage.gama=1"]) == 2
    assert "gama" in capsys.readouterr().err


RATIOS = (0.6, 1.0, 1.5)


def one_step(objective, monkeypatch):
    """A right completion of three tokens with these ratios, and a wrong one of a single token with ratio 1."""
    groups = [
        [
            judged([0, 1, 2], [-1.0] * 3, correct=True, truncated=False),
            judged([3], [-1.0], correct=False, truncated=False),
        ]
    ]
    start = [-1.0] * 4
    now = [-1.0 + math.log(ratio) for ratio in (*RATIOS, 1.0)]
    table = Table(start, now, [0.5] * 4, [0.5] * 4, start)
    module = AsymGRPOModule(
        str(REPOSITORY / "data/countdown_base"),
        objective=objective,
        updates_per_step=UPDATES_PER_STEP,
        max_skipped_updates=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    (step,) = run_steps(module, rollout_batch(groups, 3), table, monkeypatch)
    return step


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_own_objective(parse, monkeypatch):
    module = parse("--config=softclip.yaml")
    assert type(module.objective).__module__ == "softclip"
    assert module.updates_per_step == 2
    step = one_step(module.objective, monkeypatch)
    bent = [1 + 0.3 * math.tanh((ratio - 1) / 0.3) for ratio in RATIOS]
    assert step.logged["actor/pg_loss"] == pytest.approx((-sum(bent) + 1.0) / 4, rel=1e-5)
    gap = sum(abs(ratio - value) for ratio, value in zip(RATIOS, bent, strict=True)) / 4
    assert step.logged["actor/soft_clip_gap"] == pytest.approx(gap, rel=1e-5)
    slopes = [-ratio * (1 - math.tanh((ratio - 1) / 0.3) ** 2) / 4 for ratio in RATIOS]
    assert step.logprob_gradient == pytest.approx([*slopes, 1 / 4], rel=1e-4)


def test_an_advantage_that_learns_from_solved_groups_does_not_go_with_dynamic_sampling(quickstart, capsys):
    arguments = [*quickstart, "--run_dir=run", "--rollout.dynamic_sampling={}"]
    assert main(["check", *arguments[1:], "--model.advantage=focal.Focal"]) == 0
    assert main(["check", *arguments[1:], "--model.advantage=running.RunningMean"]) == 2
    assert "model.advantage (RunningMean) learns from them" in capsys.readouterr().err


BROKEN = {
    "one per group": ("groups.accuracy", "advantages of Mine have the shape [9]: return one per completion, [9, 8]"),
    "0/0": ("groups.rewards / groups.num_correct.unsqueeze(-1)", "not finite for a group with 0 of 8 right"),
    "1/0": ("1 / (1 - groups.accuracy.unsqueeze(-1)) * groups.rewards", "not finite for a group with 8 of 8 right"),
    "1/0 at the end of the run": (
        "groups.rewards.add(1) / (1 - groups.progress)",
        "not finite for a group with 0 of 8 right",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_advantage_is_refused_before_the_run(name, quickstart, tmp_path, capsys):
    expression, complaint = BROKEN[name]
    (tmp_path / "mine.py").write_text(
        "from asymgrpo_app.algorithm.advantages import AdvantageEstimator\n\n\n"
        "class Mine(AdvantageEstimator):\n    def __call__(self, groups):\n        return " + expression + "\n"
    )
    run_dir = tmp_path / "run"
    assert main([*quickstart, "--model.advantage=mine.Mine", f"--run_dir={run_dir}"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("asymgrpo: error: model.advantage: advantages of Mine")
    assert complaint in captured.err
    assert not run_dir.exists()


def test_a_class_that_is_no_advantage_is_refused(quickstart, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    assert main([*quickstart, "--model.advantage=mine.Mine"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "model.advantage" in captured.err
    assert "mine.Mine" in captured.err


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_an_objective_without_a_finite_loss_stops_the_run(parse, monkeypatch):
    objective = parse("--config=softclip.yaml", "--model.objective.width=0").objective
    with pytest.raises(RunError, match=r"^An update had a loss or .* not finite \(RL step 1, gradient norm nan\)"):
        one_step(objective, monkeypatch)


def test_an_objective_that_averages_is_refused(monkeypatch):
    class Averaging(ClippedObjective):
        def token_losses(self, batch):
            output = super().token_losses(batch)
            return ObjectiveOutput(output.losses.mean(), output.metrics)

    with pytest.raises(UserError, match=r"^losses of Averaging have the shape \[\]: return one per token, \[\d+\]"):
        one_step(Averaging(), monkeypatch)
