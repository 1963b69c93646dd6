"""The in-process vLLM engine: seeds, limits, and weights that really arrive."""

import pytest
import torch

from asymgrpo_app.policy.loading import named_weights
from asymgrpo_app.rollout import vllm_engine
from asymgrpo_app.rollout.types import SampleRequest
from asymgrpo_app.rollout.vllm_engine import VLLMEngineConfig, engine_arguments
from tests.support.engine_contract import BASE, SETTINGS, EngineContract, gaps, load_policy
from tests.support.shared_engine import ROOM, SHARED


class TestVLLMEngine(EngineContract):
    room = ROOM

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        engine = SHARED.get()
        engine.load_weights(named_weights(policy))
        return engine


def test_a_group_computes_the_whole_blocks_of_its_prompt_once(engine, monkeypatch):
    """By vLLM's own count, and each completion still has the log-probabilities that transformers gives."""
    from vllm import LLM

    policy = load_policy()
    engine.load_weights(named_weights(policy))
    generate, cached = LLM.generate, []

    def counted(*arguments, **named):
        outputs = generate(*arguments, **named)
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(LLM, "generate", counted)
    prompts = [[2 + (3 * place + first) % 14 for place in range(40)] for first in (0, 1)]
    requests = [SampleRequest(prompt, seed) for prompt in prompts for seed in range(4)]
    completions = engine.generate(requests, SETTINGS)
    assert sorted(cached) == [0, 0] + [32] * 6
    assert gaps(policy, requests, completions) < 1e-4
    assert engine.generate(requests[::-1], SETTINGS)[::-1] == completions
    engine.load_weights(named_weights(policy))
    cached.clear()
    engine.generate(requests[:4], SETTINGS)
    assert sorted(cached) == [0, 32, 32, 32]  # nothing is left of the time before the push


def test_the_block_of_the_cache_is_small_on_cpu_and_the_users_word_stands(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_arguments(BASE, VLLMEngineConfig(), "float32", 32)["block_size"] == 32
    own = VLLMEngineConfig(extra={"block_size": 64})
    assert engine_arguments(BASE, own, "float32", 32)["block_size"] == 64


@pytest.mark.parametrize("gpu", [None, 0, 3])
def test_the_worker_is_on_the_gpu_of_its_own_rank(gpu, monkeypatch):
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    monkeypatch.setattr(UniProcExecutor, "_distributed_args", UniProcExecutor._distributed_args)
    vllm_engine._work_in_this_process()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    _, rank, device = UniProcExecutor._distributed_args(None)
    assert (rank, device) == (0, gpu or 0)
