"""A callback for tests that writes down what was sampled."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from asymgrpo_app.parallel.sharding import whole_weights
from asymgrpo_app.rollout.digest import policy_digest


class Recorder(Callback):
    """Appends one JSON line per batch to `path`: set, step, prompts, and every completion with its verdict.

    `groups` holds (token ids, verdict, the sampler's log-probabilities) of each completion; `truncated`, `statuses` and
    `texts` have the same shape. `rank` says which process wrote the line, and `weights` what the policy was at its end.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._write(trainer, pl_module, batch)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._write(trainer, pl_module, batch)

    def _write(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        groups = batch.rollouts.groups
        line = {
            "set": batch.set_name,
            "step": batch.step,
            "prompts": [prompt.token_ids for prompt in batch.rollouts.prompts],
            "groups": [[(c.completion.token_ids, c.verdict.correct, c.completion.logprobs) for c in g] for g in groups],
            "truncated": [[c.completion.truncated for c in group] for group in groups],
            "statuses": [[str(c.verdict.status) for c in group] for group in groups],
            "texts": [[c.text for c in group] for group in groups],
            "rank": trainer.global_rank,
            "weights": str(policy_digest(whole_weights(pl_module.policy), [], None, torch.float32, 0)),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def recorded(path: Path) -> list[dict[str, Any]]:
    """What a Recorder wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
