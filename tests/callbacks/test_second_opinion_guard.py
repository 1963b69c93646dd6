"""When second opinions stop a run, and what is kept of them."""

import pytest

from asymgrpo_app import VLLMRolloutCallback
from asymgrpo_app.callbacks.second_opinion import SecondOpinionGuard
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.rewards import ExactMatch, NumericMatch
from asymgrpo_app.rollout.second_opinion import Opinions, SecondOpinion


def guard(**settings) -> SecondOpinionGuard:
    return SecondOpinionGuard(SecondOpinion(NumericMatch(), **settings))


def opinions(*wrong: bool, first: int = 0) -> Opinions:
    """One opinion on each of some problems."""
    found = Opinions(accepted=len(wrong), drawn=len(wrong))
    for index, each in enumerate(wrong, first):
        found.disagreed[index].append(each)
        if each:
            found.examples[index] = f"problem {index}"
    return found


def look(at: SecondOpinionGuard, *ranks: Opinions) -> dict[str, float]:
    """One step; its metrics of the first rank, or the error."""
    metrics = StepMetrics()
    at.look_at(ranks[0], metrics, 1, lambda own: list(ranks))
    at.keep()
    return metrics.combined(lambda own: [own])


def steps_until_stopped(at: SecondOpinionGuard) -> int:
    """Steps of one problem each, all called wrong, up to the one that stops the run."""
    for step in range(1, 200):
        try:
            look(at, opinions(True))
        except RunError:
            return step
    raise AssertionError("nothing stops it")


@pytest.mark.parametrize(("limit", "at_first", "later"), [(0.05, 3, 10), (0.1, 3, 16), (0.2, 4, 28)])
def test_a_hole_stops_a_run_after_so_many_disagreements(limit, at_first, later):
    """The numbers of docs/verifiers.md."""
    assert steps_until_stopped(guard(max_disagreement=limit)) == at_first
    long_good = guard(max_disagreement=limit)
    for _ in range(10):
        look(long_good, opinions(*[False] * 50))
    assert steps_until_stopped(long_good) == later


def test_one_unlucky_answer_stops_nothing():
    for before in range(100):
        one = guard()
        look(one, opinions(*[False] * before, True))


def test_answers_to_one_problem_are_one_value():
    many = Opinions(drawn=8)
    many.disagreed[0] += [True] * 8
    many.examples[0] = "problem 0"
    one = guard()
    assert look(one, many)["second_opinion/lower_end"] == 0.0
    assert one.state_dict()["values"] == [1.0]


def test_a_step_without_a_disagreement_stops_nothing():
    one = guard(max_disagreement=0.9)
    look(one, opinions(*[True] * 5))
    one.config = SecondOpinion(NumericMatch(), max_disagreement=0.0)
    assert look(one, opinions(False))["second_opinion/lower_end"] > 0.3
    with pytest.raises(RunError):
        look(one, opinions(True))


def test_all_ranks_are_counted_and_all_stop():
    ranks = [opinions(True, first=2), opinions(True, True)]
    for _ in ranks:
        with pytest.raises(RunError) as stopped:
            look(guard(), *ranks)
        assert str(stopped.value) == (
            "in RL step 1 the second opinion, NumericMatch, calls 100.0% of the accepted answers wrong (the last 3 "
            "problems, 95 % interval from 13.9% to 100.0%), more than rollout.second_opinion.max_disagreement (0.1) "
            "allows: the policy may have found a hole in the verifier, or the second one is wrong, for instance: "
            "problem 0; problem 1; problem 2"
        )


def test_what_is_no_verdict_stops_the_run():
    with pytest.raises(RunError, match=r"second_opinion.verifier must return a Verdict .*: mine"):
        look(guard(), opinions(False), Opinions(no_verdict="mine"))


def test_a_step_that_is_given_up_is_not_kept():
    one = guard()
    look(one, opinions(False, False))
    one.look_at(opinions(True), StepMetrics(), 2, lambda own: [own])
    assert one.state_dict()["values"] == [0.0, 0.0]


def test_a_guard_that_goes_on_from_a_state_sees_what_the_other_sees():
    first, second = guard(), guard()
    look(first, opinions(*[False] * 20, True))
    second.load_state_dict(first.state_dict())
    assert look(second, opinions(False, True)) == look(first, opinions(False, True))
    shorter = guard(window=2)
    shorter.load_state_dict(first.state_dict())
    assert shorter.state_dict()["values"] == [0.0, 1.0]
    other = SecondOpinionGuard(SecondOpinion(ExactMatch()))
    other.load_state_dict(first.state_dict())
    assert other.state_dict() == {"verifier": "asymgrpo_app.rewards.exact.ExactMatch", "values": []}


def test_a_second_verifier_that_gives_hardly_any_opinion_is_told_once(capsys):
    one = guard()
    for _ in range(2):
        look(one, Opinions(accepted=9, drawn=4, refused=1, failed=2, failure="NumericMatch error (no) at mine/1"))
    assert capsys.readouterr().out == (
        "WARNING: of 4 second opinions in step 1 only 1 were given: NumericMatch failed, for instance: NumericMatch "
        "error (no) at mine/1\n"
    )
    two = guard()
    look(two, Opinions(accepted=9, drawn=4, refused=2))
    assert capsys.readouterr().out == ""
    look(two, Opinions(accepted=9, drawn=4, refused=3))
    assert capsys.readouterr().out == (
        "WARNING: of 4 second opinions in step 1 only 1 were given: NumericMatch refused the row\n"
    )


def test_a_verifier_alone_is_refused():
    with pytest.raises(UserError, match="must be a SecondOpinion, got NumericMatch: give it as SecondOpinion"):
        VLLMRolloutCallback(second_opinion=NumericMatch())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"verifier of rollout.second_opinion must be an object of a Verifier class"):
        SecondOpinion(len)  # type: ignore[arg-type]
