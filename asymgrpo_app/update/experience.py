"""Training data of a step: its judged completions as flat tensors over completions and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.seeds import derive_seed


@dataclass
class Experience:
    """S = P * G completions of a step on this rank, group after group, with T completion tokens in all.

    Tensors over completions [S] are on the CPU, where an update is planned; tensors over tokens [T] are on the policy's
    device.

    Attributes:
        sequences: S prompts with their completions.
        identities: S pairs (prompt's index in the step, number of the completion), the same on any number of ranks.
        advantages: [S] float32.
        correct: [S] bool, judged right (and not truncated).
        valid: [S] bool; False for completions that are left out of their group, and hence of the loss.
        updates: [S] int64, the mini-batch of a completion: number of its optimizer update within a pass (PPO epoch).
        lengths: [S] int64, completion tokens.
        rollout_logprobs: [T] float32, log-probabilities that the sampler reported.
        old_logprobs: [T] float32, the policy's log-probabilities at the start of the step; 0 until they are known.
        old_entropy: [T] float32, the policy's token entropies at the start of the step; 0 until they are known.
        scored: [S] bool, whether `old_logprobs` and `old_entropy` are known.
    """

    sequences: list[TokenSequence]
    identities: list[tuple[int, int]]
    advantages: Tensor
    correct: Tensor
    valid: Tensor
    updates: Tensor
    lengths: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor
    old_entropy: Tensor
    scored: Tensor

    @classmethod
    def of(cls, rollouts: RolloutBatch, groups: GroupRewards, advantages: Tensor, device: torch.device) -> "Experience":
        """Build it from rollouts and their advantages [P, G]."""
        pairs = [(prompt, g, judged) for prompt, g, judged in rollouts.completions()]
        lengths = torch.tensor([len(judged.completion.token_ids) for _, _, judged in pairs], dtype=torch.int64)
        reported = [logprob for _, _, judged in pairs for logprob in judged.completion.logprobs]
        unknown = torch.zeros(len(reported), device=device)
        return cls(
            sequences=[TokenSequence(prompt.token_ids, judged.completion.token_ids) for prompt, _, judged in pairs],
            identities=[(prompt.index, g) for prompt, g, _ in pairs],
            advantages=advantages.flatten().float(),
            correct=(groups.rewards == 1).flatten(),
            valid=groups.valid.flatten(),
            updates=torch.tensor([prompt.update for prompt, _, _ in pairs], dtype=torch.int64),
            lengths=lengths,
            rollout_logprobs=torch.tensor(reported, dtype=torch.float32, device=device),
            old_logprobs=unknown,
            old_entropy=unknown.clone(),
            scored=torch.zeros(len(pairs), dtype=torch.bool),
        )

    # ---- columns over tokens ----

    @cached_property
    def token_advantages(self) -> Tensor:
        """[T] float32, the advantage of each token's completion."""
        return self._over_tokens(self.advantages)

    @cached_property
    def token_correct(self) -> Tensor:
        """[T] bool, whether each token's completion was judged right."""
        return self._over_tokens(self.correct)

    def _over_tokens(self, column: Tensor) -> Tensor:
        return column.repeat_interleave(self.lengths).to(self.old_logprobs.device)

    # ---- parts of it; `members` are indices into the S completions ----

    def where(self, mask: Tensor) -> list[int]:
        """Indices of the completions for which a mask [S] is true."""
        indices: list[int] = mask.nonzero().flatten().tolist()
        return indices

    def tokens(self, members: Sequence[int]) -> Tensor:
        """Indices into the T tokens of the tokens of `members`, one after the other: [t] int64 on the CPU."""
        chosen = torch.tensor(members, dtype=torch.int64)
        lengths = self.lengths[chosen]
        firsts = (self.lengths.cumsum(0) - self.lengths)[chosen]  # where each begins among the T
        begins = lengths.cumsum(0) - lengths  # where each begins among the t
        return torch.arange(int(lengths.sum())) + (firsts - begins).repeat_interleave(lengths)

    def sequence_ids(self, members: Sequence[int]) -> Tensor:
        """For each token of `members`, the position of its completion in `members`: [t] int64 on the CPU."""
        return torch.arange(len(members)).repeat_interleave(self.lengths[list(members)])

    def remember(self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor) -> None:
        """Store the policy's log-probabilities and entropies [t] of a micro-batch at the start of the step."""
        self.old_logprobs[batch.places], self.old_entropy[batch.places] = logprobs.float(), entropy.float()
        self.scored[batch.members] = True

    def zero_advantage(self, members: Sequence[int]) -> set[int]:
        """The zero-advantage completions among `members`: no member with the same prompt has an advantage.

        Decided per prompt, as completions of one prompt share a forward pass over it.
        """
        prompts = {member: tuple(self.sequences[member].prompt) for member in members}
        live = {prompts[member] for member in members if self.advantages[member] != 0}
        return {member for member, prompt in prompts.items() if prompt not in live}


@dataclass(frozen=True)
class StepRecord:
    """This rank's data of the last step, for callbacks that inspect it.

    Attributes:
        groups: Verdicts of P groups.
        advantages: [P, G], overlong penalty and shaping terms included.
        experience: The P * G completions.
        temperature: Sampling temperature.
    """

    groups: GroupRewards
    advantages: Tensor
    experience: Experience
    temperature: float


def token_keys(experience: Experience, members: Sequence[int], run_seed: int, step: int) -> Tensor:
    """Random keys, [t] float64 uniform in [0, 1): a function of run seed, step, completion and position alone."""
    keys = [np.zeros(0)]
    for member in members:
        seed = derive_seed("token", run_seed, step, *experience.identities[member])
        keys.append(np.random.Generator(np.random.Philox(seed)).random(int(experience.lengths[member])))
    return torch.from_numpy(np.concatenate(keys))
