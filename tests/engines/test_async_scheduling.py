"""Asynchronous scheduling, which vLLM in a training process takes on every GPU: a batch more is under way when a
generation ends. On CPU vLLM turns it off; here it is on, above the CPU's model runner.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from asymgrpo_app.policy.loading import named_weights
from asymgrpo_app.rollout.types import SampleRequest
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.support.engine_contract import BASE, SETTINGS, changed_policy, gaps, load_policy

pytestmark = pytest.mark.long

REQUESTS = [
    SampleRequest([2 + (3 * place + first) % 14 for place in range(40)], 100 * first + number)
    for first in range(4)
    for number in range(6)
]


class Nothing:
    """A CUDA stream or event where everything happens in order anyway."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.record = self.synchronize = self.wait_stream = lambda *_: None


def sampled(monkeypatch: pytest.MonkeyPatch, *, asynchronous: bool) -> list[list[Any]]:
    """Completions of a policy, of another, of the first again, and of the first in another order."""
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    update = platform.check_and_update_config.__func__

    def chosen(cls: Any, config: Any) -> None:
        update(cls, config)
        config.scheduler_config.async_scheduling = asynchronous

    with monkeypatch.context() as patched:
        patched.setattr(platform, "check_and_update_config", classmethod(chosen))
        if asynchronous:
            for name in ("Stream", "Event", "current_stream"):
                patched.setattr(torch.cuda, name, Nothing)
            patched.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        engine = VLLMEngine(BASE, VLLMEngineConfig(max_num_seqs=8), "float32", 64)
        try:
            core = engine._llm.llm_engine.engine_core.engine_core
            assert core.async_scheduling is asynchronous
            assert (core.batch_queue is not None) is asynchronous
            found = []
            for policy in (load_policy(), changed_policy("layers"), load_policy()):
                engine.load_weights(named_weights(policy))
                found.append(engine.generate(REQUESTS, SETTINGS))
                assert gaps(policy, REQUESTS, found[-1]) < 1e-4
            found.append(engine.generate(REQUESTS[::-1], SETTINGS)[::-1])
        finally:
            engine.close()
    return found


def test_completions_and_pushes_are_the_same_with_a_batch_under_way(monkeypatch):
    first, other, again, backwards = sampled(monkeypatch, asynchronous=True)
    assert first == again == backwards != other
    assert [first, other, again, backwards] == sampled(monkeypatch, asynchronous=False)
