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
        number = None
        if answer is not None:
            number = next((number for number, known in enumerate(first) if equal(known, answer)), len(first))
            first += [answer] if number == len(first) else []
        classes.append(number)
    return classes
