"""Turns rows into encoded prompts; prompts that cannot be used are rejected with a reason, never cut or repaired."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow, EncodedPrompt, Prompt
from asymgrpo_app.prompts.templates import ChatTemplate, Template
from asymgrpo_app.rewards.pool.pool import VerifierPool

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedTokenizerBase

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
        stop_token_ids: The tokens that end a completion, in which no prompt may end.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_tokens: int
    pool: VerifierPool
    stop_token_ids: Sequence[int] = ()

    def screen(self, prompts: Sequence[Prompt | Rejected]) -> list[EncodedPrompt | Rejected]:
        """Encode and check N prompts; returns N outcomes, in order. The index and update of each prompt are 0.

        Raises:
            UserError: The template or the tokenizer ends prompts in a stop token.
        """
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
            rendered = self.template.render_chat(prompt.turns, prompt.text, self.tokenizer)
            # A chat template writes its own special tokens; a base model's tokenizer may add one at the front.
            token_ids = self.tokenizer.encode(rendered, add_special_tokens=self.template.adds_special_tokens)
        except Exception as error:  # templates and the tokenizers library raise nothing more specific
            return _rejected(prompt, f"the prompt cannot be rendered and tokenized: {error}.")
        if not token_ids:
            return _rejected(prompt, "the prompt has no token.")
        if token_ids[-1] in self.stop_token_ids:
            return self._ended(prompt, rendered, token_ids[-1])
        if len(token_ids) > self.max_tokens:
            limit = f"more than data.max_prompt_tokens ({self.max_tokens:,})"
            return _rejected(prompt, f"the prompt has {len(token_ids):,} tokens, {limit}.", Reason.TOO_LONG)
        text = self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return EncodedPrompt(prompt, str(text), token_ids)

    def _ended(self, prompt: Prompt, rendered: str, last: int) -> Rejected:
        """Reject a row whose text ends in a stop token.

        Raises:
            UserError: It is not in the row's text, so that no prompt can be used.
        """
        token = str(self.tokenizer.convert_ids_to_tokens(last))
        if prompt.text.rstrip().endswith(token):
            return _rejected(prompt, f"the prompt ends in {token}, which ends a completion.")
        name, path = type(self.template).__name__, self.tokenizer.name_or_path
        if last in self.tokenizer.encode(rendered, add_special_tokens=False)[-1:]:
            does = f"{name} writes it" + (
                f" (the chat template of {path})" if isinstance(self.template, ChatTemplate) else ""
            )
            instead = "end prompts where the answer begins, with the header of the assistant's turn if there is one"
        else:
            does = f"the tokenizer of {path} appends it"
            instead = "set add_eos_token: false in its tokenizer_config.json, or take it out of the post_processor in "
            instead += "its tokenizer.json"
        raise UserError(
            f"Prompts end in {token}, which ends a completion, so that nothing is left to say "
            f"({prompt.place or prompt.uid}): {does}; {instead}."
        )

    def warnings(self, encoded: EncodedPrompt) -> list[str]:
        """What is odd about the tokens that stand around a problem, one sentence each."""
        ids, path = encoded.token_ids, self.tokenizer.name_or_path
        written = self.tokenizer.encode(
            self.template.render_chat(encoded.prompt.turns, encoded.prompt.text, self.tokenizer),
            add_special_tokens=False,
        )
        found = []
        if len(ids) > 1 and ids[:2] == [self.tokenizer.bos_token_id] * 2:
            found.append(
                f"prompts begin with {self.tokenizer.bos_token} twice, once by the tokenizer of {path} and once by the "
                "template: leave it out of the template."
            )
        if ids[-1] != written[-1]:
            found.append(
                f"prompts end in {self.tokenizer.convert_ids_to_tokens(ids[-1])}, which the tokenizer of {path} "
                "appends: take it out of the post_processor in its tokenizer.json if no answer follows it."
            )
        ends = [str(self.tokenizer.convert_ids_to_tokens(token)) for token in self.stop_token_ids]
        if end := next((end for end in ends if encoded.rendered.rstrip().endswith(end)), None):
            found.append(
                f"prompts end in {end} and white space, a turn that is over: the template of {path} does not begin the "
                "assistant's (add_generation_prompt)."
            )
        return found


def _rejected(prompt: Prompt, message: str, reason: Reason = Reason.BAD_ROW) -> Rejected:
    return Rejected(reason, f"{prompt.place or prompt.uid}: {message}")


def fingerprint(text: str) -> int:
    """64 bits of a problem's text, runs of white space as one space."""
    digest = blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
