"""What the type of the sampler's output head does to the gap between its log-probabilities and the trainer's.

    .venv/bin/python benchmarks/sampler_head.py [--model data/countdown_base] [--prompts 64]

vLLM samples in bfloat16 with a head in bfloat16 (`model`) and in float32. The trainer's side is transformers in
bfloat16 as well, whose logits are computed from hidden states and weights of 16 bits, in float32 and in bfloat16. A gap
is the mean of |sampler's - trainer's log-probability| over all sampled tokens; seconds are those of the second of two
calls.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from asymgrpo_app.runtime.environment import quiet_environment


def gap(model: Any, requests: Any, completions: Any, kind: Any) -> float:
    """The mean gap to logits that are computed in `kind`."""
    import torch

    total, tokens = 0.0, 0
    weight = model.get_output_embeddings().weight.to(kind)
    for request, own in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prompt_token_ids, *own.token_ids]])
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0, len(request.prompt_token_ids) - 1 : -1]
            logprobs = (hidden.to(kind) @ weight.T).float().log_softmax(-1)
        scored = logprobs.gather(1, torch.tensor(own.token_ids)[:, None])[:, 0]
        total += float((scored - torch.tensor(own.logprobs)).abs().sum())
        tokens += len(own.token_ids)
    return total / tokens


def measure(path: str, head: str, prompts: int, scale: float) -> None:
    """Print one row's figures as JSON."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from asymgrpo_app.policy.loading import named_weights
    from asymgrpo_app.prompts import Countdown
    from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings
    from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if scale != 1:  # larger logits, as larger models have them
        with torch.no_grad():
            model.model.norm.weight.mul_(scale)
    model.to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [prompt.text for prompt in Countdown("train").fixed(prompts)]
    requests = [
        SampleRequest(tokenizer.encode(text), 100 * place + number)
        for place, text in enumerate(texts)
        for number in range(8)
    ]
    config = VLLMEngineConfig(max_num_seqs=256, kv_cache_gib=0.5, extra={"hf_overrides": {"head_dtype": head}})
    engine = VLLMEngine(path, config, "bfloat16", max_model_len=64)
    engine.load_weights(named_weights(model))
    settings = SamplingSettings(temperature=1.0, max_tokens=16, stop_token_ids=(1,))
    for _ in range(2):
        begun = perf_counter()
        completions = engine.generate(requests, settings)
        seconds = perf_counter() - begun
    engine.close()
    gaps = {str(kind): gap(model, requests, completions, kind) for kind in (torch.float32, torch.bfloat16)}
    print(json.dumps(gaps | {"seconds": seconds, "tokens": sum(len(own.token_ids) for own in completions)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/countdown_base")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the last norm, hence on all logits")
    parser.add_argument("--head", choices=("model", "float32"), help="one row alone, as JSON")
    options = parser.parse_args()
    quiet_environment()
    if options.head:
        measure(options.model, options.head, options.prompts, options.scale)
        return
    print(
        "| sampler's head | gap to float32 logits | gap to bfloat16 logits | seconds | tokens |\n| - | - | - | - | - |"
    )
    for head in ("model", "float32"):
        given = ["--model", options.model, "--prompts", str(options.prompts), "--scale", str(options.scale)]
        command = [sys.executable, __file__, *given, "--head", head]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        gaps = " | ".join(f"{row[kind]:.5f}" for kind in ("torch.float32", "torch.bfloat16"))
        print(f"| {head} | {gaps} | {row['seconds']:.2f} | {row['tokens']} |", flush=True)


if __name__ == "__main__":
    main()
