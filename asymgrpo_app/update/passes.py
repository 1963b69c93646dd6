"""Forward passes of the policy and its reference over completions, in micro-batches of bounded size."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from asymgrpo_app.microbatch.cutting import MicroBatches, cut, in_step
from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.parallel.sharding import is_sharded, policy_logprobs
from asymgrpo_app.policy.loading import micro_batch_form
from asymgrpo_app.policy.lora import adapters_off
from asymgrpo_app.update.perf import PassedTokens

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel


@dataclass
class ForwardPasses:
    """Forward passes of the policy and its reference, which give log-probabilities of completions.

    Attributes:
        policy: The model that is trained.
        max_tokens: Most tokens of a micro-batch, padding included.
        reference: Reference model of the KL term; with LoRA it is the policy itself, whose adapters are then turned
            off; None without a KL term.
        count: Tokens passed since the last reset.
    """

    policy: PreTrainedModel
    max_tokens: int
    reference: PreTrainedModel | None = None
    count: PassedTokens = field(default_factory=PassedTokens)

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded, so that every rank takes part in each pass."""
        return is_sharded(self.policy)

    def cut(
        self, sequences: Sequence[TokenSequence], members: Sequence[int], apart: Collection[int] = ()
    ) -> MicroBatches:
        """Cut some of the sequences into micro-batches.

        Args:
            sequences: The sequences to choose from.
            members: Indices of those that are cut.
            apart: Members that go into micro-batches of their own, which come first.

        Returns:
            Micro-batches on the device. With sharded weights every rank has equally many; the last ones may be empty.
        """
        parts = [[member for member in members if (member in apart) is first] for first in (True, False)]
        form, device = micro_batch_form(self.policy), next(self.policy.parameters()).device
        groups = [group for part in parts for group in cut(sequences, part, self.max_tokens, form)]
        batches = MicroBatches(sequences, groups, form, device)
        return in_step(batches, gather=gather_objects) if self.sharded else batches

    def logprobs(self, batch: MicroBatch, temperature: float, *, entropy_grad: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each of T completion tokens under the policy, two float32 tensors [T]."""
        return policy_logprobs(self.policy, batch, temperature=temperature, entropy_grad=entropy_grad)

    @torch.no_grad()
    def reference_logprobs(self, batch: MicroBatch, temperature: float) -> Tensor | None:
        """Log-probabilities [T] under the reference model; None without one."""
        if self.reference is None:
            return None
        with adapters_off(self.reference):
            return policy_logprobs(self.reference, batch, temperature=temperature)[0]

    @torch.no_grad()
    def of_sequences(
        self, sequences: Sequence[TokenSequence], temperature: float, context: AbstractContextManager[None]
    ) -> list[Tensor]:
        """Log-probabilities of each completion's tokens under the policy as it is now, on the CPU.

        Args:
            sequences: Prompts with completions.
            temperature: Sampling temperature.
            context: Context of the run's precision.
        """
        scored: list[Tensor] = [torch.zeros(0)] * len(sequences)
        members: list[int] = []
        parts: list[Tensor] = []
        with context:
            for batch in self.cut(sequences, range(len(sequences))):
                parts.append(self.logprobs(batch, temperature)[0].float())
                members.extend(batch.members)
        lengths = [len(sequences[member].completion) for member in members]
        together = torch.cat(parts).cpu() if parts else torch.zeros(0)
        for member, part in zip(members, together.split(lengths), strict=True):
            scored[member] = part
        return scored
