"""Packed rows: what they hold, and that a model gives the same on them as on padded batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from asymgrpo_app.microbatch.microbatch import TokenSequence, build
from asymgrpo_app.microbatch.packing import cut_packed, pack
from asymgrpo_app.policy import packed_attention
from asymgrpo_app.policy.loading import load_policy, packs, token_logprobs
from asymgrpo_app.policy.packed_attention import can_pack
from tests.support.small_models import families, relative_error, scores, small_config

ARCHITECTURES = (
    "ernie4_5",
    "gemma",
    "glm4",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)
packed_attention.register()


def test_the_row_holds_each_prompt_once_and_no_completions_last_token():
    batch = pack([TokenSequence([5, 6], [7, 8, 9]), TokenSequence([5, 6], [4]), TokenSequence([3], [2, 1])], [0, 1, 2])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 3, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.targets.tolist() == [7, 8, 9, 4, 2, 1]
    assert batch.predictors.tolist() == [1, 2, 3, 1, 4, 5]  # the prompt's last token predicts two first tokens
    assert batch.sequence_ids.tolist() == [0, 0, 0, 1, 2, 2]
    assert [bucket.tolist() for bucket in batch.attention.buckets] == [[[0, 1, 2, 3]], [[0, 1], [4, 5]]]
    flat = torch.cat([bucket.flatten() for bucket in batch.attention.buckets])
    assert flat[batch.attention.owners].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(flat[batch.attention.shared], batch.attention.shared_tokens)
    assert batch.attention.shared_tokens.tolist() == [0, 1]
    assert batch.num_tokens == 6
    assert build([TokenSequence([5, 6], [7, 8, 9]), TokenSequence([3], [2, 1])], [0, 1]).num_tokens == 5 + 3


lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), min_size=1, max_size=40)


@given(lengths, st.integers(1, 120))
def test_cut_keeps_every_sequence_once_and_rows_within_the_budget(shapes, budget):
    sequences = [TokenSequence([prompt] * (3 * prompt + 1), [9] * length) for prompt, length in shapes]
    groups = cut_packed(sequences, budget)
    assert sorted(place for group in groups for place in group) == list(range(len(sequences)))
    for group in groups:
        assert pack(sequences, group).input_ids.numel() <= budget or len(group) == 1


def test_a_group_that_fits_is_computed_with_one_prompt():
    sequences = [TokenSequence([1] * 50, [2] * 11) for _ in range(8)]
    (group,) = cut_packed(sequences, 130)
    assert pack(sequences, group).input_ids.shape == (1, 50 + 8 * 10)
    assert [len(group) for group in cut_packed(sequences, 129)] == [7, 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_padded(architecture):
    config = small_config(architecture)
    assert can_pack(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=packed_attention.NAME).train()
    sequences = families(1)
    (members,) = cut_packed(sequences, 10**6)
    packed, padded = (scores(model, form(sequences, members)) for form in (pack, build))
    for own, expected in zip(packed, padded, strict=True):
        assert relative_error(own, expected) < 3e-6
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    plain.load_state_dict(model.state_dict())
    for own, expected in zip(packed, scores(plain, build(sequences, members)), strict=True):
        assert relative_error(own, expected) < 3e-6


def test_packed_equals_padded_with_gradient_checkpointing():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("llama"), attn_implementation=packed_attention.NAME).train()
    sequences = families(2)
    (members,) = cut_packed(sequences, 10**6)
    expected = scores(model, pack(sequences, members))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for own, wanted in zip(scores(model, pack(sequences, members)), expected, strict=True):
        assert torch.equal(own, wanted)


def test_under_autocast_packed_is_as_close_to_float32_as_padded():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("qwen2"), attn_implementation=packed_attention.NAME).train()
    sequences = families(3, prompts=2, group=16)
    (members,) = cut_packed(sequences, 10**6)
    exact = scores(model, build(sequences, members))
    with torch.autocast("cpu", torch.bfloat16):
        packed, padded = (scores(model, form(sequences, members)) for form in (pack, build))
    for own, other, wanted in zip(packed, padded, exact, strict=True):
        assert relative_error(own, wanted) < 1.2 * relative_error(other, wanted)
        assert relative_error(own, wanted) < 0.02


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("gemma2", {}),
        ("gpt2", {}),
    ],
)
def test_attention_that_is_not_the_plain_causal_one_is_not_packed(architecture, changes):
    config = small_config(architecture) if architecture != "gpt2" else AutoConfig.for_model("gpt2")
    for name, value in changes.items():
        setattr(config, name, value)
    assert not can_pack(config)


def test_only_the_attention_that_can_is_asked_for(request):
    path = str(request.config.rootpath / "data/countdown_base")
    assert packs(load_policy(path, "sdpa"))
    assert not packs(load_policy(path, "eager"))


def test_gradients_are_the_same_each_time():
    """Several completions read the state of their prompt's last token: its gradient is a sum, in one order."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("llama"), attn_implementation=packed_attention.NAME)
    width = model.config.hidden_size
    sequences = [TokenSequence([2, 3, 4], [5 + place % 7] * 12) for place in range(2 * 2**15 // (11 * width))]
    batch = pack(sequences, list(range(len(sequences))))
    assert batch.input_ids.numel() * width > 2**15  # above it torch works on a CPU with several threads
    gradients = []
    for _ in range(20):
        model.zero_grad()
        token_logprobs(model, batch, temperature=1.0)[0].sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for later in gradients[1:]:
        assert all(torch.equal(later[name], first) for name, first in gradients[0].items())
