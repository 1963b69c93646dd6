"""Classes of completions with equal answers."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def answer_classes(answers: Sequence[T | None], equal: Callable[[T, T], bool]) -> list[int | None]:
    """Number the classes of equal answers in the order in which they appear.

    Args:
        answers: [n] answers, None for a sample without one.
        equal: The verifier's equality of answers. Each answer is compared with the first of every class, so equality
            need not be transitive.

    Returns:
        [n] classes from 0 on, None where there is no answer.
    """
    first: list[T] = []
    classes: list[int | None] = []
    for answer in answers:
        found = None
        if answer is not None:
            found = next((number for number, known in enumerate(first) if equal(known, answer)), len(first))
            if found == len(first):
                first.append(answer)
        classes.append(found)
    return classes
