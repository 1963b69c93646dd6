"""TRL's GRPOTrainer on the work of `benchmarks/step.py --model`; run by it, in a Python with trl 1.16.0.

trl_chat.py MODEL FOLDER STEPS COMPLETIONS RESULT [float32]

The problems are in FOLDER/problems.jsonl: 8 completions of at most 160 tokens for each, in the chat template; the last
number of a completion is its answer. Weights in bfloat16 (or float32), micro-batches of 16 completions, one update a
step. RESULT gets the seconds of each step and of the generation in it, and the process's peak memory.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from trl_clock import StepClock, TimedTrainer, write_result


def reward(completions: Any, answer: Any, **_: Any) -> list[float]:
    found = [re.findall(r"\d+", completion[0]["content"])[-1:] for completion in completions]
    return [float(numbers == [wanted]) for numbers, wanted in zip(found, answer, strict=True)]


def main() -> None:
    model, folder, (steps, completions), result = sys.argv[1], Path(sys.argv[2]), map(int, sys.argv[3:5]), sys.argv[5]
    float32 = sys.argv[6:] == ["float32"]
    rows = [json.loads(line) for line in (folder / "problems.jsonl").open()][: steps * completions // 8]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["problem"]}], "answer": row["answer"]} for row in rows]
    )
    clock = StepClock()
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=completions // 16,
        num_generations=8,
        max_completion_length=160,
        max_steps=steps,
        learning_rate=1e-6,
        beta=0.0,
        temperature=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=not float32,
        gradient_checkpointing=False,
        loss_type="dapo",
        seed=0,
    )
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32 if float32 else torch.bfloat16),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=reward,
        args=settings,
        train_dataset=data,
        callbacks=[clock],
    )
    trainer.train()
    write_result(result, clock, trainer)


if __name__ == "__main__":
    main()
