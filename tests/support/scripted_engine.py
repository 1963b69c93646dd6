"""Whole runs through the command without vLLM: the sampler answers by a script.

Also a script for two processes: python -m tests.support.two_processes tests.support.scripted_engine ARGUMENTS... is
`asymgrpo ARGUMENTS...` with that sampler.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support.paths import POLICY, REPOSITORY

GROUP_SIZE = 8
RIGHT, WRONG = "1", "2+2"


class ScriptedEngine:
    """Takes the place of `VLLMEngine`: of a call's group number i the first i mod 9 completions are right.

    So there is a group of every accuracy. A right one has two tokens, a wrong one four, the end token included.
    """

    keeps_weights = True

    def __init__(self, model: str, *_: Any) -> None:
        tokenizer = load_tokenizer(model)
        self.answers = {text: [*tokenizer.encode(text), tokenizer.eos_token_id] for text in (RIGHT, WRONG)}

    def load_weights(self, weights: Any) -> None:
        assert dict(weights)

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        texts = [RIGHT if i % GROUP_SIZE < i // GROUP_SIZE % (GROUP_SIZE + 1) else WRONG for i in range(len(requests))]
        return [Completion(self.answers[text], [-2.0] * len(self.answers[text]), truncated=False) for text in texts]

    def close(self) -> None: ...


def fit(monkeypatch: Any, folder: Path, *arguments: str, rows: int = 100) -> Path:
    """Two steps of the quick start with 18 prompts each and a validation set `held_out`; returns the run's folder.

    Args:
        monkeypatch: Puts the scripted engine in place.
        folder: Where everything goes.
        arguments: Further ones for `asymgrpo fit`.
        rows: Size of the source of training prompts.
    """
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
    assert main([*command(folder, rows), *arguments]) == 0
    return folder / "run"


def command(folder: Path, rows: int = 100) -> list[str]:
    """Arguments of such a run, without putting the scripted engine in place."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = folder / "problems.jsonl"
    lines = (json.dumps({"prompt": f"{number}>", "answer": RIGHT}) for number in range(rows))
    _write(problems, "\n".join(lines))
    source = {"class_path": "asymgrpo_app.prompts.JsonLines", "init_args": {"path": str(problems)}}
    held_out = {"held_out": {"source": source, "limit": 9, "samples": GROUP_SIZE, "pass_at": [1, GROUP_SIZE]}}
    small = folder / "small.yaml"
    settings = {
        "steps": 2,
        "data": {"train": source, "prompts_per_step": 18, "validation": held_out},
        "rollout": {"canary": {"digest": False, "completions": 0}},  # no policy gives these log-probabilities
        "checkpoint": {"every_n_steps": 1},
        "tensorboard": {"every_n_steps": 100},  # texts, histograms and a figure: for tests that look at them
        "trainer": {"val_check_interval": 1, "accelerator": "cpu"},
    }
    _write(small, json.dumps(settings))
    configs = [f"--config={REPOSITORY / 'configs/quickstart.yaml'}", f"--config={small}"]
    return ["fit", *configs, f"--model.policy={POLICY}", f"--run_dir={folder / 'run'}"]


def _write(path: Path, text: str) -> None:
    """Leave a file that has this text alone: another process of the same run may be reading it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = ScriptedEngine  # type: ignore[misc, assignment]
    sys.exit(main(sys.argv[1:]))
