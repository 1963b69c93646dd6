"""Outcomes of problems, as an evaluation counts them."""

import random

from asymgrpo_app.evaluation import ProblemOutcome
from asymgrpo_app.rewards import Status


def outcome(index, correct, answers=None, **changes):
    n = len(correct)
    fields = {
        "statuses": [Status.OK] * n,
        "truncated": [False] * n,
        "lengths": [10] * n,
        "logprob_sums": [-5.0] * n,
    }
    return ProblemOutcome(index=index, correct=[bool(c) for c in correct], answers=answers, **(fields | changes))


def random_outcomes(number, samples=4, seed=0):
    draw = random.Random(seed)
    found = []
    for index in range(number):
        answers = [draw.choice([0, 1, 2, None]) for _ in range(samples)]
        found.append(
            outcome(
                index,
                [answer == 0 for answer in answers],
                answers,
                statuses=[Status.NO_ANSWER if answer is None else Status.OK for answer in answers],
                lengths=[draw.randint(1, 300) for _ in range(samples)],
                logprob_sums=[-draw.random() * 100 for _ in range(samples)],
            )
        )
    return found
