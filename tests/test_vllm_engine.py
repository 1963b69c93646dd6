"""The in-process vLLM engine: seeds, limits, and weights that really arrive."""

import pytest

from asymgrpo_app.policy import named_weights
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.engine_contract import BASE, EngineContract


class TestVLLMEngine(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        engine = VLLMEngine(BASE, VLLMEngineConfig(max_num_seqs=64), "float32", max_model_len=32)
        engine.load_weights(named_weights(policy))
        yield engine
        engine.close()
        engine.close()  # a second time does no harm
