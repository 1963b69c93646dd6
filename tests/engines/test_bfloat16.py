"""Sampling in bfloat16: the canary, and adapters that are merged in it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import load_policy
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.support.canary_contract import CanaryContract
from tests.support.paths import POLICY, QUICKSTART
from tests.support.states import content

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """Takes the place of the common engine."""
    engine = VLLMEngine(POLICY, VLLMEngineConfig(max_num_seqs=64), "bfloat16", max_model_len=26)
    yield engine
    engine.close()


class TestCanary(CanaryContract):
    dtype = "bfloat16"
    options = ("--model.optimizer.lr=2e-6", "--trainer.precision=bf16-mixed")


@pytest.mark.usefixtures("shared_engine")
def test_the_export_of_adapters_is_what_was_sampled_from(engine, tmp_path):
    """The canary compares each push with vLLM in bfloat16, bit by bit."""
    run = tmp_path / "run"
    options = [
        "--steps=2",
        "--data.prompts_per_step=8",
        "--data.validation.countdown.limit=4",
        "--model.optimizer.lr=1e-2",
    ]
    adapters = ["--model.lora.rank=4", "--model.lora.alpha=8", "--trainer.precision=bf16-mixed"]
    assert main(["fit", *QUICKSTART, *options, *adapters, f"--run_dir={run}"]) == 0
    assert main(["export", f"--run_dir={run}", f"--output={tmp_path / 'again'}"]) == 0
    sampled = engine.digest(0)
    engine.load_weights(load_policy(str(run / "export"), "sdpa").named_parameters())
    assert engine.digest(0) == sampled  # in the validation after the last step
    own, again = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (run / "export", tmp_path / "again")
    )
    assert all(torch.equal(value, again[name]) for name, value in own.items())
    assert content(run, 2)["asymgrpo"]["lora"]["rounded"] is True
