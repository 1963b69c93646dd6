"""The blocks of docs/python.md, run one after the other as one script, with short runs."""

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from asymgrpo_app.rewards import score
from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs/python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHORT = {
    "total_steps=100": "total_steps=2",
    "total_steps=120": "total_steps=3",
    'sampler="auto"': 'sampler="transformers", group_size=4',
    "limit=256": "limit=4",
    "Trainer(": 'Trainer(accelerator="cpu", enable_model_summary=False, ',
    "PromptDataModule(policy, Countdown(),": "PromptDataModule(policy, Countdown(), prompts_per_step=4,",
    "every_n_steps=50": "every_n_steps=1",
    "time_limit_s=4 * 3600": "time_limit_s=None",  # the age of this process counts
}
"""What makes the page's runs short."""


def shortened(block: str) -> str:
    for text, short in SHORT.items():
        block = block.replace(text, short)
    return block


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scalars_in(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_first_block_has_twelve_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 12
    assert all(text in PAGE for text in SHORT)


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(folder, capsys):
    names: dict[str, Any] = {}
    blocks = iter(BLOCKS)

    def run_next() -> str:
        exec(compile(shortened(next(blocks)), "docs/python.md", "exec"), names)  # noqa: S102
        return capsys.readouterr().out

    run_next()  # train
    assert names["module"].completed_steps == 2
    assert not psutil.Process().children(recursive=True)
    written = scalars_in("runs/script/lightning_logs/version_0")
    assert [step for step, _ in written["reward/mean"]] == [1, 2]
    assert [step for step, _ in written["val/held_out/avg@8"]] == [0, 2]

    accuracy, solved = map(float, run_next().splitlines()[-1].split())  # validate
    assert accuracy == pytest.approx(written["val/held_out/avg@8"][-1][1])
    assert 0 < accuracy <= solved <= 1
    assert f"avg@8 {accuracy} " in run_next()  # intervals
    predicted = [line for line in run_next().splitlines() if line.startswith("countdown/validation/")]
    assert len(predicted) == 4 * 8
    assert sum(line.endswith("True") for line in predicted) / 32 == accuracy

    run_next()  # keep the model
    kept = AutoModelForCausalLM.from_pretrained("runs/script/model")
    trained = names["module"].policy
    assert all(torch.equal(*pair) for pair in zip(kept.parameters(), trained.parameters(), strict=True))

    run_next()  # resume
    assert names["module"].completed_steps == 3
    assert scalars_in("runs/script/lightning_logs/version_1")["reward/mean"][0][0] == 3

    run_next()  # experiments
    assert names["accuracies"].keys() == {0.2, 0.4}
    run_next()  # a reward function
    rows = [{"prompt": "", "answer": "1+2+3+4"}] * 2
    verdicts = score(names["data"].train_source.verifier, ["1+2+3+4", "no"], rows)
    assert [verdict.correct for verdict in verdicts] == [True, False]

    said = run_next()  # what the command adds
    assert "The first prompts, as the policy sees them (PlainTemplate; completions of at most 10 tokens):" in said
    assert "Run finished: 2 RL steps, runs/safe" in said
    assert Path("runs/safe/export/model.safetensors").exists()
    assert not psutil.Process().children(recursive=True)
    assert next(blocks, None) is None
