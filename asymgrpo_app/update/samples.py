"""From judged groups to what the loss is made of: one sample per completion, then packed tokens per update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymgrpo_app.algorithm.objective import UpdateTokens
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.seeds import derive_seed


@dataclass
class Sample:
    """One completion and all that is constant about it within a step.

    Attributes:
        tokens: The prompt and the completion.
        advantage: Of the completion, the same on each of its tokens.
        correct: Whether it was judged right (and not truncated).
        counts: Whether it is in the loss; False for completions left out of their group.
        update: Which optimizer update of the step it belongs to.
        sampler_logprobs: [length] float32, what the sampler reported.
        identity: (prompt's index in the step, number of the completion); names it on any rank.
        start_logprobs: [length] float32, the policy's own at the start of the step; None until they are known.
        start_entropy: [length] float32, the policy's token entropies at the start of the step; likewise.
    """

    tokens: TokenSequence
    advantage: float
    correct: bool
    counts: bool
    update: int
    sampler_logprobs: Tensor
    identity: tuple[int, int]
    start_logprobs: Tensor | None = None
    start_entropy: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of completion tokens."""
        return len(self.tokens.completion)


def flatten(rollouts: RolloutBatch, rewards: Tensor, valid: Tensor, advantages: Tensor) -> list[Sample]:
    """One sample per completion, from tensors of shape [P, G]."""
    samples = []
    for p, (prompt, group) in enumerate(zip(rollouts.prompts, rollouts.groups, strict=True)):
        for g, judged in enumerate(group):
            samples.append(
                Sample(
                    tokens=TokenSequence(prompt.token_ids, judged.completion.token_ids),
                    advantage=float(advantages[p, g]),
                    correct=bool(rewards[p, g] == 1),
                    counts=bool(valid[p, g]),
                    update=prompt.update,
                    sampler_logprobs=torch.tensor(judged.completion.logprobs, dtype=torch.float32),
                    identity=(prompt.index, g),
                )
            )
    return samples


def sequence_ids(samples: Sequence[Sample]) -> Tensor:
    """[T] int64: which of the samples each of their tokens, laid end to end, belongs to."""
    lengths = torch.tensor([sample.length for sample in samples], dtype=torch.int64)
    return torch.arange(len(samples)).repeat_interleave(lengths)


def advantage_tokens(samples: Sequence[Sample]) -> Tensor:
    """[T] float32: the advantage of each token."""
    values = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32)
    return values[sequence_ids(samples)]


def sampler_tokens(samples: Sequence[Sample]) -> Tensor:
    """[T] float32: what the sampler reported for each token."""
    return _end_to_end([sample.sampler_logprobs for sample in samples])


def start_tokens(samples: Sequence[Sample]) -> Tensor:
    """[T] float32: the policy's log-probabilities at the start of the step, which must be known."""
    return _end_to_end([_known(sample.start_logprobs) for sample in samples])


def start_entropy_tokens(samples: Sequence[Sample]) -> Tensor:
    """[T] float32: the policy's token entropies at the start of the step, which must be known."""
    return _end_to_end([_known(sample.start_entropy) for sample in samples])


def _end_to_end(parts: list[Tensor]) -> Tensor:
    """Concatenation that is empty for no parts: a rank may have no completion that counts."""
    return torch.cat(parts) if parts else torch.zeros(0)


def _known(values: Tensor | None) -> Tensor:
    assert values is not None
    return values


def token_keys(samples: Sequence[Sample], run_seed: int, step: int) -> Tensor:
    """[T] float64 uniform in [0, 1): a function of run seed, step, completion and position alone."""
    keys = [np.zeros(0)]
    for sample in samples:
        generator = np.random.Generator(np.random.Philox(derive_seed("token", run_seed, step, *sample.identity)))
        keys.append(generator.random(sample.length))
    return torch.from_numpy(np.concatenate(keys))


def update_tokens(
    samples: Sequence[Sample],
    old_logprobs: Tensor,
    *,
    run_seed: int,
    step: int,
    all_gather: Callable[[Tensor], Tensor],
) -> UpdateTokens:
    """Everything constant about one update, for objectives that choose tokens by statistics over all of it.

    Args:
        samples: The update's completions on this rank.
        old_logprobs: [T] under pi_old; NaN where the objective does not ask for them.
        run_seed: Seed of the run.
        step: RL steps completed before this one.
        all_gather: See `UpdateTokens`.
    """
    return UpdateTokens(
        old_logprobs=old_logprobs,
        advantages=advantage_tokens(samples),
        sequence_ids=sequence_ids(samples),
        token_keys=token_keys(samples, run_seed, step),
        all_gather=all_gather,
    )
