"""What every engine that samples from real weights must do; `test_<kind>_engine.py` runs it for one kind of engine.

A subclass names the `tolerance` of log-probabilities and has a fixture `engine` of class scope with the policy's
weights and room for `room` tokens.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asymgrpo_app.policy.loading import linear_weights, named_weights
from asymgrpo_app.prompts import Countdown
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support.paths import POLICY as BASE

END = 1
SETTINGS = SamplingSettings(temperature=1.0, max_tokens=10, stop_token_ids=(END,))


def load_policy():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def changed_policy(part: str):
    """The policy with noise on the weights whose name contains `part`."""
    policy = load_policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if part in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


def logits_of(policy, request: SampleRequest, completion: Completion) -> torch.Tensor:
    """transformers' logits for each token of a completion, [length, V], without padding and cache."""
    tokens = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
    with torch.no_grad():
        return policy(tokens).logits[0, len(request.prompt_token_ids) - 1 : -1]


def gap(logits: torch.Tensor, completion: Completion) -> float:
    """Largest difference between a completion's log-probabilities and those that these logits give."""
    own = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    return float((own - torch.tensor(completion.logprobs)).abs().max())


def gaps(policy, requests, completions, temperature=1.0) -> float:
    """Largest difference between the engine's log-probabilities and transformers'."""
    pairs = zip(requests, completions, strict=True)
    return max(gap(logits_of(policy, request, own) / temperature, own) for request, own in pairs)


def cut(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits [length, V] at the temperature with minus infinity where min_p, top_k and then top_p leave a token out."""
    logits = logits / settings.temperature
    probs = logits.softmax(-1)
    logits = logits.masked_fill(probs < settings.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    order = logits.argsort(-1, descending=True)
    place = order.argsort(-1)
    if settings.top_k:
        logits = logits.masked_fill(place >= settings.top_k, -torch.inf)
    ranked = logits.softmax(-1).gather(-1, order)
    before = (ranked.cumsum(-1) - ranked).gather(-1, place)  # the mass of the likelier tokens
    return logits.masked_fill(before >= settings.top_p, -torch.inf)


class EngineContract:
    """The tests; subclasses are collected."""

    tolerance = 1e-4
    room = 32

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls):
        return load_policy()

    @pytest.fixture(scope="class")
    @classmethod
    def requests(cls):
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        prompts = [tokenizer.encode(prompt.text) for prompt in Countdown("train").fixed(12)]
        return [
            SampleRequest(prompt, seed=1000 * place + number)
            for place, prompt in enumerate(prompts)
            for number in range(4)
        ]

    def test_a_completion_depends_on_its_seed_alone(self, engine, requests):
        tokens = [completion.token_ids for completion in engine.generate(requests, SETTINGS)]
        assert len({tuple(t) for t in tokens}) > 20
        backwards = [completion.token_ids for completion in engine.generate(requests[::-1], SETTINGS)]
        assert backwards[::-1] == tokens
        halves = engine.generate(requests[:20], SETTINGS) + engine.generate(requests[20:], SETTINGS)
        assert [completion.token_ids for completion in halves] == tokens

    def test_end_token_is_part_of_a_completion_and_the_limit_is_truncation(self, engine, requests):
        completions = engine.generate(requests, SETTINGS)
        assert {completion.truncated for completion in completions} >= {False}
        for completion in completions:
            assert len(completion.token_ids) == len(completion.logprobs) <= 10
            assert completion.truncated == (completion.token_ids[-1] != END)
            assert END not in completion.token_ids[:-1]
        short = engine.generate(requests, SamplingSettings(temperature=1.0, max_tokens=3, stop_token_ids=(END,)))
        assert {len(completion.token_ids) for completion in short} == {3}
        assert all(completion.truncated for completion in short)

    def test_only_the_given_stop_tokens_end_a_completion(self, engine, requests):
        """The checkpoint's own end token is none of them here, and another token is."""
        ended = engine.generate(requests, SETTINGS)
        stop = ended[0].token_ids[0]
        settings = SamplingSettings(temperature=1.0, max_tokens=10, stop_token_ids=(stop,))
        for before, completion in zip(ended, engine.generate(requests, settings), strict=True):
            if stop in before.token_ids:
                assert completion.token_ids == before.token_ids[: before.token_ids.index(stop) + 1]
                assert not completion.truncated
            else:
                assert completion.token_ids[: len(before.token_ids)] == before.token_ids
        without = engine.generate(requests, SamplingSettings(temperature=1.0, max_tokens=10, stop_token_ids=()))
        assert {len(completion.token_ids) for completion in without} == {10}
        assert all(completion.truncated for completion in without)

    def test_room_for_prompt_and_completion_is_a_limit(self, engine, requests):
        settings = SamplingSettings(temperature=1.0, max_tokens=40, stop_token_ids=())
        for request, completion in zip(requests, engine.generate(requests, settings), strict=True):
            assert len(request.prompt_token_ids) + len(completion.token_ids) == self.room
            assert completion.truncated

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_logprobs_include_the_temperature(self, engine, policy, requests, temperature):
        settings = SamplingSettings(temperature=temperature, max_tokens=10, stop_token_ids=(END,))
        assert gaps(policy, requests, engine.generate(requests, settings), temperature) < self.tolerance

    def test_greedy_takes_the_likeliest_token_and_reports_plain_logprobs(self, engine, policy, requests):
        settings = SamplingSettings(temperature=0.0, max_tokens=10, stop_token_ids=(END,))
        completions = engine.generate(requests[::4], settings)
        for request, completion in zip(requests[::4], completions, strict=True):
            assert logits_of(policy, request, completion).argmax(-1).tolist() == completion.token_ids
        assert gaps(policy, requests[::4], completions) < self.tolerance

    @pytest.mark.parametrize(
        "cuts", [{"top_p": 0.7}, {"top_k": 3}, {"min_p": 0.2}, {"top_p": 0.8, "top_k": 4, "min_p": 0.05}]
    )
    def test_cut_tokens_are_never_drawn_and_the_rest_is_renormalised(self, engine, policy, requests, cuts):
        settings = SamplingSettings(temperature=0.9, max_tokens=10, stop_token_ids=(END,), **cuts)
        largest, left_out = 0.0, 0
        for request, completion in zip(requests, engine.generate(requests, settings), strict=True):
            kept = cut(logits_of(policy, request, completion), settings)
            left_out += int(kept.isinf().sum())
            largest = max(largest, gap(kept, completion))  # infinite for a token that is cut
        assert left_out > 1000
        assert largest < self.tolerance

    @pytest.mark.parametrize("part", ["embed_tokens", "q_proj", "down_proj", "norm"])
    def test_new_weights_arrive_in_every_part_of_the_model(self, engine, policy, requests, part):
        """The embedding is the trap: a head that is tied to it may multiply with a copy of its own."""
        changed = changed_policy(part)
        try:
            engine.load_weights(named_weights(changed))
            completions = engine.generate(requests, SETTINGS)
            assert gaps(changed, requests, completions) < self.tolerance
            assert gaps(policy, requests, completions) > 1e-2
        finally:
            engine.load_weights(named_weights(policy))

    @pytest.mark.parametrize("part", ["embed_tokens", "q_proj", "norm"])
    def test_the_digest_is_that_of_the_policy_and_of_no_other(self, engine, policy, part):
        for version in (1, 2):
            expected = policy_digest(named_weights(policy), *linear_weights(policy), torch.float32, version)
            assert engine.digest(version) == expected
            changed = changed_policy(part)
            other = policy_digest(named_weights(changed), *linear_weights(changed), torch.float32, version)
            assert other != expected
