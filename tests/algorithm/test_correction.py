import math

import pytest
import torch
from jsonargparse import ArgumentParser

from asymgrpo_app.algorithm.correction import CorrectionWeights, SamplerCorrection
from asymgrpo_app.errors import UserError

# Completion 0: ratios 0.5 and 8 (product 4, geometric mean 2); completion 1: none; completion 2: 1.5.
RATIOS, IDS = [0.5, 8.0, 1.5], torch.tensor([0, 0, 2])


def weigh(**settings) -> CorrectionWeights:
    sampler = torch.tensor([-1.0, -3.0, -2.0], dtype=torch.float64)
    trainer = (sampler + torch.tensor(RATIOS, dtype=torch.float64).log()).requires_grad_()
    return SamplerCorrection(**settings).weigh(trainer, sampler, IDS, 3)


@pytest.mark.parametrize(
    ("settings", "weights", "raw", "applied", "masked"),
    [
        ({"mode": "off"}, [1, 1, 1], RATIOS, [1, 1, 1], 0),
        ({"mode": "truncate"}, [0.5, 2, 1.5], RATIOS, [0.5, 2, 1.5], 0),
        ({"mode": "mask"}, [0.5, 0, 1.5], RATIOS, [0.5, 0, 1.5], 1 / 3),
        ({"mode": "truncate", "level": "sequence"}, [2, 2, 1.5], [4, 1.5], [2, 1.5], 0),
        ({"mode": "mask", "level": "sequence", "threshold": 3.0}, [0, 0, 1.5], [4, 1.5], [0, 1.5], 0.5),
        (
            {"mode": "mask", "level": "sequence", "threshold": 3.0, "sequence_reduction": "mean"},
            [2, 2, 1.5],
            [2, 1.5],
            [2, 1.5],
            0,
        ),
    ],
)
def test_weights_and_metrics_by_hand(settings, weights, raw, applied, masked) -> None:
    result = weigh(**settings)
    assert result.weights.tolist() == pytest.approx(weights)
    assert not result.weights.requires_grad
    means = {tag: (metric.total / metric.weight).item() for tag, metric in result.means.items()}
    assert means == pytest.approx(
        {
            "rollout_corr/ratio_raw_mean": sum(raw) / len(raw),
            "rollout_corr/ratio_mean": sum(applied) / len(applied),
            "rollout_corr/masked": masked,
            "rollout_corr/kl": -math.log(0.5 * 8 * 1.5) / 3,
        }
    )
    maxima = {tag: value.item() for tag, value in result.maxima.items()}
    assert maxima == pytest.approx({"rollout_corr/ratio_raw_max": max(raw), "rollout_corr/ratio_max": max(applied)})


def test_a_ratio_at_the_threshold_is_still_used() -> None:
    logprobs = torch.zeros(3)
    result = SamplerCorrection(mode="mask", threshold=1.0).weigh(logprobs, logprobs, IDS, 3)
    assert result.weights.tolist() == [1, 1, 1]


def test_by_default_nothing_is_weighed() -> None:
    assert SamplerCorrection() == SamplerCorrection("off", "token", threshold=2.0, sequence_reduction="sum")


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_nothing_to_weigh(level) -> None:
    nothing = torch.empty(0)
    result = SamplerCorrection(mode="mask", level=level).weigh(nothing, nothing, nothing.long(), 0)
    assert result.weights.shape == (0,)
    assert result.maxima["rollout_corr/ratio_raw_max"] == 0


def test_enormous_mismatch_stays_finite() -> None:
    sampler = torch.full((3,), -200.0)
    result = SamplerCorrection(mode="mask", level="sequence").weigh(torch.zeros(3), sampler, IDS, 3)
    assert result.weights.tolist() == [0, 0, 0]
    assert result.maxima["rollout_corr/ratio_raw_max"].item() == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize("threshold", [0.5, math.nan])
def test_threshold_below_one_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=f"threshold of the sampler correction is {threshold}: give a ratio >= 1"):
        SamplerCorrection(threshold=threshold)
    parser = ArgumentParser()
    parser.add_argument("--correction", type=SamplerCorrection, default=SamplerCorrection())
    assert parser.instantiate(parser.parse_object({"correction": {"mode": "mask"}})).correction.mode == "mask"
