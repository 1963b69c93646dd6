"""The study of methods: differences, verdicts, tables and figures from made-up runs."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.intervals import Estimate, t_quantile
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, results, set_result
from benchmarks.study import runs
from benchmarks.study.definitions import REPOSITORY, STUDIES, Claim, study_named
from benchmarks.study.records import BINS, KEPT, Record, read_records
from benchmarks.study.report import Table, verdict, write_report

STUDY = replace(
    STUDIES["countdown"],
    methods=("grpo", "asymgrpo", "ent_increase"),
    seeds=(0, 1, 2),
    steps=60,
    claims=(Claim("asymgrpo", "grpo", "accuracy", "made up"), Claim("ent_increase", "grpo", "entropy", "made up")),
)
GAINS = {"grpo": (0, 0, 0), "asymgrpo": (1, 2, 3), "ent_increase": (-4, -4, -4)}
TAGS = ("actor/entropy", "actor/entropy_pos", "actor/entropy_neg", "reward/solved_none", "reward/solved_all")


def made_up(method: str, seed: int) -> Record:
    """Accuracy is (8 + gain) / 16, entropy falls by a hundredth per step from 1 + gain / 10."""
    gain = GAINS[method][seed]
    right = 8 + gain
    values = {"avg@8": [1.0] * right + [0.0] * (16 - right), "pass@8": [1.0] * 16}
    protocol = EvaluationProtocol(16, 8, 1.0, 1.0, 10)
    own = set_result(protocol, [f"p{number}" for number in range(16)], values)
    found = results(EvaluationRun("policy", "last", seed, commit="0123456789abcdef"), {"countdown": own})
    curves = {tag: [(step, 1 + gain / 10 - step / 100) for step in range(1, 61)] for tag in TAGS}
    curves |= {f"val/countdown/{name}": [(step, step / 100) for step in (0, 30, 60)] for name in ("avg@8", "pass@8")}
    curves |= {f"method/cov_{name}": [(step, 0.01 * gain) for step in range(1, 61)] for name in BINS}
    curves["method/logprob_change_pos"] = [(step, 0.1) for step in (1, 10, 20, 30, 40, 50, 60)]
    return Record(method, seed, found, curves, seconds=100.0, cores=1)


@pytest.fixture
def records() -> list[Record]:
    return [made_up(method, seed) for method in STUDY.methods for seed in STUDY.seeds]


@pytest.fixture
def docs(tmp_path) -> Path:
    (tmp_path / "results.md").write_text("before\n<!-- countdown: begin -->\nold\n<!-- countdown: end -->\nafter\n")
    return tmp_path


def test_differences_are_paired_over_seeds(records):
    """(1, 2, 3) / 16: mean 2/16, standard error 1/16 / sqrt(3)."""
    found = Table(STUDY, records).difference("asymgrpo", "grpo", "accuracy")
    half = t_quantile(2) / 16 / 3**0.5
    assert found.value == pytest.approx(2 / 16)
    assert (found.low, found.high) == pytest.approx((2 / 16 - half, 2 / 16 + half))
    assert found.n == 3


def test_training_quantities_are_means_over_the_last_steps(records):
    """Steps 41 to 60 of a line that falls by a hundredth: its value at 50.5."""
    assert Table(STUDY, records).values("asymgrpo", "entropy") == pytest.approx([0.595, 0.695, 0.795])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "reproduced"), (-0.2, -0.01, "not reproduced"), (-0.1, 0.2, "undecided"), (0.0, 0.2, "undecided")],
)
def test_verdict(low, high, said):
    assert verdict(Estimate((low + high) / 2, low, high, 5)) == said


def test_the_report_replaces_what_is_between_its_marks(records, docs):
    paths = write_report(STUDY, records, docs)
    text = (docs / "results.md").read_text()
    assert text.startswith("before\n<!-- countdown: begin -->\n")
    assert text.endswith("<!-- countdown: end -->\nafter\n")
    assert "old" not in text
    assert "| GRPO | 0.500 ± 0.000 | – |" in text
    assert "| AsymGRPO (0.9, 0.4) > GRPO | avg@8 | +0.125 | -0.030 to +0.280 | 3 of 3 | undecided |" in text
    assert "| EntIncrease > GRPO | entropy | -0.400 | -0.400 to -0.400 | 0 of 3 | not reproduced |" in text
    assert "9 runs, 100 core seconds each" in text
    assert "0123456789ab." in text
    assert len(paths) == 7
    assert all(path.stat().st_size > 0 for path in paths)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_page_and_figures_are_made_from_the_kept_runs_byte_by_byte(study, tmp_path):
    shutil.copyfile(REPOSITORY / "docs/results.md", tmp_path / "results.md")
    for made in write_report(study, read_records(study), tmp_path):
        assert made.read_bytes() == (REPOSITORY / "docs" / made.relative_to(tmp_path)).read_bytes(), made


def test_kept_configs_name_their_method_seed_and_nothing_of_a_machine():
    for study in STUDIES.values():
        for method in study.methods:
            for seed in study.seeds:
                text = (KEPT / study.name / f"{method}-{seed}/config.yaml").read_text()
                config = yaml.safe_load(text)
                assert (config["seed_everything"], config["steps"]) == (seed, study.steps)
                assert not re.search(r"(^|[ :='\"])/", text), "an absolute path"


def test_a_page_without_marks_is_left_alone(records, tmp_path):
    (tmp_path / "results.md").write_text("text\n")
    with pytest.raises(UserError, match="has no lines <!-- countdown: begin -->"):
        write_report(STUDY, records, tmp_path)
    assert (tmp_path / "results.md").read_text() == "text\n"
    assert not (tmp_path / "figures").exists()


def test_an_unknown_study_and_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="there is no study 'chess'"):
        study_named("chess")
    with pytest.raises(UserError, match="grpo-0 is missing"):
        read_records(STUDY, tmp_path)


def test_each_job_has_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5, 6})
    assert runs._shares(2) == [frozenset({0, 1}), frozenset({4, 5})]
    with pytest.raises(UserError, match="between 1 and the 5 cores"):
        runs._shares(6)


def test_runs_that_are_there_are_not_run_again_and_failures_are_named(tmp_path, monkeypatch):
    """`python -m asymgrpo_app` is replaced by a script that fails for one method."""
    script = (
        "import pathlib, sys; run = next(a for a in sys.argv if a.startswith('--run_dir=')).split('=')[1]; "
        "sys.exit(3) if 'asymgrpo' in run else pathlib.Path(run, 'results.json').write_text('{}')"
    )
    monkeypatch.chdir(runs.REPOSITORY)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "{script}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(python))
    folder = tmp_path / "runs"
    done = folder / "grpo-0"
    done.mkdir(parents=True)
    (done / "results.json").write_text("kept")
    with pytest.raises(RunError, match="1 runs failed: asymgrpo-0"):
        runs.run_all(STUDY, folder, 1, STUDY.methods, [0])
    assert (done / "results.json").read_text() == "kept"
    assert json.loads((folder / "ent_increase-0/cost.json").read_text())["cores"] == len(os.sched_getaffinity(0))
