"""A script: what vLLM by itself makes of exported folders, as any server would load them; prints JSON.

python -m tests.support.vllm_alone MODEL [ADAPTER] gives greedy log-probabilities of the completions of `PROMPTS`.
"""

import json
import os
import sys

PROMPTS = [[3, 5, 7, 9, 4, 6, 2], [4, 4, 8, 2, 3, 3, 5]]
TOKENS = 8


def main(model: str, adapter: str | None) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=32,
        kv_cache_memory_bytes=2**28,
        generation_config="vllm",
        **lora,
    )
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0, detokenize=False)
    request = LoRARequest("trained", 1, adapter) if adapter else None
    outputs = llm.generate([{"prompt_token_ids": own} for own in PROMPTS], params, lora_request=request, use_tqdm=False)
    print(json.dumps([_told(output.outputs[0]) for output in outputs]))


def _told(output: object) -> dict:
    tokens = list(output.token_ids)
    return {
        "tokens": tokens,
        "logprobs": [entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True)],
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
