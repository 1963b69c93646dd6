"""How a policy is loaded."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from asymgrpo_app.policy.loading import load_policy
from tests.support.small_models import small_config


def test_dropout_is_off_in_training_and_stays_in_the_configuration(tmp_path):
    config = small_config("llama")
    config.attention_dropout = 0.5  # a number that attention layers hand on, not a module
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = torch.arange(3, 23).unsqueeze(0)
    dropping = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert not torch.equal(dropping(tokens).logits, dropping(tokens).logits)
    for attention in ("sdpa", "eager"):
        policy = load_policy(str(tmp_path), attention).train()
        assert torch.equal(policy(tokens).logits, policy(tokens).logits)
        assert policy.config.attention_dropout == 0.5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cudnn_plans_no_attention_whatever_samples(attention, tmp_path, monkeypatch):
    """On a GPU torch tries it first, and it makes a plan for each new shape, of which every micro-batch has some."""
    AutoModelForCausalLM.from_config(small_config("llama")).save_pretrained(tmp_path)
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    load_policy(str(tmp_path), attention)
    assert switched == [False]
