"""What the block of vLLM's cache costs and saves on a CPU: completions of a prompt share whole blocks of it alone.

    .venv/bin/python benchmarks/cache_blocks.py --model SMOLLM2_135M
    .venv/bin/python benchmarks/cache_blocks.py --model SMOLLM2_135M --long     # prompts of 600 tokens that share none

16 sums in the chat template, 8 completions of at most 24 tokens for each, in float32, by the engine that training uses;
the second of two calls, with an empty cache. *Computed* are the tokens of prompts that were not found in the cache.
Every row has a process of its own.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from asymgrpo_app.runtime.environment import quiet_environment


def requests_of(model: str, *, long: bool) -> list[Any]:
    from transformers import AutoTokenizer

    from asymgrpo_app.rollout.types import SampleRequest

    if long:
        rng = random.Random(0)
        return [SampleRequest([rng.randrange(100, 40_000) for _ in range(600)], seed) for seed in range(8)]
    tokenizer, prompts = AutoTokenizer.from_pretrained(model), []
    for a in range(16):
        question = f"What is {22 + a} + 39? Answer with just the number."
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [SampleRequest(prompt, 8 * place + seed) for place, prompt in enumerate(prompts) for seed in range(8)]


def measure(model: str, block: int, *, long: bool) -> None:
    """Print one row's figures as JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from asymgrpo_app.policy.loading import named_weights, stop_token_ids
    from asymgrpo_app.rollout.types import SamplingSettings
    from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

    config = VLLMEngineConfig(max_num_seqs=256, kv_cache_gib=0.5, extra={"block_size": block})
    engine = VLLMEngine(model, config, "float32", max_model_len=640)
    policy = AutoModelForCausalLM.from_pretrained(model)
    stops = stop_token_ids(model, AutoTokenizer.from_pretrained(model))
    settings = SamplingSettings(temperature=1.0, max_tokens=24, stop_token_ids=stops)
    generate, computed = engine._llm.generate, []

    def counted(*arguments: Any, **named: Any) -> Any:
        outputs = generate(*arguments, **named)
        computed.append(sum(len(own.prompt_token_ids) - own.num_cached_tokens for own in outputs))
        return outputs

    engine._llm.generate = counted
    requests = requests_of(model, long=long)
    for _ in range(2):
        engine.load_weights(named_weights(policy))
        begun = perf_counter()
        tokens = sum(len(own.token_ids) for own in engine.generate(requests, settings))
        seconds = perf_counter() - begun
    print(json.dumps({"seconds": seconds, "tokens": tokens, "computed": computed[-1]}))
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a chat model in Hugging Face format")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 32, 128, 32], help="multiples of 32")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.model, options.one, long=options.long)
        return
    quiet_environment()  # the processes below inherit it
    print("| block | seconds | tokens a second | computed |\n| --- | --- | --- | --- |")
    for block in options.blocks:
        command = [sys.executable, __file__, f"--model={options.model}", f"--one={block}"]
        command += ["--long"] * options.long
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {block} | {row['seconds']:.1f} | {row['tokens'] / row['seconds']:.0f} | {row['computed']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
