import math

import pytest
import torch
from jsonargparse import ArgumentParser

from asymgrpo_app.algorithm.correction import SamplerCorrection
from asymgrpo_app.errors import UserError

# Completion 0: ratios 0.5 and 8 (product 4, geometric mean 2); completion 1: 1.5.
RATIOS, IDS = [0.5, 8.0, 1.5], torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("settings", "weights", "ratios", "applied"),
    [
        ({"mode": "truncate"}, [0.5, 2, 1.5], RATIOS, [0.5, 2, 1.5]),
        ({"mode": "mask"}, [0.5, 0, 1.5], RATIOS, [0.5, 0, 1.5]),
        ({"mode": "truncate", "level": "sequence"}, [2, 2, 1.5], [4, 1.5], [2, 1.5]),
        ({"mode": "mask", "level": "sequence", "threshold": 3.0}, [0, 0, 1.5], [4, 1.5], [0, 1.5]),
        (
            {"mode": "mask", "level": "sequence", "threshold": 3.0, "sequence_reduction": "mean"},
            [2, 2, 1.5],
            [2, 1.5],
            [2, 1.5],
        ),
    ],
)
def test_weights_and_ratios_by_hand(settings, weights, ratios, applied) -> None:
    sampler = torch.tensor([-1.0, -3.0, -2.0], dtype=torch.float64)
    trainer = (sampler + torch.tensor(RATIOS, dtype=torch.float64).log()).requires_grad_()
    found = SamplerCorrection(**settings).weigh(trainer, sampler, IDS, 2)
    assert not any(values.requires_grad for values in found)
    for values, expected in zip(found, (weights, ratios, applied), strict=True):
        assert values.tolist() == pytest.approx(expected)


def test_a_ratio_at_the_threshold_is_still_used() -> None:
    logprobs = torch.zeros(3)
    weights, _, _ = SamplerCorrection(mode="mask", threshold=1.0).weigh(logprobs, logprobs, IDS, 2)
    assert weights.tolist() == [1, 1, 1]


def test_by_default_nothing_is_weighed() -> None:
    assert SamplerCorrection() == SamplerCorrection("off", "token", threshold=2.0, sequence_reduction="sum")


def test_enormous_mismatch_stays_finite() -> None:
    sampler = torch.full((3,), -200.0)
    weights, ratios, _ = SamplerCorrection(mode="mask", level="sequence").weigh(torch.zeros(3), sampler, IDS, 2)
    assert weights.tolist() == [0, 0, 0]
    assert ratios.max().item() == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize("threshold", [0.5, math.nan])
def test_threshold_below_one_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=f"threshold of the sampler correction is {threshold}: give a ratio >= 1"):
        SamplerCorrection(threshold=threshold)
    parser = ArgumentParser()
    parser.add_argument("--correction", type=SamplerCorrection, default=SamplerCorrection())
    assert parser.instantiate(parser.parse_object({"correction": {"mode": "mask"}})).correction.mode == "mask"
