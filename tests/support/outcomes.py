"""Outcomes of problems, as an evaluation counts them."""

import random

from asymgrpo_app.evaluation.outcomes import Prediction, ProblemOutcome
from asymgrpo_app.rewards import Status


def outcome(index, correct, answers=None, statuses=None, truncated=None, lengths=None, logprob_sums=None):
    n = len(correct)
    columns = [
        map(bool, correct),
        statuses or [Status.OK] * n,
        truncated or [False] * n,
        lengths or [10] * n,
        logprob_sums or [-5.0] * n,
        answers or [None] * n,
    ]
    completions = [
        Prediction("set", f"set/{index}", index, sample, "text", *values)
        for sample, values in enumerate(zip(*columns, strict=True))
    ]
    return ProblemOutcome(completions, has_classes=answers is not None)


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
