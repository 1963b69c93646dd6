import pytest
import torch
from torch import Tensor

from asymgrpo_app.algorithm.aggregation import Aggregation, local_divisor, token_weights
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.objective import TokenBatch

IDS = torch.tensor([0, 0, 0, 2, 3, 3])  # completion 1 has no tokens


@pytest.mark.parametrize(
    ("mode", "weights", "divisor"),
    [
        ("token", [1, 1, 1, 1, 1, 1], 6),
        ("sequence", [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2], 3),
        ("constant", [1, 1, 1, 1, 1, 1], 40),
    ],
)
def test_weights_and_divisors_by_hand(mode: Aggregation, weights: list[float], divisor: float) -> None:
    assert token_weights(IDS, 4, mode).tolist() == pytest.approx(weights)
    assert token_weights(IDS, 4, mode).dtype == torch.float32
    assert local_divisor(IDS, 4, mode, max_completion_tokens=10) == divisor


@pytest.mark.parametrize(("mode", "divisor"), [("token", 0), ("sequence", 0), ("constant", 0)])
def test_a_rank_without_tokens_adds_nothing(mode: Aggregation, divisor: float) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    assert token_weights(nothing, 0, mode).shape == (0,)
    assert local_divisor(nothing, 0, mode, max_completion_tokens=10) == divisor


@pytest.mark.parametrize(("mode", "divisor"), [("token", 14), ("sequence", 8), ("constant", 8 * 16)])
def test_divisors_of_the_recorded_batch(recorded, mode: Aggregation, divisor: float) -> None:
    ids, count = recorded.sequence_ids, recorded.num_sequences
    assert local_divisor(ids, count, mode, max_completion_tokens=16) == divisor
    # Completions are never split, so the parts of a cut add up.
    first = ids < 3
    parts = [(ids[first], 3), (ids[~first] - 3, 5)]
    assert sum(local_divisor(part, number, mode, 16) for part, number in parts) == divisor
    pieces = torch.cat([token_weights(part, number, mode) for part, number in parts])
    assert torch.equal(pieces, token_weights(ids, count, mode))


def trl_loss(loss_type: str, logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, limit: int) -> Tensor:
    """TRL's GRPO losses as published, on padded [B, L] tensors with epsilon 0.2 and epsilon_high 0.28."""
    coef_1 = torch.exp(logps - old_logps)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    per_token_loss = -torch.min(coef_1 * advantages.unsqueeze(1), coef_2 * advantages.unsqueeze(1))
    if loss_type == "grpo":
        return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "dapo":
        num_items_in_batch = mask.sum()
        return (per_token_loss * mask).sum() / num_items_in_batch
    return (per_token_loss * mask).sum() / (per_token_loss.size(0) * limit)


@pytest.mark.parametrize(("loss_type", "mode"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
def test_equals_the_published_formulas_of_trl(loss_type: str, mode: Aggregation) -> None:
    generator = torch.Generator().manual_seed(7)
    batch_size, limit = 16, 24
    lengths = torch.randint(1, limit + 1, (batch_size,), generator=generator)
    mask = (torch.arange(limit) < lengths.unsqueeze(1)).float()
    old_logps = -3 * torch.rand(batch_size, limit, generator=generator)
    logps = (old_logps + 0.4 * torch.randn(batch_size, limit, generator=generator)).requires_grad_()
    advantages = torch.randn(batch_size, generator=generator)
    published = trl_loss(loss_type, logps, old_logps, advantages, mask, limit)
    (published_gradient,) = torch.autograd.grad(published, logps)

    kept = mask.bool()
    ids = torch.arange(batch_size).unsqueeze(1).expand(-1, limit)[kept]
    batch = TokenBatch(
        logprobs=logps[kept],
        entropy=torch.zeros_like(logps[kept]),
        old_logprobs=old_logps[kept],
        advantages=advantages[ids],
        sequence_ids=ids,
        num_sequences=batch_size,
        rollout_logprobs=old_logps[kept],
    )
    output = ClippedObjective(clip_low=0.2, clip_high=0.28).token_losses(batch)
    total = (token_weights(ids, batch_size, mode) * output.losses).sum()
    loss = total / local_divisor(ids, batch_size, mode, max_completion_tokens=limit)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.item() == pytest.approx(published.item(), abs=1e-6)
    assert abs(published.item()) > 0.01
    torch.testing.assert_close(gradient, published_gradient, rtol=1e-5, atol=1e-8)
