import math

import pytest
import torch
from jsonargparse import ArgumentParser

from asymgrpo_app.algorithm.advantages import AsymGRPO
from asymgrpo_app.algorithm.cispo import CISPO
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.covariance import ClipCov, KLCov
from asymgrpo_app.algorithm.gspo import GSPO
from asymgrpo_app.algorithm.kl import k3
from asymgrpo_app.algorithm.metrics import Mean, mean_of
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch, checked_losses, regularized
from asymgrpo_app.algorithm.ratios import bounded, clipped_sides, token_ratios
from asymgrpo_app.errors import UserError

# Per completion at G = 4: one of four right, then three of four right.
FIRST, SECOND = [3**0.9, *[-(3**-0.4)] * 3], [*[3**-0.9] * 3, -(3**0.4)]


def tokens(ratios: list[float], advantages: list[float], lengths: list[int] | None = None) -> TokenBatch:
    """Tokens with the given ratios, in float64; one completion each, or completions of the given lengths."""
    old_logprobs = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    counts = torch.tensor(lengths if lengths is not None else [1] * len(ratios))
    return TokenBatch(
        logprobs=(old_logprobs + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(),
        entropy=torch.full_like(old_logprobs, 0.5),
        old_logprobs=old_logprobs,
        advantages=torch.tensor(advantages),
        sequence_ids=torch.repeat_interleave(torch.arange(len(counts)), counts),
        num_sequences=len(counts),
        rollout_logprobs=old_logprobs,
    )


def values(metrics: dict[str, Mean]) -> dict[str, float]:
    return {tag: (metric.total / metric.weight).item() for tag, metric in metrics.items()}


def gradient(objective: Objective, batch: TokenBatch) -> list[float]:
    (grad,) = torch.autograd.grad(objective.token_losses(batch).losses.sum(), batch.logprobs)
    return grad.tolist()


RATIO = [0.5, 0.9, 1.0, 1.1, 1.6]


def test_clipped_losses_and_gradients_by_hand() -> None:
    objective = ClippedObjective(clip_low=0.2, clip_high=0.28)
    up, down = tokens(RATIO, [2.0] * 5), tokens(RATIO, [-2.0] * 5)
    assert objective.token_losses(up).losses.tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.2, -2.56])
    assert gradient(objective, up) == pytest.approx([-1.0, -1.8, -2.0, -2.2, 0])
    assert objective.token_losses(down).losses.tolist() == pytest.approx([1.6, 1.8, 2.0, 2.2, 3.2])
    assert gradient(objective, down) == pytest.approx([0, 1.8, 2.0, 2.2, 3.2])


def test_dual_clip_caps_the_loss_of_negative_advantages_only() -> None:
    objective = ClippedObjective(dual_clip=1.5)
    down, up = tokens([1.4, 1.6, 4.0], [-2.0] * 3), tokens([1.1, 1.6, 4.0], [2.0, 2.0, 0.5])
    assert objective.token_losses(down).losses.tolist() == pytest.approx([2.8, 3.0, 3.0])
    assert gradient(objective, down) == pytest.approx([2.8, 0, 0])
    assert values(objective.token_losses(down).metrics)["actor/pg_clipfrac_dual"] == pytest.approx(2 / 3)
    assert objective.token_losses(up).losses.tolist() == pytest.approx([-2.2, -2.4, -0.6])
    assert values(objective.token_losses(up).metrics)["actor/pg_clipfrac_dual"] == 0
    assert "actor/pg_clipfrac_dual" not in ClippedObjective().token_losses(down).metrics


def test_advantage_zero_has_loss_and_gradient_zero_at_any_ratio() -> None:
    batch = tokens([0.5, 1.0, 1.6, 1e300, 1e-300], [0.0] * 5)
    for objective in (ClippedObjective(dual_clip=3.0), GSPO(), CISPO()):
        assert objective.token_losses(batch).losses.abs().max() == 0
        assert gradient(objective, batch) == [0] * 5
        metrics = values(objective.token_losses(batch).metrics)
        assert not any(value for tag, value in metrics.items() if tag.startswith("actor/pg_clipfrac"))


def test_a_ratio_on_a_bound_is_not_clipped() -> None:
    ratios, ones = torch.tensor([0.5, 0.25, 1.5, 1.75]), torch.ones(4)
    low, _ = clipped_sides(ratios, -ones, clip_low=0.5, clip_high=0.5)
    _, high = clipped_sides(ratios, ones, clip_low=0.5, clip_high=0.5)
    assert low.tolist() == [False, True, False, False]
    assert high.tolist() == [False, False, False, True]
    up, down = tokens([1.0, 1.0], [1.0, -1.0]), tokens([1.5], [-1.0])
    assert values(CISPO(ratio_min=1.0, ratio_max=1.0).token_losses(up).metrics)["actor/pg_clipfrac"] == 0
    bound = token_ratios(down.logprobs, down.old_logprobs).item()
    assert values(ClippedObjective(dual_clip=bound).token_losses(down).metrics)["actor/pg_clipfrac_dual"] == 0


def test_ratios_are_bounded_at_twenty_nats() -> None:
    assert bounded(torch.tensor([-30.0, -20.0, 1.0, 20.0, 30.0])).tolist() == [-20, -20, 1, 20, 20]
    batch = tokens([math.exp(21.0), math.exp(19.0)], [-1.0, -1.0])
    losses = ClippedObjective().token_losses(batch).losses.tolist()
    assert losses == pytest.approx([math.exp(20.0), math.exp(19.0)])
    assert gradient(ClippedObjective(), batch) == pytest.approx([0.0, math.exp(19.0)])


def test_gspo_by_hand() -> None:
    # One completion of two tokens with ratio sqrt(0.5 * 1.62) = 0.9, one with sqrt(0.9 * 1.6) = 1.2
    objective = GSPO(clip_low=0.05, clip_high=0.3)
    up = tokens([0.5, 1.62, 0.9, 1.6], [1.0, 1.0, 2.0, 2.0], lengths=[2, 2])
    assert objective.token_losses(up).losses.tolist() == pytest.approx([-0.9, -0.9, -2.4, -2.4])
    # d loss / d logprob of each token is that of the geometric mean: -s A, since the mean's 1/2 meets two tokens.
    assert gradient(objective, up) == pytest.approx([-0.9, -0.9, -2.4, -2.4])
    down = tokens([0.5, 1.62, 0.9, 1.6], [-1.0, -1.0, -2.0, -2.0], lengths=[2, 2])
    assert objective.token_losses(down).losses.tolist() == pytest.approx([0.95, 0.95, 2.4, 2.4])
    assert gradient(objective, down) == pytest.approx([0, 0, 2.4, 2.4])
    metrics = values(objective.token_losses(down).metrics)
    assert (metrics["actor/pg_clipfrac_neg"], metrics["actor/pg_clipfrac_pos"]) == (0.5, 0)


def test_cispo_by_hand() -> None:
    batch = tokens(RATIO, [2.0, 2.0, 0.0, -2.0, -2.0])
    one_sided, both_sided = CISPO(ratio_max=1.5), CISPO(ratio_min=0.8, ratio_max=1.05)
    assert gradient(one_sided, batch) == pytest.approx([-1.0, -1.8, 0, 2.2, 3.0])
    assert gradient(both_sided, batch) == pytest.approx([-1.6, -1.8, 0, 2.1, 2.1])
    expected = [
        -w * a * lp for w, a, lp in zip([0.5, 0.9, 1, 1.1, 1.5], [2, 2, 0, -2, -2], batch.logprobs, strict=True)
    ]
    assert one_sided.token_losses(batch).losses.tolist() == pytest.approx([loss.item() for loss in expected])
    metrics = values(both_sided.token_losses(batch).metrics)
    assert (metrics["actor/pg_clipfrac_pos"], metrics["actor/pg_clipfrac_neg"]) == (0.2, 0.4)


def test_k3_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5, -1.0, -100.0], dtype=torch.float64, requires_grad=True)
    ref_logprobs = torch.tensor([-1.0, -1.0, -1.5, -1.0 - math.log(2), 0.0], dtype=torch.float64)
    divergence = k3(logprobs, ref_logprobs)
    expected = [0, math.e - 2, 1 / math.e, math.log(2) - 0.5, math.exp(20) - 21]
    assert divergence.tolist() == pytest.approx(expected)
    (grad,) = torch.autograd.grad(divergence.sum(), logprobs)
    assert grad.tolist() == pytest.approx([0, 1 - math.e, 1 - 1 / math.e, 0.5, 0])


def test_regularization_adds_kl_and_subtracts_entropy() -> None:
    batch = tokens([1.0, 1.0], [0.0, 1.0])
    batch.ref_logprobs = batch.old_logprobs + math.log(2)  # k3 = 2 - log 2 - 1
    batch.entropy = torch.tensor([0.5, 1.5], dtype=torch.float64)
    plain = ClippedObjective().token_losses(batch)
    output = regularized(plain, batch, kl_coef=0.1, entropy_coef=0.01)
    divergence = 1 - math.log(2)
    assert output.losses.tolist() == pytest.approx([0.1 * divergence - 0.005, -1 + 0.1 * divergence - 0.015])
    assert values(output.metrics)["actor/kl_loss"] == pytest.approx(divergence)
    once = regularized(plain, batch, kl_coef=1.0, entropy_coef=1.0)
    assert once.losses.tolist() == pytest.approx([divergence - 0.5, -1 + divergence - 1.5])
    unchanged = regularized(plain, batch, kl_coef=0.0, entropy_coef=0.0)
    assert torch.equal(unchanged.losses, plain.losses)
    assert "actor/kl_loss" not in unchanged.metrics
    batch.ref_logprobs = None
    with pytest.raises(ValueError, match=r"kl_coef is 0.1 but the batch has no ref_logprobs"):
        regularized(plain, batch, kl_coef=0.1, entropy_coef=0.0)


def clip_fractions(high: int, low: int, **others: float) -> dict[str, float]:
    """Clip fractions over the 14 recorded tokens."""
    return {
        "actor/pg_clipfrac": (high + low) / 14,
        "actor/pg_clipfrac_pos": high / 14,
        "actor/pg_clipfrac_neg": low / 14,
        **others,
    }


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # Above 1.2 with A > 0: 1.25, 1.6 | 1.3 | 1.22. Below 0.8 with A < 0: 0.75 | 0.5 | 0.7.
        (ClippedObjective(), clip_fractions(4, 3)),
        (ClippedObjective(clip_high=0.28), clip_fractions(2, 3)),
        # Above 1.4 with A < 0: 1.5 | 1.6.
        (ClippedObjective(dual_clip=1.4), clip_fractions(4, 3, **{"actor/pg_clipfrac_dual": 2 / 14})),
        # Completion ratios 1.260, 0.822, 1.5, 0.742 | 1.3, 0.781, 1, 1.058: tokens of the 1st and 5th, 2nd and 4th.
        (GSPO(), clip_fractions(4, 4)),
        (CISPO(), clip_fractions(0, 0)),
        # Outside [0.8, 1.2]: 1.25, 1.6 | 1.3 | 0.5, 1.22 of right ones, 0.75 | 1.5 | 0.5 | 0.7, 1.6 of wrong ones.
        (CISPO(ratio_min=0.8, ratio_max=1.2), clip_fractions(5, 5)),
    ],
    ids=["clip", "clip-higher", "dual-clip", "gspo", "cispo", "cispo-both-sides"],
)
def test_logged_values_of_the_recorded_batch(recorded, objective: Objective, expected: dict[str, float]) -> None:
    advantages = AsymGRPO()(recorded.groups)
    assert advantages.tolist() == [pytest.approx(FIRST, rel=1e-6), pytest.approx(SECOND, rel=1e-6)]
    metrics = values(objective.token_losses(recorded.batch(advantages)).metrics)
    # 1.25 = 1/0.8 etc.: the mean of -log ratio over all tokens
    product = 1.25 * 1.6 * 0.75 * 0.9 * 1.5 * 0.5 * 1.1 * 1.3 * 0.5 * 1.22 * 0.7 * 1.6
    assert metrics.pop("actor/ppo_kl") == pytest.approx(-math.log(product) / 14)
    assert metrics == pytest.approx(expected)


def test_loss_of_the_recorded_batch(recorded) -> None:
    losses = ClippedObjective().token_losses(recorded.batch(AsymGRPO()(recorded.groups))).losses
    per_completion = torch.zeros(8, dtype=torch.float64).index_add(0, recorded.sequence_ids, losses).tolist()
    up, down, small, large = 3**0.9, 3**-0.4, 3**-0.9, 3**0.4
    expected = [
        -up * (1 + 1.2 + 1.2),
        down * (0.8 + 0.9),
        down * 1.5,
        down * (0.8 + 1.1),
        -small * 1.2,
        -small * (0.5 + 1.2),
        -small * 1.0,
        large * (0.8 + 1.6),
    ]
    assert per_completion == pytest.approx(expected, rel=1e-6)


def test_means_add_up() -> None:
    values_, mask = torch.tensor([1.0, 2.0, 3.0, 10.0], requires_grad=True), torch.tensor([True, True, False, False])
    assert [part.item() for part in mean_of(values_)] == [16, 4]
    assert [part.item() for part in mean_of(values_, mask)] == [3, 2]
    assert [part.item() for part in mean_of(mask)] == [2, 4]
    assert not mean_of(values_).total.requires_grad
    # In float32 the 1 would be lost.
    assert mean_of(torch.tensor([2.0**24, 1.0])).total.item() == 2**24 + 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClippedObjective(clip_low=0.0), r"clip_low is 0.0: give a number in \(0, 1\]"),
        (lambda: ClippedObjective(clip_low=1.2), r"clip_low is 1.2: give a number in \(0, 1\]"),
        (lambda: ClippedObjective(clip_high=-0.2), "clip_high is -0.2: give a number > 0"),
        (lambda: ClippedObjective(clip_high=math.nan), "clip_high is nan: give a number > 0"),
        (lambda: ClippedObjective(dual_clip=1.0), "dual_clip is 1.0: give a ratio > 1"),
        (lambda: GSPO(clip_low=0.0), r"clip_low is 0.0"),
        (lambda: CISPO(ratio_max=0.9), "ratio_max is 0.9: give an upper bound"),
        (lambda: CISPO(ratio_min=1.1), "ratio_min is 1.1: give a lower bound"),
        (lambda: ClipCov(share=0.0), r"share is 0.0: give a share of the tokens in \(0, 1\]"),
        (lambda: ClipCov(cov_low=5.0), "cov_low is 5.0 and cov_high is 5.0: give an upper bound above"),
        (lambda: ClipCov(clip_high=0.0), "clip_high is 0.0"),
        (lambda: KLCov(share=1.5), "share is 1.5"),
        (lambda: KLCov(kl_coef=-1.0), "kl_coef is -1.0: give the weight of the penalty"),
    ],
)
def test_settings_outside_their_range_are_refused(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (ClippedObjective, {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}),
        (GSPO, {"clip_low": 3e-4, "clip_high": 4e-4}),
        (CISPO, {"ratio_max": 5.0, "ratio_min": 0.0}),
        (ClipCov, {"clip_low": 0.2, "clip_high": 0.2, "share": 2e-4, "cov_low": 1.0, "cov_high": 5.0}),
        (KLCov, {"share": 2e-3, "kl_coef": 1.0}),
    ],
)
def test_settings_default_to_the_published_ones(kind: type[Objective], defaults: dict[str, float | None]) -> None:
    objective = kind()
    assert {name: getattr(objective, name) for name in defaults} == defaults


def test_the_ends_of_a_range_belong_to_it_where_they_make_sense() -> None:
    batch = tokens([0.5, 3.0], [1.0, 1.0])
    # A lower bound of 0 on the ratio, and a weight that is always 1.
    assert gradient(ClippedObjective(clip_low=1.0), tokens([0.1], [-1.0])) == pytest.approx([0.1])
    assert gradient(CISPO(ratio_min=1.0, ratio_max=1.0), batch) == [-1, -1]
    assert (KLCov(share=1.0, kl_coef=0.0).share, ClipCov(share=1.0).share) == (1, 1)


@pytest.mark.parametrize(
    ("class_path", "settings"),
    [
        ("clipped.ClippedObjective", {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 3.0}),
        ("gspo.GSPO", {"clip_low": 1e-3, "clip_high": 2e-3}),
        ("cispo.CISPO", {"ratio_max": 1.2, "ratio_min": 0.8}),
        ("covariance.ClipCov", {"clip_low": 0.1, "clip_high": 0.28, "share": 0.01, "cov_low": 0.5, "cov_high": 2.0}),
        ("covariance.KLCov", {"share": 0.01, "kl_coef": 0.5}),
    ],
)
def test_configuration_by_class_path(class_path: str, settings: dict[str, float]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--objective", type=Objective)
    config = {"class_path": f"asymgrpo_app.algorithm.{class_path}", "init_args": settings}
    objective = parser.instantiate(parser.parse_object({"objective": config})).objective
    assert {name: getattr(objective, name) for name in settings} == settings


class Reinforce(Objective):
    """An objective such as a user writes: -A log pi."""

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        return ObjectiveOutput(-batch.advantages * batch.logprobs, {})


def test_own_objective() -> None:
    batch = tokens([1.0, 1.6], [2.0, -1.0])
    assert gradient(Reinforce(), batch) == [-2, 1]
    assert Reinforce.needs_old_logprobs is False


def test_one_loss_per_token_is_what_an_objective_owes() -> None:
    class MeanLoss(Reinforce):
        def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
            return ObjectiveOutput(super().token_losses(batch).losses.mean(), {})

    batch = tokens([1.0, 1.0], [2.0, -1.0])
    assert checked_losses(Reinforce(), batch).losses.tolist() == [2, -1]
    with pytest.raises(UserError, match=r"losses of MeanLoss have the shape \[\]: return one per token, \[2\]"):
        checked_losses(MeanLoss(), batch)


def test_a_subclass_with_other_losses_does_not_inherit_that_they_are_zero_without_advantage():
    class OtherLosses(ClippedObjective):
        def token_losses(self, batch):
            return super().token_losses(batch)

    class SaysSo(OtherLosses):
        zero_without_advantage = True

    class OtherSettings(SaysSo):
        pass

    class SaysSoOfItsLosses(OtherLosses):
        zero_without_advantage = True

        def token_losses(self, batch):
            return super().token_losses(batch)

    assert OtherLosses.zero_without_advantage is False
    named = (ClippedObjective, GSPO, CISPO, ClipCov, KLCov, OtherLosses, SaysSo, OtherSettings, SaysSoOfItsLosses)
    assert [kind.__name__ for kind in named if kind.zero_without_advantage] == [
        "ClippedObjective",
        "GSPO",
        "CISPO",
        "ClipCov",
        "SaysSo",
        "OtherSettings",
        "SaysSoOfItsLosses",
    ]
