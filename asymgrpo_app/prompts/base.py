"""What a prompt is, and where prompts come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asymgrpo_app.rewards.base import Verifier


@dataclass(frozen=True)
class Prompt:
    """One problem.

    Attributes:
        uid: Stable name of the problem within its source, e.g. `countdown/0/17`.
        text: The problem as it stands in the source, before any chat template.
        row: What the verifier gets beside the completion; has at least `answer`.
    """

    uid: str
    text: str
    row: Mapping[str, Any]


class PromptSource(ABC):
    """A place prompts come from, together with the verifier that knows its right answers.

    Subclasses are configured by `class_path` and `init_args`; their constructor checks what it can cheaply and raises
    `UserError`.
    """

    verifier: Verifier
    size: int | None = None
    """Number of prompts of a source that ends; None for an endless one."""

    @abstractmethod
    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position` (0, 1, 2, ...) of the endless training stream that `seed` orders.

        A pure function of its arguments, so a resumed run continues with exactly the next prompt.
        """

    @abstractmethod
    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` distinct prompts in a fixed order that no run seed changes, for evaluation.

        Raises:
            UserError: The source is endless and `limit` is None, or it holds no prompts.
        """
