import math

import pytest
import torch
from torch import Tensor

from asymgrpo_app.algorithm.covariance import ClipCov, KLCov, token_covariances
from asymgrpo_app.algorithm.objective import Objective, TokenBatch, UpdateTokens


def update_of(advantages: list[float], old_logprobs: list[float], keys: list[float] | None = None) -> UpdateTokens:
    count = len(advantages)
    return UpdateTokens(
        old_logprobs=torch.tensor(old_logprobs),
        advantages=torch.tensor(advantages),
        sequence_ids=torch.arange(count),
        token_keys=torch.tensor(keys or [index / count for index in range(count)], dtype=torch.float64),
        all_gather=lambda values: values,
    )


def batch_of(update: UpdateTokens, ratios: list[float], selection: dict[str, Tensor]) -> TokenBatch:
    old_logprobs = update.old_logprobs.double()
    return TokenBatch(
        logprobs=(old_logprobs + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(),
        entropy=torch.zeros_like(old_logprobs),
        old_logprobs=old_logprobs,
        advantages=update.advantages,
        sequence_ids=update.sequence_ids,
        num_sequences=len(ratios),
        rollout_logprobs=old_logprobs,
        selection=selection,
    )


# mean A = 0, mean lp = -2: covariances 3, 1.5, 0, -4, 2 * 0.25, 0
ADVANTAGES, LOGPROBS = [3.0, 1.5, 0.0, -4.0, 2.0, -2.5], [-1.0, -1.0, -5.0, -1.0, -1.75, -2.25]
COVARIANCES = [3.0, 1.5, 0.0, -4.0, 0.5, 0.625]


def test_covariances_by_hand() -> None:
    covariances, count = token_covariances(update_of(ADVANTAGES, LOGPROBS))
    assert covariances.tolist() == pytest.approx(COVARIANCES)
    assert count == 6


def test_covariances_are_about_the_means_over_all_tokens() -> None:
    # Means 2 and -3; one token alone is its own mean.
    covariances, count = token_covariances(update_of([1.0, 2.0, 3.0], [-1.0, -3.0, -5.0]))
    assert (covariances.tolist(), count) == ([-2, 0, -2], 3)
    covariances, count = token_covariances(update_of([5.0], [-1.0]))
    assert (covariances.tolist(), count) == ([0], 1)
    assert token_covariances(update_of([], []))[1] == 0


@pytest.mark.parametrize(
    ("share", "bounds", "keys", "silenced"),
    [
        # Candidates between 1 and 5 are tokens 0 and 1; floor(6 * share), at least one of them.
        (2e-4, (1.0, 5.0), [0.9, 0.1, 0, 0, 0, 0], [1]),
        (2e-4, (1.0, 5.0), [0.1, 0.9, 0, 0, 0, 0], [0]),
        (0.34, (1.0, 5.0), [0.1, 0.9, 0, 0, 0, 0], [0, 1]),
        (1.0, (1.0, 5.0), [0.1, 0.9, 0, 0, 0, 0], [0, 1]),
        # The bounds themselves are outside.
        (1.0, (1.5, 3.0), [0.1, 0.9, 0, 0, 0, 0], []),
        (0.5, (0.4, 5.0), [0.9, 0.5, 0, 0, 0.4, 0.3], [1, 4, 5]),
    ],
)
def test_clip_cov_silences_random_candidates(share: float, bounds, keys: list[float], silenced: list[int]) -> None:
    objective = ClipCov(share=share, cov_low=bounds[0], cov_high=bounds[1])
    selection = objective.prepare(update_of(ADVANTAGES, LOGPROBS, keys))
    assert selection["silenced"].nonzero().flatten().tolist() == silenced


def test_clip_cov_losses_by_hand() -> None:
    update = update_of(ADVANTAGES, LOGPROBS, [0.9, 0.1, 0, 0, 0, 0])
    objective = ClipCov(clip_low=0.2, clip_high=0.2)
    batch = batch_of(update, [1.1, 1.1, 1.1, 0.5, 1.6, 1.0], objective.prepare(update))
    output = objective.token_losses(batch)
    # Token 1 is silenced, token 3 clipped at 0.8, token 4 at 1.2.
    assert output.losses.tolist() == pytest.approx([-3.3, 0, 0, 3.2, -2.4, 2.5])
    (gradient,) = torch.autograd.grad(output.losses.sum(), batch.logprobs)
    assert gradient.tolist() == pytest.approx([-3.3, 0, 0, 0, 0, 2.5])
    metrics = {tag: (metric.total / metric.weight).item() for tag, metric in output.metrics.items()}
    assert metrics["actor/pg_clipfrac_cov"] == pytest.approx(1 / 6)
    assert metrics["actor/pg_clipfrac"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("share", "penalized"), [(2e-3, [0]), (0.34, [0, 1]), (0.5, [0, 1, 5]), (1.0, [0, 1, 2, 3, 4, 5])]
)
def test_kl_cov_takes_the_highest_covariances(share: float, penalized: list[int]) -> None:
    selection = KLCov(share=share).prepare(update_of(ADVANTAGES, LOGPROBS))
    assert selection["penalized"].nonzero().flatten().tolist() == penalized


def test_kl_cov_losses_by_hand() -> None:
    update = update_of(ADVANTAGES, LOGPROBS)
    objective = KLCov(share=0.34, kl_coef=0.5)
    batch = batch_of(update, [1.6, 0.5, 1.1, 0.5, 1.6, 1.0], objective.prepare(update))
    output = objective.token_losses(batch)
    expected = [-4.8 + 0.5 * math.log(1.6), -0.75 + 0.5 * math.log(2), 0, 2, -3.2, 2.5]
    assert output.losses.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(output.losses.sum(), batch.logprobs)
    assert gradient.tolist() == pytest.approx([-4.3, -1.25, 0, 2, -3.2, 2.5])
    metrics = {tag: (metric.total / metric.weight).item() for tag, metric in output.metrics.items()}
    log_ratios = math.log(1.6 * 0.5 * 1.1 * 0.5 * 1.6 * 1.0)
    assert metrics == pytest.approx({"actor/kl_cov_frac": 2 / 6, "actor/ppo_kl": -log_ratios / 6})


def test_ties_in_covariance_are_broken_by_the_keys() -> None:
    # Three tokens with the same covariance, places for two of them.
    update = update_of([1.0, 1.0, 1.0, -3.0], [-1.0, -1.0, -1.0, -2.0], [0.8, 0.2, 0.5, 0.1])
    update.old_logprobs[3] = -1.5
    assert KLCov(share=0.75).prepare(update)["penalized"].tolist() == [False, True, True, True]
    assert KLCov(share=0.5).prepare(update)["penalized"].tolist() == [False, True, False, True]


def random_update(count: int) -> UpdateTokens:
    generator = torch.Generator().manual_seed(3)
    # Few distinct values, so that ties are many.
    return UpdateTokens(
        old_logprobs=-torch.randint(0, 6, (count,), generator=generator).float(),
        advantages=torch.randint(-3, 4, (count,), generator=generator).float(),
        sequence_ids=torch.arange(count),
        token_keys=torch.rand(count, dtype=torch.float64, generator=generator),
        all_gather=lambda values: values,
    )


@pytest.mark.parametrize("objective", [ClipCov(share=0.05), KLCov(share=0.05)], ids=["clip-cov", "kl-cov"])
@pytest.mark.parametrize("sizes", [[200, 200], [1, 399], [400, 0], [150, 100, 150]])
def test_choice_does_not_depend_on_ranks_or_order(prepare_on_ranks, objective: Objective, sizes: list[int]) -> None:
    update = random_update(400)
    (name, whole), *_ = objective.prepare(update).items()
    assert whole.sum() == 20
    parts = list(torch.randperm(400, generator=torch.Generator().manual_seed(5)).split(sizes))
    for part, selection in zip(parts, prepare_on_ranks(objective, update, parts), strict=True):
        assert torch.equal(selection[name], whole[part])


@pytest.mark.parametrize("objective", [ClipCov(), KLCov()])
def test_an_update_without_tokens(objective: Objective) -> None:
    (chosen,) = objective.prepare(random_update(0)).values()
    assert chosen.shape == (0,)
    assert objective.needs_old_logprobs
