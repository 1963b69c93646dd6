"""What a step learns from: its judged completions as flat columns of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.objective import UpdateTokens
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.seeds import derive_seed


@dataclass
class Experience:
    """S = P * G completions of a step on this rank, group after group, with T completion tokens in all.

    Columns of completions are on the CPU, where an update is planned; columns of tokens are on the policy's device.

    Attributes:
        sequences: S prompts with their completions.
        identities: S pairs (prompt's index in the step, number of the completion), the same on any number of ranks.
        advantages: [S] float32.
        correct: [S] bool, judged right (and not truncated).
        valid: [S] bool; False for completions that are left out of their group, and hence of the loss.
        updates: [S] int64, which optimizer update of a pass over the step a completion belongs to.
        lengths: [S] int64, completion tokens.
        rollout_logprobs: [T] float32, log-probabilities that the sampler reported.
        old_logprobs: [T] float32, the policy's own at the start of the step; 0 as long as they are not known.
        old_entropy: [T] float32, the policy's token entropies at the start of the step, likewise.
        scored: [S] bool, whether these two are known.
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
        """From rollouts and their advantages [P, G]."""
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

    # ---- some of the completions, by their places among the S ----

    def where(self, mask: Tensor) -> list[int]:
        """Places of the completions for which a mask [S] is true."""
        places: list[int] = mask.nonzero().flatten().tolist()
        return places

    def tokens(self, members: Sequence[int]) -> Tensor:
        """[t] int64 on the CPU: places among the T tokens of those of some completions, one after the other."""
        chosen = torch.tensor(members, dtype=torch.int64)
        lengths = self.lengths[chosen]
        firsts = (self.lengths.cumsum(0) - self.lengths)[chosen]  # where each begins among the T
        begins = lengths.cumsum(0) - lengths  # where each begins among the t
        return torch.arange(int(lengths.sum())) + (firsts - begins).repeat_interleave(lengths)

    def sequence_ids(self, members: Sequence[int]) -> Tensor:
        """[t] int64 on the CPU: which of some completions each of their tokens belongs to."""
        return torch.arange(len(members)).repeat_interleave(self.lengths[list(members)])

    def remember(self, members: Sequence[int], logprobs: Tensor, entropy: Tensor) -> None:
        """Take up the policy's log-probabilities and entropies [t] of some completions at the start of the step."""
        places = self.tokens(members).to(self.old_logprobs.device)
        self.old_logprobs[places], self.old_entropy[places] = logprobs.float(), entropy.float()
        self.scored[list(members)] = True

    def zero_advantage(self, members: Sequence[int]) -> set[int]:
        """Those of some completions whose prompt has no completion with an advantage.

        A prompt is never cut in two for it, as its completions share a forward pass over it.
        """
        prompts = {place: tuple(self.sequences[place].prompt) for place in members}
        live = {prompts[place] for place in members if self.advantages[place] != 0}
        return {place for place, prompt in prompts.items() if prompt not in live}


@dataclass(frozen=True)
class StepRecord:
    """What the last step worked on (this rank's part), for callbacks that look closer.

    Attributes:
        groups: Verdicts of P groups.
        advantages: [P, G], with the overlong penalty where there is one.
        experience: The P * G completions.
        temperature: Sampling temperature.
    """

    groups: GroupRewards
    advantages: Tensor
    experience: Experience
    temperature: float


def update_tokens(
    experience: Experience,
    members: Sequence[int],
    old_logprobs: Tensor,
    *,
    run_seed: int,
    step: int,
    all_gather: Callable[[Tensor], Tensor],
) -> UpdateTokens:
    """Everything constant about one update, for objectives that choose tokens by statistics over all of it.

    Args:
        experience: The step's.
        members: The update's completions on this rank.
        old_logprobs: [t] under pi_old; NaN where the objective does not ask for them.
        run_seed: Seed of the run.
        step: RL steps completed before this one.
        all_gather: See `UpdateTokens`.
    """
    sequence_ids = experience.sequence_ids(members)
    return UpdateTokens(
        old_logprobs=old_logprobs.cpu(),
        advantages=experience.advantages[list(members)][sequence_ids],
        sequence_ids=sequence_ids,
        token_keys=token_keys(experience, members, run_seed, step),
        all_gather=all_gather,
    )


def token_keys(experience: Experience, members: Sequence[int], run_seed: int, step: int) -> Tensor:
    """[t] float64 uniform in [0, 1): a function of run seed, step, completion and position alone."""
    keys = [np.zeros(0)]
    for place in members:
        seed = derive_seed("token", run_seed, step, *experience.identities[place])
        keys.append(np.random.Generator(np.random.Philox(seed)).random(int(experience.lengths[place])))
    return torch.from_numpy(np.concatenate(keys))
