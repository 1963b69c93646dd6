"""The digest of weights: what changes it, and what does not."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from asymgrpo_app.checks.activation_memory import LiveBytes
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.metrics import StepMetrics, Stopwatch
from asymgrpo_app.rollout.canary import ONE_TO_ONE, CanaryConfig, check_digest, check_logprobs
from asymgrpo_app.rollout.digest import COLUMNS, WeightDigest, bit_sum, columns, policy_digest
from asymgrpo_app.rollout.policy_sampler import PolicySampler
from tests.support.small_models import small_config

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
def test_order_and_padding_change_nothing_and_one_bit_does(dtype):
    values = torch.randn(37, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    shuffled = values.flatten()[torch.randperm(37 * 11)]
    padded = torch.cat([values, torch.zeros(3, 11, dtype=dtype)])
    assert bit_sum(values) == bit_sum(shuffled) == bit_sum(padded)
    changed = values.clone()
    bits = changed.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[5, 5] ^= 1
    assert bit_sum(changed) != bit_sum(values)


def test_two_changes_that_make_up_for_each_other_are_seen():
    values = torch.ones(4)
    changed = values.clone()
    bits = changed.view(torch.int32)
    bits[0] += 1
    bits[1] -= 1
    assert int(bits.to(torch.int64).sum()) == int(values.view(torch.int32).to(torch.int64).sum())
    assert bit_sum(changed) != bit_sum(values)


def test_parts_add_up_to_the_whole():
    values = torch.randn(6, 4)
    whole = WeightDigest(bit_sum(values), 0)
    parts = [WeightDigest(bit_sum(part), 0) for part in values.split(2)]
    assert parts[0] + parts[1] + parts[2] == whole


def test_columns_differ_from_version_to_version_and_cover_a_layer():
    for inputs in (1, 5, 128):
        chosen = [columns(version, inputs) for version in range(400)]
        assert all(len(own) == len(set(own)) <= COLUMNS for own in chosen)
        assert {column for own in chosen for column in own} == set(range(inputs))
    assert columns(1, 128) != columns(2, 128)
    assert len(columns(1, 1536)) == COLUMNS


def test_a_tied_head_counts_as_a_layer_of_its_own():
    embedding, layer = torch.randn(9, 16), torch.randn(8, 16)
    named = {"embed.weight": embedding, "layer.weight": layer}
    tied = policy_digest(named.items(), ["layer.weight"], "embed.weight", torch.float32, version=3)
    chosen = columns(3, 16)
    assert tied.other == bit_sum(embedding)
    both = WeightDigest(bit_sum(layer[:, chosen]), 0) + WeightDigest(bit_sum(embedding[:, chosen]), 0)
    assert tied.linear == both.linear


def test_both_digests_stand_in_the_message():
    one, other = WeightDigest(1, 2), WeightDigest(3, -4)
    check_digest(one, WeightDigest(1, 2), step=7)
    with pytest.raises(RunError) as stopped:
        check_digest(one, other, step=7)
    assert str(stopped.value).startswith(
        "after 7 RL steps the sampler does not hold the policy's weights: their digest is "
        "0000000000000001-0000000000000002, the sampler's 0000000000000003-fffffffffffffffc. Likely causes: "
    )


def test_log_probabilities_at_the_limit_pass_and_beyond_it_stop():
    ours, theirs = [torch.tensor([-1.0, -2.0])], [torch.tensor([-1.5, -2.0])]
    assert check_logprobs(ours, theirs, limit=0.25, step=4) == 0.25
    with pytest.raises(RunError) as stopped:
        check_logprobs(ours, theirs, limit=0.2, step=4)
    assert str(stopped.value).startswith(
        "after 4 RL steps the sampler's log-probabilities are not the policy's: the mean over 2 tokens is -1.7500 in "
        "the sampler and -1.5000 in the trainer, and they differ by 0.25 a token, more than the limit 0.2 "
        "(rollout.canary.max_logprob_diff). Likely causes: "
    )
    with pytest.raises(RunError):
        check_logprobs([torch.tensor([float("nan")])], [torch.tensor([-1.0])], limit=1.0, step=4)


def test_limits_follow_the_samplers_type():
    assert [CanaryConfig().limit(dtype) for dtype in ("float32", "bfloat16")] == [1e-3, 0.2]
    assert CanaryConfig(max_logprob_diff=0.5).limit("float32") == 0.5
    with pytest.raises(UserError, match=r"rollout\.canary\.completions must be 0 or more, got -1"):
        CanaryConfig(completions=-1)
    with pytest.raises(UserError, match=r"rollout\.canary\.max_logprob_diff must be > 0 or null, got 0"):
        CanaryConfig(max_logprob_diff=0.0)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_digest_of_a_large_weight_takes_little_memory(dtype):
    torch.manual_seed(0)
    values = torch.randn(5 * 2**21 + 3).to(dtype)
    bits = values.view(torch.int32 if dtype == torch.float32 else torch.int16).to(torch.int64)
    expected = (int(bits.sum()) + int((bits * bits).sum())) % 2**64
    with LiveBytes() as memory:
        assert bit_sum(values) == expected
    # Of 2**22 elements: their bits as integers, squared in place, and scalars.
    assert 8 * 2**22 <= memory.peak < 8 * 2**22 + 1000
    with LiveBytes() as memory:
        assert bit_sum(values, torch.bfloat16) == bit_sum(values.to(torch.bfloat16))
    assert memory.peak < 10 * 2**22 + 2 * values.numel() + 1000


class OtherWeights:
    """An engine whose digest is another's."""

    keeps_weights = True

    def load_weights(self, weights):
        list(weights)

    def digest(self, version):
        return WeightDigest(1, 2)


@pytest.mark.parametrize("kind", sorted(ONE_TO_ONE))
def test_a_first_digest_that_differs_stops_where_weights_are_held_one_to_one(kind, capsys):
    policy = AutoModelForCausalLM.from_config(small_config(kind))
    assert policy.config.model_type == kind
    module = SimpleNamespace(policy=policy, weight_version=0, completed_steps=0)
    sampler = PolicySampler(lambda _: (OtherWeights(), "float32"), CanaryConfig(), max_restarts=0)
    with pytest.raises(RunError, match="after 0 RL steps the sampler does not hold the policy's weights"):
        sampler.synchronize(module, Stopwatch(StepMetrics()))
    assert capsys.readouterr().out == ""


def test_elsewhere_log_probabilities_alone_tell(capsys):
    policy = AutoModelForCausalLM.from_config(small_config("llama"))
    policy.config.model_type = "of_experts"
    module = SimpleNamespace(policy=policy, weight_version=0, completed_steps=0)
    sampler = PolicySampler(lambda _: (OtherWeights(), "float32"), CanaryConfig(), max_restarts=0)
    for version in (0, 1):
        module.weight_version = version
        sampler.synchronize(module, Stopwatch(StepMetrics()))
    said = capsys.readouterr().out
    assert said.count("cannot be compared one to one with the sampler's: rollout.canary checks log-probabilities") == 1
