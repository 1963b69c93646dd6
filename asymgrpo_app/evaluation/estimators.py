"""Unbiased estimates for one problem from its n completions: pass@k and maj@k."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import comb, fsum


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right (arXiv 2107.03374, Eq. 1).

    The binomial coefficients are whole numbers of any size, so nothing overflows or cancels for large n.

    Args:
        num_samples: n, completions drawn for the problem.
        num_correct: c of them that are right, 0 <= c <= n.
        k: Size of the draw, 1 <= k <= n.

    Returns:
        1 - C(n-c, k) / C(n, k), in [0, 1].

    Raises:
        ValueError: A number outside its range.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={num_samples}, c={num_correct}, k={k}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def maj_at_k(answers: Sequence[int | None], correct: Sequence[bool], k: int) -> float:
    """Unbiased estimate of the chance that the majority of k samples is right: the mean over all draws of k of the n.

    Samples with equal answers vote together. A sample without an answer has no vote: it never forms a majority, however
    many such samples there are, and a draw without any answer is wrong. Among the largest classes of a draw one is
    chosen uniformly at random, and the result is the expectation over that choice. If only some samples of a class are
    right (an equality that is looser than the verdict), the class is right to the share of its right samples.

    Args:
        answers: [n] class of each sample's answer, None without an answer.
        correct: [n] whether each sample is right.
        k: Size of the draw, 1 <= k <= n.

    Returns:
        The expectation, in [0, 1], computed in whole numbers up to the last division.

    Raises:
        ValueError: Lengths that differ, or k outside its range.
    """
    if len(answers) != len(correct) or not 1 <= k <= len(answers):
        raise ValueError(
            f"maj@k needs one verdict per answer and 1 <= k <= n, got {len(answers)} answers, {len(correct)} verdicts, "
            f"k={k}"
        )
    sizes = Counter(answers)
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    unanswered = sizes.pop(None, 0)
    return _majority(tuple(sorted((size, right[answer]) for answer, size in sizes.items())), unanswered, k)


@lru_cache(maxsize=65536)  # most problems of a set have one of few patterns
def _majority(classes: tuple[tuple[int, int], ...], unanswered: int, k: int) -> float:
    """`maj_at_k` of classes in a form that can be cached.

    Args:
        classes: Size and number of right samples of each class.
        unanswered: Samples without an answer.
        k: Size of the draw.
    """
    draws = comb(unanswered + sum(size for size, _ in classes), k)
    parts = []
    for number, (size, right) in enumerate(classes):
        others = [other for index, (other, _) in enumerate(classes) if index != number]
        for votes in range(1, min(size, k) + 1 if right else 0):
            for ties, ways in _rivals(others, votes, unanswered, k - votes).items():
                parts.append(comb(size, votes) * ways * right / (draws * size * (ties + 1)))
    return min(fsum(parts), 1.0)


def _rivals(others: Sequence[int], votes: int, unanswered: int, drawn: int) -> dict[int, int]:
    """Ways to draw `drawn` samples outside a class with `votes` votes so that no class beats it, by number of ties.

    Args:
        others: Sizes of the other classes.
        votes: Samples of the class itself in the draw.
        unanswered: Samples without an answer.
        drawn: Samples of the draw outside the class.
    """
    ways = Counter({(0, 0): 1})  # (samples drawn so far, classes that tie) -> number of ways
    for size in others:
        longer: Counter[tuple[int, int]] = Counter()
        for (total, ties), number in ways.items():
            for rival_votes in range(min(size, votes, drawn - total) + 1):
                longer[total + rival_votes, ties + (rival_votes == votes)] += number * comb(size, rival_votes)
        ways = longer
    by_ties: Counter[int] = Counter()
    for (total, ties), number in ways.items():
        by_ties[ties] += number * comb(unanswered, drawn - total)
    return by_ties
