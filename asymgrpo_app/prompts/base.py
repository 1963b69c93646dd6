"""Prompts, and the interface of their sources."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import Verifier


class BadRow(UserError):  # noqa: N818 (said of a row)
    """A row that cannot be used; the message names the file, the line (or row) and the field."""


@dataclass(frozen=True)
class Turn:
    """A message of a chat.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: Its text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """One problem.

    Attributes:
        uid: Stable name of the problem within its source, e.g. `countdown/0/17`.
        text: The problem as it stands in the source, before any template.
        row: The row that the verifier gets beside the completion; has at least `answer`.
        verifier: Judges the completions.
        place: Its file and line or row, for messages, e.g. `data/mine.jsonl, line 17`; empty: the uid is shown.
        turns: The turns of a chat before the problem, e.g. a system message or examples with their answers.
    """

    uid: str
    text: str
    row: Mapping[str, Any]
    verifier: Verifier = field(compare=False)
    place: str = ""
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy sees it.

    Attributes:
        prompt: The problem.
        rendered: Its tokens as text, special tokens and what the tokenizer added included.
        token_ids: Its tokens; at least one.
        index: Index of the problem in its step (training) or set (evaluation), counted over all ranks.
        update: Number of the optimizer update of its step that it belongs to, 0 in evaluation.
    """

    prompt: Prompt
    rendered: str
    token_ids: list[int]
    index: int = 0
    update: int = 0


class PromptSource(ABC):
    """A source of prompts, together with the verifier that knows the right answers.

    Subclasses are configured by `class_path` and `init_args`; their constructor checks what it can cheaply and raises
    `UserError`.
    """

    size: int | None = None
    """Number of prompts of a source that ends; None for an endless one."""

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position` (0, 1, 2, ...) of the endless training stream that `seed` orders.

        A pure function of its arguments, so a resumed run continues with exactly the next prompt.

        Raises:
            BadRow: The row at this position cannot be used. The verifier's own check of the row is left to the caller.
        """

    def nth(self, index: int) -> Prompt:
        """The prompt `index` (from 0, below `size`) in the source's own order; for `finite_parts` only.

        Raises:
            BadRow: The row cannot be used.
        """
        raise NotImplementedError(f"{self} is not read by index")

    def finite_parts(self) -> "list[PromptSource]":
        """The sources that end among those this one is made of; these can be inspected in full before a run."""
        return [] if self.size is None else [self]

    def parts(self) -> "list[PromptSource]":
        """The sources that this one is made of; this one alone if it is no mixture."""
        return [self]

    @abstractmethod
    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts in a fixed order that no run seed changes, for evaluation and for checks.

        Raises:
            UserError: The source is endless and `limit` is None, it holds no prompts, or one of them cannot be used.
        """
