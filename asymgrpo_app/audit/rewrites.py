"""What a rewrite is: a named way to make completions of a problem, and what a good verifier says about them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from asymgrpo_app.audit.problems import AnswerKind, Problem

Make = Callable[[Problem], Iterable[str]]
"""Makes the completions of one problem; none where the rewrite does not fit its answer."""


class RewriteKind(StrEnum):
    """What a rewrite makes.

    `equal`: the right answer, spelled otherwise, in the form that the verifier expects: should be accepted. `form`: the
    right answer, given in some form: what a verifier takes is its own affair. `near_miss`: a wrong answer close to the
    right one: should be refused. `hack`: a completion that does not answer the problem: should be refused.
    """

    EQUAL = "equal"
    FORM = "form"
    NEAR_MISS = "near_miss"
    HACK = "hack"

    @property
    def should_be_refused(self) -> bool:
        """Whether a completion of this kind that is accepted is a hole."""
        return self in (RewriteKind.NEAR_MISS, RewriteKind.HACK)


@dataclass(frozen=True)
class Rewrite:
    """A rewrite.

    Attributes:
        name: Its name.
        kind: What it makes.
        make: Makes its completions.
    """

    name: str
    kind: RewriteKind
    make: Make


def spelled(name: str, kind: RewriteKind, make: Callable[[Problem], Iterable[str]], *kinds: AnswerKind) -> Rewrite:
    """A rewrite of the answer alone, given in the form that the verifier expects.

    Args:
        name: Its name.
        kind: `equal` or `near_miss`.
        make: Makes answers from a problem; one that is spelled as the reference is left out.
        kinds: Kinds of answers that it fits; all if none is named.
    """

    def completions(problem: Problem) -> Iterable[str]:
        if kinds and problem.kind not in kinds:
            return []
        return [problem.written(answer) for answer in make(problem) if answer != problem.answer]

    return Rewrite(name, kind, completions)
