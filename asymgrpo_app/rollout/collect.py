"""Judging of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards.pool.pool import VerifierPool
from asymgrpo_app.rollout.types import Completion, JudgedCompletion

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedTokenizerBase


def judge(
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Completion],
    tokenizer: PreTrainedTokenizerBase,
    pool: VerifierPool,
) -> list[list[JudgedCompletion]]:
    """Decode and verify P * G completions and group them by prompt: [P][G]; P may be 0."""
    if not prompts:
        return []
    group_size = len(completions) // len(prompts)
    texts = tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
    owners = [encoded.prompt for encoded in prompts for _ in range(group_size)]
    verdicts = pool.score([prompt.verifier for prompt in owners], texts, [prompt.row for prompt in owners])
    judged = [JudgedCompletion(*row) for row in zip(completions, texts, verdicts, strict=True)]
    return [judged[start : start + group_size] for start in range(0, len(judged), group_size)]


def answer_classes(
    prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[JudgedCompletion]], pool: VerifierPool
) -> list[list[int | None] | None]:
    """For each of P prompts the classes of equal answers among its completions (see `VerifierPool.classes`)."""
    owners = [encoded.prompt for encoded in prompts]
    texts = [[judged.text for judged in group] for group in groups]
    return pool.classes([prompt.verifier for prompt in owners], texts, [prompt.row for prompt in owners])
