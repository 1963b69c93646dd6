"""Types that the stages of a step exchange: prompts, completions and their verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from asymgrpo_app.errors import RunError
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards.base import Verdict


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings of completions.

    Attributes:
        temperature: Softmax temperature; 0 is greedy.
        max_tokens: Longest completion in tokens, the end token included.
        stop_token_ids: Tokens that end a completion (and are part of it).
        top_p: Nucleus size in (0, 1]; 1 samples from the whole distribution.
        top_k: Most tokens to choose from; 0: all.
        min_p: Least probability of a token, relative to the likeliest one's, in [0, 1); 0: any.
    """

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether tokens are left out of the distribution, so that the sampler's log-probabilities differ."""
        return self.temperature == 0 or self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class SampleRequest:
    """One completion to draw: the prompt's tokens and the seed of this very completion."""

    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: Sampled tokens, a stop token included; at least one.
        logprobs: The sampler's log-probability of each token, after temperature.
        truncated: Whether the length limit cut it (and not a stop token).
    """

    token_ids: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(frozen=True)
class JudgedCompletion:
    """A completion with its text and its verdict."""

    completion: Completion
    text: str
    verdict: Verdict


@dataclass
class RolloutBatch:
    """The rollouts of one step (this rank's part): P prompts with G completions each.

    Attributes:
        prompts: P prompts.
        groups: [P][G] judged completions.
        settings: Their sampling settings; the policy's log-probabilities use the same temperature.
        truncated_are_wrong: Whether truncated completions are wrong; otherwise they are invalid, and left out of their
            group.
        failed_are_wrong: The same for completions whose verifier failed (timeout, error).
        answers: [P][G] classes of equal answers, where an evaluation asked for them; None for a problem whose verifier
            has no classes of answers.
    """

    prompts: list[EncodedPrompt]
    groups: list[list[JudgedCompletion]]
    settings: SamplingSettings
    truncated_are_wrong: bool = True
    failed_are_wrong: bool = True
    answers: list[list[int | None] | None] | None = None

    def completions(self) -> Iterator[tuple[EncodedPrompt, int, JudgedCompletion]]:
        """P * G completions, group after group, each with its prompt and its number in the group."""
        for prompt, group in zip(self.prompts, self.groups, strict=True):
            for number, judged in enumerate(group):
                yield prompt, number, judged

    def rewards(self) -> Tensor:
        """Correctness in {0, 1}, float32 [P, G]. A truncated completion is never right."""
        right = [[float(c.verdict.correct and not c.completion.truncated) for c in g] for g in self.groups]
        return torch.tensor(right, dtype=torch.float32)

    def valid(self) -> Tensor:
        """Mask of valid completions, bool [P, G]: the others are left out of p, the loss and its divisor."""
        return torch.tensor([[self._is_valid(c) for c in group] for group in self.groups])

    def _is_valid(self, judged: JudgedCompletion) -> bool:
        failed = judged.verdict.status.failed
        return (self.truncated_are_wrong or not judged.completion.truncated) and (self.failed_are_wrong or not failed)


class AttachesRollouts:
    """Marks the callbacks that attach rollouts to the batches of a run; without one there is nothing to train on."""


@dataclass
class PromptBatch:
    """Batch of a data loader: the prompts of one step or of one slice of an evaluation set (this rank's part).

    Attributes:
        set_name: `train`, or the name of the evaluation set.
        step: RL steps completed before this one (training), or the number of the slice (evaluation).
        prompts: This rank's prompts.
        rollouts: Attached by the rollout callback before the step sees the batch.
        metrics: Metrics of the stages of the step; written at its end.
        started: `time.perf_counter()` when work on the batch began.
    """

    set_name: str
    step: int
    prompts: list[EncodedPrompt]
    rollouts: RolloutBatch | None = None
    metrics: StepMetrics = field(default_factory=StepMetrics)
    started: float = 0.0

    def require_rollouts(self) -> RolloutBatch:
        """The rollouts.

        Raises:
            RunError: None were attached.
        """
        if self.rollouts is None:
            raise RunError("The batch has no rollouts: the trainer needs the VLLMRolloutCallback (section `rollout`).")
        return self.rollouts

    def to(self, *_: Any, **__: Any) -> Self:
        """Return it unchanged: micro-batches move to the device one by one, and no precision plugin casts them."""
        return self
