import pytest
import torch

from asymgrpo_app.algorithm.entropy import AdaptiveEntropy, entropy_advantage
from asymgrpo_app.errors import UserError


def test_adaptive_coefficient_follows_the_target() -> None:
    controller = AdaptiveEntropy(coef=0.002, target=0.2, delta=0.001, max_coef=0.004)
    assert controller.coefficient == 0  # nothing observed yet
    applied = []
    for entropy in [0.1, 0.1, 0.1, 0.3, 0.19, 0.2, 0.5, 0.5, 0.5, 0.5, 0.1]:
        controller.observe(entropy)
        applied.append(controller.coefficient)
    # Internally .003 .004 .004 .003 .004 .003 .002 .001 0 0 .001; applied only below the target.
    assert applied == pytest.approx([0.003, 0.004, 0.004, 0, 0.004, 0, 0, 0, 0, 0, 0.001])


def test_the_coefficient_may_start_at_its_bounds() -> None:
    for coef in (0.0, 0.004):
        controller = AdaptiveEntropy(coef=coef, max_coef=0.004)
        assert controller.state_dict() == {"coef": coef, "below_target": False}


def test_adaptive_coefficient_with_the_published_settings() -> None:
    controller = AdaptiveEntropy()
    for _ in range(10):
        controller.observe(0.1)
    assert controller.coefficient == pytest.approx(0.001)
    for _ in range(100):
        controller.observe(0.1)
    assert controller.coefficient == pytest.approx(0.005)


def test_adaptive_coefficient_goes_on_after_a_resume() -> None:
    first, second = AdaptiveEntropy(), AdaptiveEntropy()
    for entropy in [0.1, 0.1, 0.3, 0.1]:
        first.observe(entropy)
    state = first.state_dict()
    assert state == {"coef": pytest.approx(2e-4), "below_target": True}
    second.load_state_dict(state)
    assert second.coefficient == first.coefficient
    for controller in (first, second):
        controller.observe(0.15)
    assert second.coefficient == first.coefficient == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 0.0}, r"target of the adaptive entropy bonus is 0.0"),
        ({"delta": -1.0}, r"delta of the adaptive entropy bonus is -1.0"),
        ({"max_coef": float("nan")}, "max_coef of the adaptive entropy bonus is nan"),
        ({"coef": 0.006}, r"coef of the adaptive entropy bonus is 0.006: give a number from 0 to max_coef, 0.005"),
    ],
)
def test_adaptive_settings_outside_their_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaptiveEntropy(**settings)


def test_entropy_must_be_finite() -> None:
    with pytest.raises(ValueError, match="entropy must be finite, got nan"):
        AdaptiveEntropy().observe(float("nan"))


def test_entropy_advantage_by_hand() -> None:
    advantages = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.0])
    entropy = torch.tensor([1.0, 4.0, 0.5, 4.0, 4.0], requires_grad=True)
    shaped = entropy_advantage(advantages, entropy)
    # min(0.4 H, |A| / 2): 0.4 | 1 (of 1.6) | 0.2 | 0.5 (of 1.6) | 0
    assert shaped.tolist() == pytest.approx([2.4, 3.0, -0.8, -0.5, 0.0])
    assert not shaped.requires_grad
    assert entropy_advantage(advantages, entropy, alpha=1.0, kappa=4.0)[0].item() == pytest.approx(2.5)


@pytest.mark.parametrize(("alpha", "kappa"), [(0.0, 2.0), (0.4, 1.0)])
def test_entropy_advantage_refuses_to_change_signs(alpha: float, kappa: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be > 0 and kappa > 1, got {alpha} and {kappa}"):
        entropy_advantage(torch.ones(1), torch.ones(1), alpha=alpha, kappa=kappa)


def test_entropy_advantage_keeps_the_dtype_of_advantages() -> None:
    shaped = entropy_advantage(torch.tensor([2.0]), torch.tensor([1.0], dtype=torch.float64))
    assert shaped.dtype == torch.float32
