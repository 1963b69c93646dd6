"""From the same completions an update has the same gradient, however it is cut: the one promise everything rests on."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from asymgrpo_app import module as module_file
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.covariance import ClipCov
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.update import passes
from asymgrpo_app.update.experience import Experience
from asymgrpo_app.update.loss_config import AdaptiveEntropyConfig, LossConfig
from asymgrpo_app.update.perf import PassedTokens
from tests.support.recorded_training import CASES, LOW_PRECISION, result_of, trained, trained_on_two_processes


@pytest.fixture(scope="module")
def whole():
    """Each case with every update in one micro-batch."""
    return {case: trained(case, 10**6, devices=1) for case in CASES}


def assert_same(a, b):
    """Gradients within 1e-5 in relative norm, and the same metrics."""
    assert a.keys() == b.keys()
    assert len(a) > 10
    for name in a:
        if name.startswith("gradient") or name == "weights":
            assert float(a[name].norm()) > 1e-2
            assert float((a[name] - b[name]).norm() / a[name].norm()) < 1e-5, name
        else:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5, abs=1e-6), name


def test_every_update_has_a_gradient(whole):
    counts = {case: sum(name.startswith("gradient") for name in result) for case, result in whole.items()}
    assert counts == {
        "token": 1,
        "sequence": 1,
        "constant with KL and entropy": 1,
        "everything left out": 0,
        "two updates and passes": 4,
        "three clipped steps": 2,
        "uneven": 4,
        "Clip-Cov": 1,
        "KL-Cov in two updates": 2,
        "mostly solved": 1,
        "all solved with KL and entropy": 1,
        "nothing counts on one rank": 2,
    }


@pytest.mark.parametrize("micro_batch_tokens", [60, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 150))])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_micro_batches(case, micro_batch_tokens, whole):
    assert_same(whole[case], trained(case, micro_batch_tokens, devices=1))


def count_backward_passes(monkeypatch):
    counted = []

    def backward(module, loss, *args, **kwargs):
        counted.append(loss.item())
        LightningModule.manual_backward(module, loss, *args, **kwargs)

    monkeypatch.setattr(AsymGRPOModule, "manual_backward", backward)
    return counted


def test_backward_passes_of_zeros_are_left_out_and_nothing_changes_by_a_bit(monkeypatch):
    counted = count_backward_passes(monkeypatch)
    short = trained("mostly solved", 40, devices=1)
    assert len(counted) == 1  # prompt 3's completions have a micro-batch of their own, the last one
    counted.clear()
    cut = passes.ForwardPasses.cut
    # The same cut, of completions that are not known to have a loss of 0.
    monkeypatch.setattr(
        passes.ForwardPasses, "cut", lambda own, sequences, members, apart=(): cut(own, sequences, members, ZERO)
    )
    monkeypatch.setattr(Experience, "zero_advantage", lambda experience, members: set())
    every = trained("mostly solved", 40, devices=1)
    assert len(counted) == 9
    assert short.keys() == every.keys()
    assert all(torch.equal(torch.as_tensor(short[name]), torch.as_tensor(every[name])) for name in short)


ZERO = {*range(12), *range(16, 32)}
"""In the case "mostly solved" all completions but prompt 3's."""


def test_an_objective_that_does_not_say_so_gets_every_backward_pass(monkeypatch):
    class Objective(ClippedObjective):
        zero_without_advantage = False

    counted = count_backward_passes(monkeypatch)
    settings = CASES["mostly solved"]
    monkeypatch.setitem(CASES, "mostly solved", lambda: settings() | {"objective": Objective(), "score_idle": False})
    trained("mostly solved", 40, devices=1)
    assert len(counted) == 9


def test_a_prompt_with_anything_to_learn_is_not_cut_in_two():
    """As in PSR and NSR, where one side of a group has advantage 0: its prompt would be computed twice."""
    prompts, advantages = [[2, 3], [2, 4], [2, 3], [2, 4]], [0.0, 0.0, 1.0, 0.0]
    nothing = torch.zeros(4)
    experience = Experience(
        sequences=[TokenSequence(prompt, [5]) for prompt in prompts],
        identities=[(place, 0) for place in range(4)],
        advantages=torch.tensor(advantages),
        correct=nothing.bool(),
        valid=~nothing.bool(),
        updates=nothing.long(),
        lengths=nothing.long() + 1,
        rollout_logprobs=nothing,
        old_logprobs=nothing,
        old_entropy=nothing,
        scored=nothing.bool(),
    )
    assert experience.zero_advantage(range(4)) == {1, 3}
    assert experience.zero_advantage([0, 1, 3]) == {0, 1, 3}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_completions_that_teach_nothing_have_micro_batches_of_their_own(attention, monkeypatch):
    case = "mostly solved"
    settings = CASES[case]
    monkeypatch.setitem(CASES, case, lambda: settings() | {"micro_batch_tokens": 10**6, "attention": attention})
    counted = count_backward_passes(monkeypatch)
    cuts, cut = [], passes.ForwardPasses.cut
    monkeypatch.setattr(
        passes.ForwardPasses, "cut", lambda own, *given, **named: cuts.append(cut(own, *given, **named)) or cuts[-1]
    )
    measured = []
    monkeypatch.setattr(module_file, "performance", lambda *given, **named: measured.append(given[2]) or {})
    apart = trained(case, 0, devices=1)
    assert [sorted(batch.members) for batch in cuts[-1]] == [sorted(ZERO), [*range(12, 16)]]
    assert len(counted) == 1
    tokens = [batch.num_tokens for batch in cuts[-1]]
    assert measured == [PassedTokens(forward=sum(tokens), backward=tokens[1])]
    counted.clear()
    monkeypatch.setattr(Experience, "zero_advantage", lambda experience, members: set())
    together = trained(case, 0, devices=1)
    assert [sorted(batch.members) for batch in cuts[-1]] == [[*range(32)]]
    assert len(counted) == 1
    assert_same(together, apart)


@pytest.mark.parametrize("changes", [{}, {"updates_per_step": 2}, {"objective": ClipCov(share=0.1, cov_low=0.0)}])
def test_without_passes_for_what_teaches_nothing_the_update_is_the_same_to_the_last_bit(changes, monkeypatch):
    case = "mostly solved"
    settings = CASES[case]
    monkeypatch.setitem(CASES, case, lambda: settings() | changes)
    scored, logprobs = [], passes.policy_logprobs
    monkeypatch.setattr(
        passes,
        "policy_logprobs",
        lambda *given, **named: scored.append(len(given[1].members)) or logprobs(*given, **named),
    )
    every = trained(case, 40, devices=1)
    of_all = sum(scored)
    scored.clear()
    monkeypatch.setitem(CASES, case, lambda: settings() | changes | {"score_idle": False})
    short = trained(case, 40, devices=1)
    if "objective" in changes:  # its statistics are those of all tokens
        assert sum(scored) == of_all
    else:
        # Prompt 3's four completions; in the update that it is not part of, one for the sake of a gradient.
        assert (of_all, sum(scored)) == ((48, 5) if "updates_per_step" in changes else (32, 4))
    for name in ("weights", *(name for name in every if name.startswith("gradient"))):
        assert torch.equal(short[name], every[name]), name
    assert short["actor/grad_norm"] == every["actor/grad_norm"] > 0
    assert short["actor/loss_divisor"] == every["actor/loss_divisor"]


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(kl_coef=0.1),
        LossConfig(entropy_coef=0.01),
        LossConfig(adaptive_entropy=AdaptiveEntropyConfig(coef=0.005, target=10.0)),
    ],
    ids=["KL", "entropy", "adaptive entropy"],
)
def test_each_term_beside_the_objective_gives_solved_groups_a_gradient(loss, monkeypatch):
    counted = count_backward_passes(monkeypatch)
    settings = {"solved": set(range(8)), "left_out": set(), "loss": loss, "score_idle": False}
    monkeypatch.setitem(CASES, "all solved", lambda: dict(settings))
    trained("all solved", 40, devices=1)
    assert len(counted) == 9


def test_kl_and_entropy_give_solved_groups_a_gradient(monkeypatch):
    counted = count_backward_passes(monkeypatch)
    case = "all solved with KL and entropy"
    trained(case, 40, devices=1)
    assert len(counted) == 9
    counted.clear()
    # At a coefficient of 0 nothing is left to learn from.
    plain = {"solved": set(range(8)), "left_out": set(), "lr": 1.0}
    monkeypatch.setitem(CASES, "all solved", lambda: dict(plain))
    result = trained("all solved", 40, devices=1)
    assert len(counted) == 1
    assert float(result["gradient 0"].abs().max()) == float(result["actor/grad_norm"]) == 0


# Where ranks differ in what they have: nothing that counts, nothing that teaches, fewer passes, several updates.
UNLIKE = ("uneven", "mostly solved", "nothing counts on one rank", "three clipped steps")
IN_BFLOAT16 = "constant with KL and entropy"


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """The quick ones on two processes, which are started once."""
    folder = tmp_path_factory.mktemp("both")
    trained_on_two_processes(
        folder, ddp=[*UNLIKE, "KL-Cov in two updates"], fsdp2=[*UNLIKE, LOW_PRECISION + IN_BFLOAT16]
    )
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("case", UNLIKE)
def test_two_processes_that_have_unlike_parts(case, strategy, both, whole):
    assert_same(whole[case], result_of(both, strategy, case))


def test_statistics_over_the_tokens_of_two_processes(both, whole):
    assert_same(whole["KL-Cov in two updates"], result_of(both, "ddp", "KL-Cov in two updates"))


def assert_computed_in_bfloat16(found, exact):
    """With weights in float32, and as one process does it."""
    expected = trained(IN_BFLOAT16, 200, devices=1, precision="bf16-mixed")
    assert found["weights"].dtype == torch.float32
    distance = (found["gradient 0"] - expected["gradient 0"]).norm() / expected["gradient 0"].norm()
    assert float(distance) < 0.02
    assert float((found["gradient 0"] - exact["gradient 0"]).norm() / exact["gradient 0"].norm()) > 1e-3


def test_sharded_weights_compute_in_bfloat16_and_stay_in_float32(both, whole):
    assert_computed_in_bfloat16(result_of(both, "fsdp2", LOW_PRECISION + IN_BFLOAT16), whole[IN_BFLOAT16])


@pytest.mark.long
def test_all_cases_on_two_processes(whole, tmp_path):
    trained_on_two_processes(tmp_path, ddp=[*CASES, LOW_PRECISION + IN_BFLOAT16], fsdp2=list(CASES))
    for case in CASES:
        for strategy in ("ddp", "fsdp2"):
            assert_same(whole[case], result_of(tmp_path, strategy, case))
    assert_computed_in_bfloat16(result_of(tmp_path, "ddp", LOW_PRECISION + IN_BFLOAT16), whole[IN_BFLOAT16])
