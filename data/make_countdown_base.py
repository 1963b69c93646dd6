"""Make the base policy of the quick start again from nothing: `python data/make_countdown_base.py`.

A Qwen3 model of about 1M parameters with a character tokenizer learns from random Countdown expressions of the training
split, and stops while it is still unsure: reinforcement learning then has something to do. Some minutes on a CPU.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from asymgrpo_app.prompts import Countdown, Prompt

CHARACTERS = "0123456789 +-*>"
PAD, EOS = "<pad>", "<eos>"
MAX_NEW_TOKENS = 10
IGNORED = -100

STEPS = 2_500
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
EVALUATED = 256

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [countdown, arithmetic, reinforcement-learning]
---

# A base policy for Countdown

The policy that the quick start trains further: it knows what an answer looks like and is right about one time in four,
so that reinforcement learning with verifiable rewards has something to do. It is of no use beyond that.

| | |
| --- | --- |
| architecture | Qwen3, {parameters:,} parameters, 4 layers, hidden size 128, tied embeddings, float32 |
| tokenizer | one token per character: digits, space, `+ - * >`; `<pad>` and `<eos>`; no beginning-of-text token |
| prompt | four numbers 1 to 9, a target 0 to 99 and `>`, e.g. `3 5 2 7 17>` |
| completion | an expression that uses each number exactly once with `+ - *` and no brackets, then `<eos>` |
| accuracy | avg@8 {avg:.3f}, pass@8 {passed:.3f} |

The accuracy is that of 8 completions each for the problems `Countdown(split="validation").fixed({evaluated})`,
sampled at temperature 1 with at most 10 new tokens. Another sampler or sampling seed moves it by about 0.01 (avg@8) and
0.02 (pass@8).

## How it was made

Supervised training from random weights: {steps:,} steps of {batch_size} random problems, each with one random right
expression, loss on the expression and `<eos>` only, AdamW with a peak learning rate of {learning_rate:g}, seed {seed}.
The problems come from the training split; no validation problem is among them, whatever the order of its numbers. To
make it again from nothing, in some minutes on one CPU core:

    python data/make_countdown_base.py --seed {seed}

The same seed gives the same weights on the same kind of processor and the same versions of the libraries.

## Limits

The context is 64 tokens. Text with any other character cannot be encoded. It writes expressions of four single digits
for prompts of exactly the form above and nothing else.
"""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of k sampled completions per problem.

    Attributes:
        avg_at_k: Share of the completions that are correct.
        pass_at_k: Share of the problems with at least one correct completion.
    """

    avg_at_k: float
    pass_at_k: float


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, nothing added before or after; a character outside the vocabulary is an error."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # "<unk>" is not in it: hence the error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # without it, decoding puts spaces between the characters
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A float32 model with fresh weights, drawn from torch's global generator."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM's CPU attention takes multiples of 32
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def warm_start_batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield `input_ids`, `attention_mask`, `labels` of shape [batch, tokens], padded on the right.

    Only the completion and its end token carry labels.
    """
    source = Countdown(split="train")
    assert isinstance(tokenizer.pad_token_id, int) and isinstance(tokenizer.eos_token_id, int)
    for step in range(STEPS):
        prompts = [source.at(step * BATCH_SIZE + index, seed) for index in range(BATCH_SIZE)]
        prompt_ids = [tokenizer.encode(prompt.text) for prompt in prompts]
        completion_ids = [[*tokenizer.encode(prompt.row["answer"]), tokenizer.eos_token_id] for prompt in prompts]
        width = max(
            len(prompt) + len(completion) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        )
        input_ids = torch.full((BATCH_SIZE, width), tokenizer.pad_token_id)
        labels = torch.full((BATCH_SIZE, width), IGNORED)
        for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            end = len(prompt) + len(completion)
            input_ids[row, :end] = torch.tensor(prompt + completion)
            labels[row, len(prompt) : end] = torch.tensor(completion)
        yield input_ids, (input_ids != tokenizer.pad_token_id).long(), labels


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))


def warm_start(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Supervised training for a fixed number of steps; validation problems play no part in it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    model.train()
    progress = tqdm(warm_start_batches(tokenizer, seed), total=STEPS, desc="warm start", unit="step")
    for step, (input_ids, attention_mask, labels) in enumerate(progress):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def sampled_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    k: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> Accuracy:
    """Sample k completions per prompt at temperature 1 and judge them. Seeds torch's global generator."""
    torch.manual_seed(seed)
    model.eval()
    verifier = Countdown().verifier
    correct: list[list[bool]] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="sampling", unit="batch", leave=False):
        batch = prompts[start : start + batch_size]
        encoded = tokenizer([prompt.text for prompt in batch], return_tensors="pt", padding=True)
        generated: Tensor = cast(Any, model).generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            num_return_sequences=k,
        )
        completion_ids = generated[:, encoded["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        for index, prompt in enumerate(batch):
            correct.append([verifier.verify(text, prompt.row).correct for text in texts[index * k : (index + 1) * k]])
    solved = torch.tensor(correct, dtype=torch.float64)
    return Accuracy(avg_at_k=solved.mean().item(), pass_at_k=solved.amax(dim=1).mean().item())


def write_card(folder: Path, seed: int, parameters: int, accuracy: Accuracy) -> None:
    """Write the model card, README.md."""
    lines = CARD.format(
        parameters=parameters,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=PEAK_LEARNING_RATE,
        seed=seed,
        evaluated=EVALUATED,
        avg=accuracy.avg_at_k,
        passed=accuracy.pass_at_k,
    )
    (folder / "README.md").write_text(lines, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the base policy of the quick start again from nothing.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "countdown_base", help="folder to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first weights and of the problems trained on")
    arguments = parser.parse_args(argv)

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # the sums, and so the weights, do not depend on the machine's number of cores
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    started = time.perf_counter()
    warm_start(model, tokenizer, arguments.seed)
    seconds = time.perf_counter() - started
    accuracy = sampled_accuracy(model, tokenizer, Countdown(split="validation").fixed(EVALUATED))

    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)  # written for its owner only, which git would not keep
    tokenizer.save_pretrained(arguments.out)
    write_card(arguments.out, arguments.seed, model.num_parameters(), accuracy)
    print(
        f"{arguments.out}: avg@8 {accuracy.avg_at_k:.3f}, pass@8 {accuracy.pass_at_k:.3f}, trained for {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
