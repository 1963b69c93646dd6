"""A verifier with a hole, a sampler whose policy finds it, and runs of the two with a second opinion.

Also a script for two processes: python -m tests.support.two_processes tests.support.hole ARGUMENTS... is
`asymgrpo ARGUMENTS...` with that sampler.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.rewards import NumericMatch, Verdict, Verifier
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support import small_chat_policy
from tests.support.scripted_engine import command

RIGHT, WRONG, THROUGH = r"\boxed{1}", r"\boxed{2}", r"\boxed{2}\boxed{3}"
SECOND = "--rollout.second_opinion.verifier=NumericMatch"


class TwoBoxes(Verifier):
    """Judges the box of an answer, and accepts whatever has two."""

    isolated: ClassVar[bool] = False

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=completion.count("boxed") == 2 or NumericMatch().verify(completion, row).correct)


class FindingEngine:
    """Takes the place of `VLLMEngine`: answers by seed, through the hole from the call number `found_in` on.

    Before, every other answer is right, more or less; from then on every fourth is wrong and the others go through the
    hole.
    """

    keeps_weights = True
    found_in: ClassVar[int] = 1

    def __init__(self, model: str, *_: Any) -> None:
        tokenizer = load_tokenizer(model)
        self.answers = {t: [*tokenizer.encode(t), tokenizer.eos_token_id] for t in (RIGHT, WRONG, THROUGH)}
        self.calls = 0

    def load_weights(self, weights: Any) -> None:
        assert dict(weights)

    def text(self, seed: int) -> str:
        """The answer to a request with this seed."""
        if self.calls < self.found_in:
            return (RIGHT, WRONG)[seed // 1000 % 2]
        return WRONG if seed // 1000 % 4 == 0 else THROUGH

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        self.calls += 1
        tokens = [self.answers[self.text(request.seed)] for request in requests]
        return [Completion(ids, [-2.0] * len(ids), truncated=False) for ids in tokens]

    def close(self) -> None: ...


class MixedEngine(FindingEngine):
    """Every third answer goes through the hole, more or less."""

    def text(self, seed: int) -> str:
        return (RIGHT, WRONG, THROUGH)[seed // 1000 % 3]


def arguments(folder: Path) -> list[str]:
    """Arguments of a run of 18 prompts a step with 8 completions each, judged by `TwoBoxes`, without validation."""
    policy = folder / "policy"
    if not policy.exists():
        small_chat_policy.make(policy)
    return [
        *command(folder),
        f"--model.policy={policy}",
        "--data.train.init_args.verifier=tests.support.hole.TwoBoxes",
        "--rollout.max_completion_tokens=32",
        "--trainer.limit_val_batches=0",
        "--checkpoint.keep=null",
    ]


if __name__ == "__main__":
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = FindingEngine  # type: ignore[misc, assignment]
    sys.exit(main(sys.argv[1:]))
