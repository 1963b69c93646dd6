"""The gradient of an update: right, and the same however the update is cut into micro-batches."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asymgrpo_app.algorithm.aggregation import Aggregation, local_divisor, token_weights
from asymgrpo_app.algorithm.cispo import CISPO
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.covariance import ClipCov, KLCov
from asymgrpo_app.algorithm.gspo import GSPO
from asymgrpo_app.algorithm.objective import Objective, TokenBatch, UpdateTokens, regularized
from asymgrpo_app.policy.head import completion_logprobs

LIMIT = 16
OBJECTIVES = {
    "clip": ClippedObjective(),
    "dual-clip": ClippedObjective(clip_high=0.28, dual_clip=1.3),
    "gspo": GSPO(clip_low=0.05, clip_high=0.05),
    "cispo": CISPO(ratio_max=1.2),
    "clip-cov": ClipCov(share=0.1, cov_low=0.1),
    "kl-cov": KLCov(share=0.1),
}


@dataclass
class Update:
    """Twelve completions of 1 to 9 tokens, under a linear policy that has moved since they were sampled."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor

    def prepared(self, objective: Objective) -> dict[str, Tensor]:
        keys = torch.rand(len(self.targets), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        return objective.prepare(
            UpdateTokens(self.old_logprobs, self.advantages, self.sequence_ids, keys, lambda values: values)
        )

    def loss(
        self,
        weight: Tensor,
        objective: Objective,
        mode: Aggregation,
        selection: dict[str, Tensor],
        completions: list[int],
    ) -> tuple[Tensor, float]:
        """The sum of weighted losses of a micro-batch of these completions, in this order, and its divisor."""
        places = torch.cat([(self.sequence_ids == index).nonzero().flatten() for index in completions])
        lengths = torch.bincount(self.sequence_ids)[completions]
        ids = torch.repeat_interleave(torch.arange(len(completions)), lengths)
        logprobs, entropy = completion_logprobs(
            self.hidden[places], weight, None, self.targets[places], temperature=0.9, chunk_tokens=5, entropy_grad=True
        )
        batch = TokenBatch(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=self.old_logprobs[places],
            advantages=self.advantages[places],
            sequence_ids=ids,
            num_sequences=len(completions),
            rollout_logprobs=self.old_logprobs[places],
            ref_logprobs=self.ref_logprobs[places],
            selection={name: chosen[places] for name, chosen in selection.items()},
        )
        output = regularized(objective.token_losses(batch), batch, kl_coef=0.1, entropy_coef=0.01)
        total = (token_weights(ids, len(completions), mode) * output.losses).sum()
        return total, local_divisor(ids, len(completions), mode, LIMIT)

    def gradient(self, objective: Objective, mode: Aggregation, micro_batches: list[list[int]]) -> Tensor:
        """The gradient of the update, micro-batch by micro-batch."""
        selection, total, divisor = self.prepared(objective), torch.zeros_like(self.weight), 0.0
        for completions in micro_batches:
            weight = self.weight.clone().requires_grad_()
            loss, share = self.loss(weight, objective, mode, selection, completions)
            total += torch.autograd.grad(loss, weight)[0]
            divisor += share
        return total / divisor


def make_update(dtype: torch.dtype) -> Update:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.tensor([3, 1, 9, 4, 6, 2, 8, 5, 1, 7, 3, 5])
    count = int(lengths.sum())
    hidden = torch.randn(count, 6, generator=generator).to(dtype)
    weight = torch.randn(9, 6, generator=generator).to(dtype)
    moved = weight + 0.1 * torch.randn(9, 6, generator=generator).to(dtype)
    far = weight + 0.3 * torch.randn(9, 6, generator=generator).to(dtype)
    targets = torch.randint(0, 9, (count,), generator=generator)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return Update(
        hidden=hidden,
        weight=moved,
        targets=targets,
        old_logprobs=completion_logprobs(hidden, weight, None, targets, temperature=0.9)[0],
        ref_logprobs=completion_logprobs(hidden, far, None, targets, temperature=0.9)[0],
        # One completion, the last, has advantage 0 and counts all the same.
        advantages=torch.tensor([2.7, -0.6, -0.6, -0.6, 0.4, 0.4, 0.4, -1.6, 1, -1, 1, 0])[ids],
        sequence_ids=ids,
    )


UPDATE = make_update(torch.float32)
EVERYTHING = [list(range(12))]


@cache
def whole_gradient(name: str, mode: Aggregation) -> Tensor:
    return UPDATE.gradient(OBJECTIVES[name], mode, EVERYTHING)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
@settings(max_examples=10)
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)))
def test_any_cut_in_any_order_gives_the_same_gradient(name: str, mode: Aggregation, order, cuts) -> None:
    bounds = [0, *sorted(cuts), 12]
    micro_batches = [list(order[start:stop]) for start, stop in pairwise(bounds)]
    whole = whole_gradient(name, mode)
    pieces = UPDATE.gradient(OBJECTIVES[name], mode, micro_batches)
    assert (pieces - whole).norm() / whole.norm() < 1e-5


def test_the_objectives_differ_and_clip_on_this_update() -> None:
    gradients = [whole_gradient(name, "token") for name in OBJECTIVES]
    for index, one in enumerate(gradients):
        for other in gradients[:index]:
            assert (one - other).norm() / one.norm() > 1e-3


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cispo"])
@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
def test_gradient_against_finite_differences(name: str, mode: Aggregation) -> None:
    update = make_update(torch.float64)
    selection = update.prepared(OBJECTIVES[name])

    def loss(weight: Tensor) -> Tensor:
        total, divisor = update.loss(weight, OBJECTIVES[name], mode, selection, EVERYTHING[0])
        return total / divisor

    assert torch.autograd.gradcheck(loss, (update.weight.clone().requires_grad_(),))


def test_gradient_of_cispo_against_finite_differences_of_its_weighted_likelihood() -> None:
    # The weights are constants of the objective, so its own value is not what its gradient descends.
    update = make_update(torch.float64)

    def likelihood(weight: Tensor) -> Tensor:
        return completion_logprobs(update.hidden, weight, None, update.targets, temperature=0.9)[0]

    frozen = (likelihood(update.weight) - update.old_logprobs).exp().clamp(max=1.2) * update.advantages
    selection = update.prepared(OBJECTIVES["cispo"])

    def batch_gradient() -> Tensor:
        weight = update.weight.clone().requires_grad_()
        logprobs = likelihood(weight)
        batch = TokenBatch(
            logprobs,
            logprobs,
            update.old_logprobs,
            update.advantages,
            update.sequence_ids,
            12,
            logprobs,
            None,
            selection,
        )
        return torch.autograd.grad(OBJECTIVES["cispo"].token_losses(batch).losses.sum(), weight)[0]

    gradient, step = batch_gradient(), 1e-6
    for place in [(0, 0), (3, 2), (8, 5)]:
        nudge = torch.zeros_like(update.weight)
        nudge[place] = step
        difference = likelihood(update.weight + nudge) - likelihood(update.weight - nudge)
        assert gradient[place].item() == pytest.approx(-(frozen * difference).sum().item() / (2 * step), rel=1e-6)
