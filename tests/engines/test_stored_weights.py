"""Architectures whose weights vLLM holds one to one: each is started, and its digest is that of the pushed weights."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from asymgrpo_app.policy.loading import linear_weights, named_weights
from asymgrpo_app.rollout.canary import ONE_TO_ONE
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

pytestmark = pytest.mark.long

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", sorted(ONE_TO_ONE))
def test_the_digest_of_an_engine_is_that_of_the_policy(kind, tied, tmp_path):
    config = AutoConfig.for_model(kind, **SHAPE, tie_word_embeddings=tied)
    policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():  # norms and biases are all alike at first
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    policy.save_pretrained(tmp_path)
    dtype = "bfloat16" if tied else "float32"
    engine = VLLMEngine(str(tmp_path), VLLMEngineConfig(max_num_seqs=8, kv_cache_gib=0.1), dtype, 64)
    try:
        engine.load_weights(named_weights(policy))
        expected = policy_digest(named_weights(policy), *linear_weights(policy), getattr(torch, dtype), 1)
        assert engine.digest(1) == expected
    finally:
        engine.close()
