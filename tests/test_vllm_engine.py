"""The in-process vLLM engine: seeds, limits, and weights that really arrive."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asymgrpo_app.policy import named_weights
from asymgrpo_app.prompts import Countdown
from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.conftest import REPOSITORY

BASE = str(REPOSITORY / "data/countdown_base")
SETTINGS = SamplingSettings(temperature=1.0, max_tokens=10, stop_token_ids=(1,))


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(policy):
    engine = VLLMEngine(BASE, VLLMEngineConfig(max_num_seqs=64), "float32", max_model_len=32)
    engine.load_weights(named_weights(policy))
    yield engine
    engine.close()
    engine.close()  # a second time does no harm


@pytest.fixture(scope="module")
def requests():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = [tokenizer.encode(prompt.text) for prompt in Countdown("train").fixed(12)]
    return [
        SampleRequest(prompt, seed=1000 * place + number) for place, prompt in enumerate(prompts) for number in range(4)
    ]


def gaps(policy, requests, completions, temperature=1.0) -> float:
    """Largest difference between the engine's log-probabilities and transformers'."""
    largest = 0.0
    for request, completion in zip(requests, completions, strict=True):
        tokens = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = policy(tokens).logits[0, len(request.prompt_token_ids) - 1 : -1] / temperature
        own = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        largest = max(largest, float((own - torch.tensor(completion.logprobs)).abs().max()))
    return largest


def test_a_completion_depends_on_its_seed_alone(engine, requests):
    tokens = [completion.token_ids for completion in engine.generate(requests, SETTINGS)]
    assert len({tuple(t) for t in tokens}) > 20
    backwards = [completion.token_ids for completion in engine.generate(requests[::-1], SETTINGS)]
    assert backwards[::-1] == tokens
    halves = engine.generate(requests[:20], SETTINGS) + engine.generate(requests[20:], SETTINGS)
    assert [completion.token_ids for completion in halves] == tokens


def test_end_token_is_part_of_a_completion_and_the_limit_is_truncation(engine, requests):
    for completion in engine.generate(requests, SETTINGS):
        assert len(completion.token_ids) == len(completion.logprobs) <= 10
        assert completion.truncated == (completion.token_ids[-1] != 1)
        assert 1 not in completion.token_ids[:-1]
    short = engine.generate(requests, SamplingSettings(temperature=1.0, max_tokens=3, stop_token_ids=(1,)))
    assert {len(completion.token_ids) for completion in short} == {3}
    assert all(completion.truncated for completion in short)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_include_the_temperature(engine, policy, requests, temperature):
    settings = SamplingSettings(temperature=temperature, max_tokens=10, stop_token_ids=(1,))
    assert gaps(policy, requests, engine.generate(requests, settings), temperature) < 1e-4


def test_greedy_takes_the_likeliest_token(engine, policy, requests):
    settings = SamplingSettings(temperature=0.0, max_tokens=10, stop_token_ids=(1,))
    for request, completion in zip(requests[::4], engine.generate(requests[::4], settings), strict=True):
        tokens = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = policy(tokens).logits[0, len(request.prompt_token_ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.token_ids


@pytest.mark.parametrize("part", ["embed_tokens", "q_proj", "down_proj", "norm"])
def test_new_weights_arrive_in_every_part_of_the_model(engine, policy, requests, part):
    """The embedding is the trap: on CPU the head that is tied to it multiplies with a repacked copy."""
    changed = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if part in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    try:
        engine.load_weights(named_weights(changed))
        completions = engine.generate(requests, SETTINGS)
        assert gaps(changed, requests, completions) < 1e-4
        assert gaps(policy, requests, completions) > 1e-2
    finally:
        engine.load_weights(named_weights(policy))
