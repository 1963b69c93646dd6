"""The guard against a verifier that fails."""

import pytest

from asymgrpo_app.errors import RunError
from asymgrpo_app.prompts import Countdown
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rollout.failures import FailureCount
from asymgrpo_app.rollout.types import Completion, JudgedCompletion


def group(*statuses: Status) -> list[JudgedCompletion]:
    detail = {Status.TIMEOUT: "ran longer than 10 CPU seconds"}
    return [
        JudgedCompletion(Completion([1], [0.0], False), f"text {n}", Verdict(False, status, detail.get(status, "")))
        for n, status in enumerate(statuses)
    ]


def counted(*statuses: Status) -> FailureCount:
    count = FailureCount()
    count.add([EncodedPrompt(Countdown().at(0, 0), "rendered", [1])], [group(*statuses)])
    return count


def test_only_failures_of_the_verifier_count():
    count = counted(Status.OK, Status.NO_ANSWER, Status.TIMEOUT, Status.ERROR)
    assert (count.judged, count.failed) == (4, 2)


def test_at_the_limit_a_run_goes_on_and_above_it_stops_with_an_example():
    count = counted(Status.OK, Status.OK, Status.TIMEOUT, Status.TIMEOUT)
    count.stop_above(0.5, lambda own: [own])
    with pytest.raises(RunError) as stopped:
        count.stop_above(0.49, lambda own: [own])
    prompt = Countdown().at(0, 0)
    assert str(stopped.value) == (
        "the verifier failed on 2 of 4 completions, more than rollout.max_verifier_failures (0.49) allows, for "
        f"instance: CountdownVerifier timeout (ran longer than 10 CPU seconds) at {prompt.uid}, reference "
        f"{prompt.row['answer']!r}, completion 'text 2'"
    )


def test_what_is_no_verdict_stops_a_run_whatever_its_share():
    good, bad = counted(Status.OK), FailureCount()
    detail = "TypeError: verify returned None, not a Verdict"
    judged = JudgedCompletion(Completion([1], [0.0], False), "text", Verdict(False, Status.ERROR, detail))
    prompt = Countdown().at(0, 0)
    bad.add([EncodedPrompt(prompt, "rendered", [1])], [[judged]])
    for rank in (good, bad):
        with pytest.raises(RunError) as stopped:
            rank.stop_above(1.0, lambda own: [good, bad])
        assert str(stopped.value) == (
            "a verifier must return a Verdict with True or False for every completion: CountdownVerifier error "
            f"({detail}) at {prompt.uid}, reference {prompt.row['answer']!r}, completion 'text'"
        )


def test_all_ranks_are_counted_and_all_stop():
    ranks = [counted(Status.OK), counted(Status.ERROR), counted(Status.OK)]
    for rank in ranks:
        with pytest.raises(RunError, match="1 of 3 completions"):
            rank.stop_above(0.3, lambda own: ranks)


def test_nothing_judged_is_no_failure():
    FailureCount().stop_above(0.0, lambda own: [own])
