"""Turns rows into encoded prompts; prompts that cannot be used are rejected with a reason, never cut or repaired."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from asymgrpo_app.prompts.base import BadRow, EncodedPrompt, Prompt
from asymgrpo_app.prompts.templates import Template
from asymgrpo_app.rewards.pool.pool import VerifierPool


class Reason(StrEnum):
    """The reason why a prompt was rejected."""

    TOO_LONG = "too_long"
    BAD_ROW = "bad_row"


@dataclass(frozen=True)
class Rejected:
    """A prompt that cannot be used.

    Attributes:
        reason: Kind of the fault.
        message: One sentence that names the place, the field and the value.
    """

    reason: Reason
    message: str


@dataclass
class Encoder:
    """Renders and tokenizes prompts.

    Attributes:
        tokenizer: The policy's tokenizer.
        template: The template that the problem is put into.
        max_tokens: Longest prompt in tokens, after the template.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_tokens: int

    def encode(self, prompt: Prompt) -> EncodedPrompt | Rejected:
        """Encode one prompt, with index and update 0, or return the reason why it cannot be used."""
        place = prompt.place or prompt.uid
        try:
            rendered = self.template.render(prompt.text, self.tokenizer)
            # A chat template writes its own special tokens; a base model's tokenizer may add one at the front.
            token_ids = self.tokenizer.encode(rendered, add_special_tokens=self.template.adds_special_tokens)
        except Exception as error:  # templates and the tokenizers library raise nothing more specific
            return Rejected(Reason.BAD_ROW, f"{place}: the prompt cannot be rendered and tokenized: {error}.")
        if not token_ids:
            return Rejected(Reason.BAD_ROW, f"{place}: the prompt has no token.")
        if len(token_ids) > self.max_tokens:
            return Rejected(
                Reason.TOO_LONG,
                f"{place}: the prompt has {len(token_ids):,} tokens, more than data.max_prompt_tokens "
                f"({self.max_tokens:,}).",
            )
        return EncodedPrompt(prompt, rendered, token_ids)


def screen(
    reads: Sequence[Callable[[], Prompt]], encoder: Encoder, pool: VerifierPool
) -> list[EncodedPrompt | Rejected]:
    """Read, encode and check N prompts.

    Args:
        reads: Each reads one prompt and may raise `BadRow`.
        encoder: Renders and tokenizes.
        pool: The pool that verifiers check their rows in.

    Returns:
        N outcomes, in order.
    """
    outcomes: list[EncodedPrompt | Rejected] = []
    for read in reads:
        try:
            outcomes.append(encoder.encode(read()))
        except BadRow as error:
            outcomes.append(Rejected(Reason.BAD_ROW, str(error)))
    encoded = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, EncodedPrompt)]
    prompts = [outcome.prompt for _, outcome in encoded]
    faults = pool.check([prompt.verifier for prompt in prompts], [prompt.row for prompt in prompts])
    for (index, outcome), fault in zip(encoded, faults, strict=True):
        if fault is not None:
            prompt = outcome.prompt
            outcomes[index] = Rejected(
                Reason.BAD_ROW,
                f"{prompt.place or prompt.uid}: {type(prompt.verifier).__name__} cannot judge this row: {fault}.",
            )
    return outcomes


@dataclass
class Tally:
    """Counts of drawn and rejected prompts.

    Attributes:
        drawn: Number of all prompts drawn.
        rejected: Number of rejected prompts by reason.
        in_validation: Number of accepted prompts that are in an evaluation set, too.
        first: The first message by reason.
    """

    drawn: int = 0
    rejected: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))
    in_validation: int = 0
    first: dict[Reason, str] = field(default_factory=dict)

    def count(self, outcomes: Sequence[EncodedPrompt | Rejected]) -> None:
        """Add outcomes of `screen`."""
        self.drawn += len(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                self.rejected[outcome.reason] += 1
                self.first.setdefault(outcome.reason, outcome.message)
