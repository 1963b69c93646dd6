"""Every scalar of a run with real vLLM, against a plain calculation from its rollouts; on two processes the same."""

import json
from pathlib import Path

import pytest

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.prompts import JsonLines
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.seeds import derive_seed
from tests.support.events import CLOCK, events_of, scalars
from tests.support.recorder import recorded
from tests.support.reference import Reference, accuracy, evaluation, groups_of, means
from tests.support.scalars_run import (
    MAX_PROMPT_TOKENS,
    POLICY,
    PROMPTS,
    ROWS,
    SETTINGS,
    STEPS,
    RecordingEngine,
    arguments,
    write_config,
)
from tests.support.two_processes import on_two_processes


@pytest.fixture(scope="module")
def run(engine, tmp_path_factory) -> Path:
    """A run with real vLLM in `run`, its rollouts in `rollouts.jsonl`, vLLM's answers in `answers.json`."""
    folder = tmp_path_factory.mktemp("scalars")
    write_config(folder)
    recorder = [
        "--trainer.callbacks=tests.support.recorder.Recorder",
        f"--trainer.callbacks.path={folder / 'rollouts.jsonl'}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", lambda *_: RecordingEngine(engine, folder / "answers.json"))
        assert main([*arguments(folder, folder / "run"), *recorder]) == 0
    return folder


def by_step(run_dir: Path) -> dict[tuple[str, int], float]:
    """All scalars by tag and step but those that differ from run to run."""
    compared = {tag: points for tag, points in scalars(run_dir).items() if not tag.startswith(CLOCK)}
    found = [((tag, step), value) for tag, points in compared.items() for step, value in points]
    assert len(dict(found)) == len(found), "a scalar was written twice"
    return dict(found)


def assert_close(found: dict[tuple[str, int], float], expected: dict[tuple[str, int], float]) -> None:
    """The same numbers but for float32: what depends on weights that were updated carries the rounding of updates."""
    for (tag, step), value in expected.items():
        rel = 1e-3 if tag.startswith(("actor/", "method/")) else 1e-5
        assert found[tag, step] == pytest.approx(value, rel=rel, abs=5e-6), (tag, step)


def drawn_prompts(folder: Path, step: int) -> tuple[list[list[int]], dict[str, float]]:
    """The prompts of a step and `data/*`, by drawing one after the other."""
    source = JsonLines(str(folder / "train.jsonl"))
    held_out = {json.loads(line)["prompt"] for line in (folder / "held_out.jsonl").read_text().splitlines()}
    tokenizer = load_tokenizer(POLICY)
    prompts: list[list[int]] = []
    counts = {"data/too_long": 0, "data/bad_row": 0, "data/in_validation": 0}
    drawn = 0
    for place in range(PROMPTS):
        attempt = 0
        while len(prompts) == place:
            seed = derive_seed("spare", 0, attempt) if attempt else 0
            attempt, drawn = attempt + 1, drawn + 1
            try:
                prompt = source.at(step * PROMPTS + place, seed)
            except BadRow:
                counts["data/bad_row"] += 1
                continue
            token_ids = tokenizer.encode(prompt.text)
            if len(token_ids) > MAX_PROMPT_TOKENS:
                counts["data/too_long"] += 1
            else:
                prompts.append(token_ids)
                counts["data/in_validation"] += prompt.text in held_out
    return prompts, {tag: count / drawn for tag, count in counts.items()}


def expected_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What the event file should hold, from the recorded rollouts."""
    lines = recorded(folder / "rollouts.jsonl")
    reference, expected = Reference(POLICY, SETTINGS), {}
    training = [line for line in lines if line["set"] == "train"]
    validations = [line for line in lines if line["set"] == "held_out"]
    assert (len(training), len(validations)) == (STEPS, STEPS + 1)
    for number, line in enumerate(training):
        prompts, of_data = drawn_prompts(folder, number)
        assert line["prompts"] == prompts
        expected |= {(tag, number + 1): value for tag, value in (reference.step(line) | of_data).items()}
    for number, line in enumerate(validations):
        last = evaluation(line, [1, 3, 4])
        expected |= {(f"val/held_out/{name}", number): value for name, value in last.items()}
    expected |= {(f"hparam/val/held_out/{name}", STEPS): value for name, value in last.items()}
    # The first pass ends with prompt 16 of 20, in the second step.
    accuracies = [accuracy(group) for line in training for group in groups_of(line)][:ROWS]
    shares = {
        "all": (p == 1 for p in accuracies if p is not None),
        "none": (p == 0 for p in accuracies if p is not None),
    }
    return expected | {(f"reward/epoch_solved_{name}", 2): value for name, value in means(shares).items()}


def test_every_scalar_equals_a_plain_calculation(run):
    found, expected = by_step(run / "run"), expected_scalars(run)
    assert found.keys() == expected.keys()
    assert_close(found, expected)


@pytest.mark.long
def test_two_processes_write_the_same(run, tmp_path):
    script = [str(run / "answers.json"), *arguments(run, tmp_path / "run"), "--trainer.devices=2"]
    done = on_two_processes("tests.support.scalars_run", *script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    found, expected = by_step(tmp_path / "run"), by_step(run / "run")
    assert found.keys() == expected.keys()
    assert_close(found, expected)
    one, two = events_of(run / "run"), events_of(tmp_path / "run")
    assert two.Tags()["histograms"] == one.Tags()["histograms"]
    for tag in one.Tags()["histograms"]:
        for a, b in zip(one.Histograms(tag), two.Histograms(tag), strict=True):
            parts = [[each.step, each.histogram_value.num, each.histogram_value.min] for each in (a, b)]
            assert parts[1] == pytest.approx(parts[0], rel=1e-3)
            assert b.histogram_value.max == pytest.approx(a.histogram_value.max, rel=1e-3)
            assert b.histogram_value.sum == pytest.approx(a.histogram_value.sum, rel=1e-3, abs=1e-3)
