"""TRL's GRPOTrainer on the quick start's Countdown work; run by `benchmarks/step.py --countdown --trl-python`.

trl_countdown.py MODEL FOLDER STEPS COMPLETIONS RESULT

8 completions of at most 10 tokens for each of COMPLETIONS / 8 problems, AdamW 1e-4, float32, one update a step, clip
0.2, token-level loss, no KL. The answer is judged by form and by sum: four digits with + - * between them, calculated
without `eval`. RESULT gets the seconds of each step and of the generation in it, and the process's peak memory.
"""

import random
import re
import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from trl_clock import StepClock, TimedTrainer, write_result


def value_of(expression: str) -> int:
    """Sums and products of digits."""
    total = 0
    for term in re.findall(r"[-+]?[^-+]+", expression):
        product = 1
        for factor in term.lstrip("+-").split("*"):
            product *= int(factor)
        total += -product if term.startswith("-") else product
    return total


def right(text: str, numbers: list[int], target: int) -> float:
    if not re.fullmatch(r"[1-9]([-+*][1-9]){3}", text):
        return 0.0
    return float(sorted(map(int, re.findall(r"\d", text))) == sorted(numbers) and value_of(text) == target)


def problem(rng: random.Random) -> dict[str, Any]:
    while True:
        numbers = [rng.randint(1, 9) for _ in range(4)]
        shuffled = rng.sample(numbers, 4)
        target = value_of(str(shuffled[0]) + "".join(rng.choice("+-*") + str(number) for number in shuffled[1:]))
        if 0 <= target <= 99:
            return {"prompt": f"{' '.join(map(str, numbers))} {target}>", "numbers": numbers, "target": target}


def main() -> None:
    model, folder, (steps, completions), result = sys.argv[1], sys.argv[2], map(int, sys.argv[3:5]), sys.argv[5]
    rng, clock = random.Random(0), StepClock()
    settings = GRPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=completions,
        num_generations=8,
        max_completion_length=10,
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        loss_type="dapo",
        seed=0,
    )
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=lambda completions, numbers, target, **_: [
            right(*parts) for parts in zip(completions, numbers, target, strict=True)
        ],
        args=settings,
        train_dataset=Dataset.from_list([problem(rng) for _ in range(completions // 8 * steps)]),
        callbacks=[clock],
    )
    trainer.train()
    write_result(result, clock, trainer)


if __name__ == "__main__":
    main()
