"""A recorded batch small enough to work out by hand, and threads that stand in for ranks."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.objective import TokenBatch, UpdateTokens

# The same examples in every run; no deadline, because the cores may be shared.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=25)
settings.load_profile("repeatable")

RATIOS = [[1.0, 1.25, 1.6], [0.75, 0.9], [1.5], [0.5, 1.1], [1.3], [0.5, 1.22], [1.0], [0.7, 1.6]]
"""pi_theta / pi_old of the tokens of eight completions."""


@dataclass
class RecordedStep:
    """Two prompts with four completions, one of four and three of four right, and 14 tokens."""

    groups: GroupRewards
    ratios: Tensor
    sequence_ids: Tensor
    num_sequences: int = 8

    def batch(self, advantages: Tensor) -> TokenBatch:
        """The tokens in float64, with the advantages [2, 4] of the completions."""
        old_logprobs = torch.linspace(-2, -0.1, len(self.ratios), dtype=torch.float64)
        return TokenBatch(
            logprobs=(old_logprobs + self.ratios.log()).requires_grad_(),
            entropy=torch.ones_like(old_logprobs),
            old_logprobs=old_logprobs,
            advantages=advantages.flatten()[self.sequence_ids].float(),
            sequence_ids=self.sequence_ids,
            num_sequences=self.num_sequences,
            rollout_logprobs=old_logprobs,
        )


@pytest.fixture
def recorded() -> RecordedStep:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    return RecordedStep(
        groups=GroupRewards(rewards, torch.ones_like(rewards, dtype=torch.bool)),
        ratios=torch.tensor([ratio for completion in RATIOS for ratio in completion], dtype=torch.float64),
        sequence_ids=torch.tensor([index for index, completion in enumerate(RATIOS) for _ in completion]),
    )


@pytest.fixture
def prepare_on_ranks() -> Callable[..., list[dict[str, Tensor]]]:
    """Call `prepare` on several ranks at once, each with a part of the tokens."""

    def run(objective, update: UpdateTokens, parts: list[Tensor]) -> list[dict[str, Tensor]]:
        barrier, slots = threading.Barrier(len(parts)), [torch.empty(0)] * len(parts)

        def prepare(rank: int) -> dict[str, Tensor]:
            def all_gather(values: Tensor) -> Tensor:
                slots[rank] = values
                barrier.wait(timeout=30)
                gathered = torch.cat(slots)
                barrier.wait(timeout=30)
                return gathered

            part = parts[rank]
            local = UpdateTokens(
                old_logprobs=update.old_logprobs[part],
                advantages=update.advantages[part],
                sequence_ids=update.sequence_ids[part],
                token_keys=update.token_keys[part],
                all_gather=all_gather,
            )
            return objective.prepare(local)

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(prepare, range(len(parts))))

    return run
