"""The engine that is transformers' `generate`: what every engine does, and its draws, types and batches."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.policy.loading import linear_weights, named_weights
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.transformers_engine import TransformersEngine, TransformersEngineConfig
from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings
from asymgrpo_app.seeds import derive_seed
from tests.support.engine_contract import BASE, END, SETTINGS, EngineContract, gaps, load_policy

PROMPT = [3, 4, 5, 6]


def ready(policy, model=BASE, dtype="float32", batch_tokens=32768, max_model_len=32) -> TransformersEngine:
    engine = TransformersEngine(model, TransformersEngineConfig(batch_tokens=batch_tokens), dtype, max_model_len)
    engine.load_weights(named_weights(policy))
    return engine


class TestTransformersEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        engine = ready(policy)
        yield engine
        engine.close()
        engine.close()  # a second time does no harm
        assert {weight.device.type for _, weight in named_weights(engine._model)} == {"meta"}  # its memory is free

    @pytest.mark.parametrize(("batch_tokens", "number"), [(1, 48), (100, 10), (32768, 1)])
    def test_small_batches_draw_the_same_completions(self, engine, policy, requests, batch_tokens, number, monkeypatch):
        calls = []
        real = GenerationMixin.generate
        monkeypatch.setattr(
            GenerationMixin, "generate", lambda own, ids, **more: calls.append(ids.shape) or real(own, ids, **more)
        )
        cut = ready(policy, batch_tokens=batch_tokens).generate(requests, SETTINGS)
        assert len(calls) >= number
        assert all(rows == 1 or rows * (width + 10) <= batch_tokens for rows, width in calls)
        for one, other in zip(cut, engine.generate(requests, SETTINGS), strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)

    def test_a_lower_limit_gives_the_beginning_of_the_same_completion(self, engine, requests):
        longer = engine.generate(requests, SETTINGS)
        shorter = engine.generate(requests, SamplingSettings(temperature=1.0, max_tokens=4, stop_token_ids=(END,)))
        assert [own.token_ids for own in shorter] == [own.token_ids[:4] for own in longer]

    def test_all_bits_of_a_seed_count(self, engine):
        seeds = [5, 5 + 2**32, 5 + 2**62]
        drawn = engine.generate([SampleRequest(PROMPT, seed) for seed in seeds], SETTINGS)
        assert len({tuple(own.logprobs) for own in drawn}) == 3

    def test_sampling_leaves_the_random_generators_of_the_process_alone(self, policy):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        ready(policy).generate([SampleRequest(PROMPT, 1)], SETTINGS)
        assert torch.equal(torch.rand(3), expected)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; tokens that are expected less than 5 times count as one."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare].double(), counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    assert observed[~kept].sum() == 0
    return float(((observed - expected) ** 2 / expected)[kept].sum()), int(kept.sum()) - 1


@pytest.mark.parametrize(
    ("temperature", "cuts"),
    [
        (1.0, {}),
        (3.0, {"top_p": 0.8}),
        *(pytest.param(3.0, cuts, marks=pytest.mark.long) for cuts in ({}, {"top_k": 5})),
    ],
)
def test_tokens_come_with_their_probabilities(temperature, cuts):
    """8,000 seeds against the exact distribution: the statistic stays below its mean and 5 standard deviations."""
    policy = load_policy()
    settings = SamplingSettings(temperature, 1, (END,), **cuts)
    requests = [SampleRequest(PROMPT, derive_seed("chi", number)) for number in range(8_000)]
    drawn = ready(policy).generate(requests, settings)
    counts = torch.bincount(torch.tensor([own.token_ids[0] for own in drawn]), minlength=policy.config.vocab_size)
    with torch.no_grad():
        probabilities = (policy(torch.tensor([PROMPT])).logits[0, -1].double() / temperature).softmax(-1)
    if "top_k" in cuts:
        probabilities[probabilities.argsort(descending=True)[5:]] = 0
    if "top_p" in cuts:
        ranked, order = probabilities.sort(descending=True)
        probabilities[order[ranked.cumsum(0) - ranked >= 0.8]] = 0
    statistic, freedom = chi_square(counts, probabilities / probabilities.sum())
    assert freedom >= 3
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_16_bit_types_round_the_weights_and_stay_near(dtype, tolerance):
    policy = load_policy()
    engine = ready(policy, dtype=dtype)
    expected = policy_digest(named_weights(policy), *linear_weights(policy), getattr(torch, dtype), 7)
    assert engine.digest(7) == expected
    assert engine.digest(8) != expected
    requests = [SampleRequest(PROMPT[: 1 + number % 4], number) for number in range(64)]
    found = gaps(policy, requests, engine.generate(requests, SETTINGS))
    assert 1e-6 < found < tolerance


@pytest.mark.parametrize("tied", [True, False])
def test_another_architecture_with_a_head_of_its_own_or_a_tied_one(tied, tmp_path):
    """A folder without weights is enough; its sampling defaults, wherever they are written, are not followed."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    defaults = {"do_sample": True, "top_k": 1, "temperature": 0.1, "repetition_penalty": 3.0, "max_length": 5}
    GenerationConfig(**defaults).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | defaults))  # as older checkpoints have them
    torch.manual_seed(3)
    policy = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(5)  # far from uniform
    engine = ready(policy, model=str(tmp_path), max_model_len=64)
    linear, head = linear_weights(policy)
    assert (head is not None) == tied
    assert engine.digest(1) == policy_digest(named_weights(policy), linear, head, torch.float32, 1)
    requests = [SampleRequest([7, 8, 9][: 1 + number % 3], number) for number in range(60)]
    completions = engine.generate(requests, SamplingSettings(1.0, 30, ()))
    assert {len(own.token_ids) for own in completions} == {30}
    assert gaps(policy, requests, completions) < 1e-4
    assert len({tuple(own.token_ids) for own in completions}) > 50


def test_weights_of_another_architecture_are_refused():
    policy, engine = load_policy(), ready(load_policy())
    named = dict(named_weights(policy))
    with pytest.raises(RunError, match=r"sent no weight model\.norm\.weight"):
        engine.load_weights((name, own) for name, own in named.items() if name != "model.norm.weight")
    with pytest.raises(RunError, match=r"has no weight lm_head\.weight \[17, 128\], which the policy sent"):
        engine.load_weights([*named.items(), ("lm_head.weight", torch.zeros(17, 128))])
    with pytest.raises(RunError, match=r"has no weight model\.norm\.weight \[1\], which the policy sent"):
        engine.load_weights((named | {"model.norm.weight": torch.ones(1)}).items())


def test_diverged_weights_and_too_little_memory_stop_with_a_sentence(monkeypatch):
    policy = load_policy()
    engine = ready(policy)
    engine.load_weights((name, own * math.nan) for name, own in named_weights(policy))
    with pytest.raises(RunError, match="not finite numbers: its weights have diverged"):
        engine.generate([SampleRequest(PROMPT, 0)], SETTINGS)

    def no_memory(*arguments, **more):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GenerationMixin, "generate", no_memory)
    with pytest.raises(RunError, match=r"no memory for 2 .* rollout\.transformers\.batch_tokens, 32768 now"):
        engine.generate([SampleRequest(PROMPT, 0)] * 2, SETTINGS)


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"rollout\.transformers\.batch_tokens must be at least 1, got 0"):
        TransformersEngineConfig(batch_tokens=0)


def test_it_says_that_it_is_slow(capsys):
    TransformersEngine(BASE, TransformersEngineConfig(), "float32", 32)
    assert capsys.readouterr().out == (
        "Sampling with transformers' generate, which is slow: for real runs install vLLM.\n"
    )
