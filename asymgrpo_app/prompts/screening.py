"""Turns rows into encoded prompts; prompts that cannot be used are rejected with a reason, never cut or repaired."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from transformers import PreTrainedTokenizerBase

from asymgrpo_app.prompts.base import BadRow, EncodedPrompt, Prompt
from asymgrpo_app.prompts.templates import Template
from asymgrpo_app.rewards.pool.pool import VerifierPool

_SHOWN = 5


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
class Tally:
    """Counts of drawn and rejected prompts.

    Attributes:
        drawn: Number of all prompts drawn.
        rejected: Number of rejected prompts by reason.
        messages: The first few messages by reason, in the order in which the reasons came.
    """

    drawn: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    messages: defaultdict[Reason, list[str]] = field(default_factory=lambda: defaultdict(list))

    def count(self, outcomes: Sequence[EncodedPrompt | Prompt | Rejected]) -> None:
        """Add outcomes of reading or of `Screening.screen`."""
        self.drawn += len(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                self.rejected[outcome.reason] += 1
                if self.rejected[outcome.reason] <= _SHOWN:
                    self.messages[outcome.reason].append(outcome.message)


def attempt(read: Callable[..., Prompt], *position: int) -> Prompt | Rejected:
    """Read the prompt at a position of a source; a bad row is an outcome like others."""
    try:
        return read(*position)
    except BadRow as error:
        return Rejected(Reason.BAD_ROW, str(error))


@dataclass
class Screening:
    """Renders, tokenizes and checks prompts.

    Attributes:
        tokenizer: The policy's tokenizer.
        template: The template that the problem is put into.
        max_tokens: Longest prompt in tokens, after the template.
        pool: The pool that verifiers check their rows in.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_tokens: int
    pool: VerifierPool

    def screen(self, prompts: Sequence[Prompt | Rejected]) -> list[EncodedPrompt | Rejected]:
        """Encode and check N prompts; returns N outcomes, in order. The index and update of each prompt are 0."""
        outcomes = [prompt if isinstance(prompt, Rejected) else self._encoded(prompt) for prompt in prompts]
        encoded = [outcome.prompt for outcome in outcomes if isinstance(outcome, EncodedPrompt)]
        faults = iter(self.pool.check([prompt.verifier for prompt in encoded], [prompt.row for prompt in encoded]))
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, EncodedPrompt) and (fault := next(faults)) is not None:
                verifier = type(outcome.prompt.verifier).__name__
                outcomes[index] = _rejected(outcome.prompt, f"{verifier} cannot judge this row: {fault}.")
        return outcomes

    def _encoded(self, prompt: Prompt) -> EncodedPrompt | Rejected:
        try:
            rendered = self.template.render(prompt.text, self.tokenizer)
            # A chat template writes its own special tokens; a base model's tokenizer may add one at the front.
            token_ids = self.tokenizer.encode(rendered, add_special_tokens=self.template.adds_special_tokens)
        except Exception as error:  # templates and the tokenizers library raise nothing more specific
            return _rejected(prompt, f"the prompt cannot be rendered and tokenized: {error}.")
        if not token_ids:
            return _rejected(prompt, "the prompt has no token.")
        if len(token_ids) > self.max_tokens:
            limit = f"more than data.max_prompt_tokens ({self.max_tokens:,})"
            return _rejected(prompt, f"the prompt has {len(token_ids):,} tokens, {limit}.", Reason.TOO_LONG)
        return EncodedPrompt(prompt, rendered, token_ids)


def _rejected(prompt: Prompt, message: str, reason: Reason = Reason.BAD_ROW) -> Rejected:
    return Rejected(reason, f"{prompt.place or prompt.uid}: {message}")


def fingerprint(text: str) -> int:
    """64 bits of a problem's text, runs of white space as one space."""
    digest = blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
