"""A short run with much turned on, its sampler's answers written down, and a sampler that gives them again.

Also a script for two processes: python -m tests.support.two_processes tests.support.scalars_run ANSWERS ARGUMENTS...
is `asymgrpo ARGUMENTS...` with recorded answers.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.prompts import Countdown
from asymgrpo_app.rewards import CountdownVerifier
from asymgrpo_app.rewards.base import Verdict
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support.paths import POLICY, REPOSITORY
from tests.support.reference import Settings

STEPS, PROMPTS, GROUP_SIZE, ROWS, MAX_PROMPT_TOKENS = 2, 10, 8, 16, 12
SETTINGS = Settings(
    beta_pos=[0.9, 0.5],
    beta_neg=0.4,
    clip_low=0.1,
    clip_high=0.05,
    dual_clip=1.3,
    kl_coef=0.1,
    overlong_buffer=2,
    entropy_target=5.0,
    entropy_coef=0.002,
    entropy_delta=0.001,
    correction_threshold=1.0005,
    updates_per_step=2,
    passes_per_step=2,
    max_grad_norm=1.0,
    lr=[0.0015, 0.001],
    weight_decay=0.1,
    eps=1e-3,  # of AdamW; with a tiny one the first updates would be the gradient's sign, and rounding decide it
    max_completion_tokens=8,
    temperature=1.3,
    change_completions=20,
)


class EasyOnes(CountdownVerifier):
    """Accepts whatever is an answer where the row is easy, so that there are groups of which all are right."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        verdict = super().verify(completion, row)
        return Verdict(verdict.correct or (bool(row["easy"]) and verdict.status == "ok"), verdict.status)


def write_config(folder: Path) -> None:
    """The run's options, on top of the quick start's: a source that ends, a row too long, one without answer."""
    problems = [Countdown("train").at(number, 0) for number in range(ROWS)]
    rows: list[dict[str, Any]] = [{"prompt": p.text, **p.row, "easy": n % 5 == 0} for n, p in enumerate(problems)]
    rows[3] |= {"prompt": "1 2 3 4 5 15>", "numbers": [1, 2, 3, 4, 5]}
    del rows[6]["answer"]
    held_out = [{"prompt": p.text, **p.row, "easy": False} for p in Countdown("validation").fixed(6)] + rows[8:10]

    def lines(name: str, of: list[dict[str, Any]]) -> dict[str, Any]:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in of))
        arguments = {"path": str(folder / name), "verifier": "tests.support.scalars_run.EasyOnes"}
        return {"class_path": "asymgrpo_app.prompts.JsonLines", "init_args": arguments}

    s = SETTINGS
    entropy = {"coef": s.entropy_coef, "target": s.entropy_target, "delta": s.entropy_delta, "max_coef": 1.0}
    correction = {"mode": "truncate", "threshold": s.correction_threshold}
    adamw = {"lr": s.lr[0], "weight_decay": s.weight_decay, "eps": s.eps}
    schedule = {"step_size": 1, "gamma": s.lr[1] / s.lr[0]}
    beta_pos = {"kind": "linear", "start": s.beta_pos[0], "end": s.beta_pos[1]}
    settings = {
        "steps": STEPS,
        "model": {
            "advantage": {"init_args": {"beta_pos": beta_pos, "beta_neg": s.beta_neg}},
            "objective": {"init_args": {"clip_low": s.clip_low, "clip_high": s.clip_high, "dual_clip": s.dual_clip}},
            "loss": {
                "kl_coef": s.kl_coef,
                "overlong_buffer": s.overlong_buffer,
                "adaptive_entropy": entropy,
                "correction": correction,
            },
            "updates_per_step": s.updates_per_step,
            "passes_per_step": s.passes_per_step,
            "micro_batch_tokens": 200,
            "max_grad_norm": s.max_grad_norm,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": adamw},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": schedule},
        },
        "data": {
            "train": lines("train.jsonl", rows),
            "prompts_per_step": PROMPTS,
            "max_prompt_tokens": MAX_PROMPT_TOKENS,
            "bad_rows": "skip",
            "validation": {
                "held_out": {"source": lines("held_out.jsonl", held_out), "samples": 4, "pass_at": [1, 3, 4]}
            },
        },
        "rollout": {
            "group_size": GROUP_SIZE,
            "max_completion_tokens": s.max_completion_tokens,
            "temperature": s.temperature,
            "truncated": "exclude",
        },
        "tensorboard": {"every_n_steps": 1, "change_completions": s.change_completions},
        "trainer": {"val_check_interval": 1, "accelerator": "cpu"},
    }
    (folder / "options.yaml").write_text(json.dumps(settings))


def arguments(folder: Path, run_dir: Path) -> list[str]:
    """The command line of the run."""
    configs = [f"--config={REPOSITORY / 'configs/quickstart.yaml'}", f"--config={folder / 'options.yaml'}"]
    return ["fit", *configs, f"--model.policy={POLICY}", f"--run_dir={run_dir}"]


class RecordingEngine:
    """Passes requests on to an engine and writes down what comes back, by the seed of each request.

    The log-probabilities are changed by up to 0.0015: with exact ones all that compares sampler and trainer would be
    rounding.
    """

    keeps_weights = True

    def __init__(self, engine: Any, path: Path) -> None:
        self.engine = engine
        self.path = path
        self.answers: dict[int, list[Completion]] = defaultdict(list)
        self.load_weights = engine.load_weights
        self.digest = engine.digest

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        completions = []
        for request, sampled in zip(requests, self.engine.generate(requests, settings), strict=True):
            chance = random.Random(request.seed)
            logprobs = [value + chance.uniform(-0.0015, 0.0015) for value in sampled.logprobs]
            completions.append(Completion(sampled.token_ids, logprobs, sampled.truncated))
            self.answers[request.seed].append(completions[-1])
        return completions

    def close(self) -> None:
        answers = {seed: [asdict(completion) for completion in each] for seed, each in self.answers.items()}
        self.path.write_text(json.dumps(answers))


class ReplayEngine:
    """Answers from a recording: a seed that comes again, as in validation, gets its next answer."""

    keeps_weights = True

    def __init__(self, path: str) -> None:
        answers = json.loads(Path(path).read_text())
        self.answers = {int(seed): iter([Completion(**one) for one in each]) for seed, each in answers.items()}

    def load_weights(self, weights: Any) -> None:
        assert dict(weights)

    def digest(self, version: int) -> None:
        """There are no weights to read back."""

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        return [next(self.answers[request.seed]) for request in requests]

    def close(self) -> None: ...


if __name__ == "__main__":
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = lambda *_: ReplayEngine(sys.argv[1])  # type: ignore[misc, assignment]
    sys.exit(main(sys.argv[2:]))
