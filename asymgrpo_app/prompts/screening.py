"""From rows to encoded prompts: what cannot be used is set aside with its reason, never cut or repaired."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from asymgrpo_app.prompts.base import BadRow, EncodedPrompt, Prompt
from asymgrpo_app.prompts.templates import Template
from asymgrpo_app.rewards.pool.pool import VerifierPool


class Reason(StrEnum):
    """Why a prompt was set aside."""

    TOO_LONG = "too_long"
    BAD_ROW = "bad_row"


@dataclass(frozen=True)
class Rejected:
    """A prompt that was set aside.

    Attributes:
        reason: Which kind of fault.
        message: One sentence that names the place, the field and the value.
    """

    reason: Reason
    message: str


@dataclass
class Encoder:
    """Renders and tokenizes prompts.

    Attributes:
        tokenizer: The policy's.
        template: What stands around the problem.
        max_tokens: Longest prompt in tokens, after the template.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_tokens: int

    def encode(self, prompt: Prompt) -> EncodedPrompt | Rejected:
        """One prompt, with index and update 0, or the reason why it cannot be used."""
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
        pool: Where verifiers check their rows.

    Returns:
        N outcomes, in order.
    """
    outcomes: list[EncodedPrompt | Rejected] = []
    for read in reads:
        try:
            outcomes.append(encoder.encode(read()))
        except BadRow as error:
            outcomes.append(Rejected(Reason.BAD_ROW, str(error)))
    encoded = [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, EncodedPrompt)]
    prompts = [outcome.prompt for _, outcome in encoded]
    faults = pool.check([prompt.verifier for prompt in prompts], [prompt.row for prompt in prompts])
    for (place, outcome), fault in zip(encoded, faults, strict=True):
        if fault is not None:
            prompt = outcome.prompt
            outcomes[place] = Rejected(
                Reason.BAD_ROW,
                f"{prompt.place or prompt.uid}: {type(prompt.verifier).__name__} cannot judge this row: {fault}.",
            )
    return outcomes


@dataclass
class Tally:
    """How many prompts were drawn, and what became of them.

    Attributes:
        drawn: All of them.
        rejected: Number by reason.
        in_validation: How many of the accepted ones are in an evaluation set, too.
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
