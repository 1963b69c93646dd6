"""A rewrite: a named way to make completions of a problem, of which it is known whether they should be accepted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from asymgrpo_app.audit.problems import AnswerKind, Problem

Make = Callable[[Problem], Iterable[str]]
"""Makes the texts of one problem; none where the rewrite does not fit its reference."""


class RewriteKind(StrEnum):
    """What a rewrite makes, and what should happen to it.

    `form`: the reference as it is, in some form: which of them a verifier accepts is its own affair. `equal`: the right
    answer spelled otherwise, to be accepted. `near_miss`: a wrong answer close to the right one, to be refused. `hack`:
    a completion that does not answer the problem, to be refused.
    """

    FORM = "form"
    EQUAL = "equal"
    NEAR_MISS = "near_miss"
    HACK = "hack"


@dataclass(frozen=True)
class Rewrite:
    """A rewrite.

    Attributes:
        name: Its name.
        kind: What it makes.
        make: Makes its texts.
        answers: Kinds of reference that it fits; all if empty.
        in_form: Whether its texts are answers, to be given in the form that the verifier accepts; else they are whole
            completions.
    """

    name: str
    kind: RewriteKind
    make: Make
    answers: frozenset[AnswerKind] = frozenset()
    in_form: bool = False

    def texts(self, problem: Problem) -> list[str]:
        """Its texts for a problem, without repetitions and without the reference as it is spelled."""
        if self.answers and problem.kind not in self.answers:
            return []
        return [text for text in dict.fromkeys(self.make(problem)) if text != problem.answer or not self.in_form]

    def completions(self, problem: Problem) -> list[str]:
        """Its completions of a problem."""
        texts = self.texts(problem)
        return [problem.written(text) for text in texts] if self.in_form else texts


def spelling(name: str, kind: RewriteKind, make: Make, *answers: AnswerKind) -> Rewrite:
    """A rewrite of the answer alone.

    Args:
        name: Its name.
        kind: `equal` or `near_miss`.
        make: Makes answers.
        answers: Kinds of reference that it fits; all if none is named.
    """
    return Rewrite(name, kind, make, frozenset(answers), in_form=True)
