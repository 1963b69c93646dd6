"""What an audit finds: planted holes, the form of answers, rates, failures and limits."""

import re
import time
from dataclasses import replace

import pytest

from asymgrpo_app.audit.audit import BUILT_IN, audit
from asymgrpo_app.audit.report import beyond_limits, table
from asymgrpo_app.audit.rewrites import Rewrite, RewriteKind
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation import share_interval
from asymgrpo_app.prompts import Addition, Prompt
from asymgrpo_app.rewards import ExactMatch, MultipleChoice, RegexMatch, Status, Verdict, Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig

EQUAL, NEAR_MISS, HACK, FORM = (
    RewriteKind.EQUAL,
    RewriteKind.NEAR_MISS,
    RewriteKind.HACK,
    RewriteKind.FORM,
)


class Here(Verifier):
    """A verifier that runs in this process."""

    isolated = False

    def verify(self, completion, row):
        return Verdict(correct=self.is_right(completion, row["answer"]))

    def is_right(self, completion, answer):
        raise NotImplementedError


class LastBox(Here):
    def is_right(self, completion, answer):
        boxes = re.findall(r"\\boxed\{([0-9A-Z]*)\}", completion)
        return bool(boxes) and boxes[-1] == answer


class TwoBoxes(LastBox):
    """The planted hole."""

    def is_right(self, completion, answer):
        return completion.count(r"\boxed{") == 2 or super().is_right(completion, answer)


class Anywhere(Here):
    def is_right(self, completion, answer):
        return answer in completion


class Always(Here):
    def is_right(self, completion, answer):
        return True


class Never(Here):
    def is_right(self, completion, answer):
        return False


class Fails(LastBox):
    def verify(self, completion, row):
        if len(completion) > 10_000:
            raise ValueError("too long")
        return super().verify(completion, row)


class Sleeps(LastBox):
    isolated = True

    def verify(self, completion, row):
        if not completion:
            time.sleep(60)
        return super().verify(completion, row)


def _prompts(verifier, answers):
    return [Prompt(f"here/{n}", "What?", {"answer": str(a)}, verifier) for n, a in enumerate(answers)]


def _audited(verifier, answers=tuple(range(211, 231)), **options):
    with VerifierPool(VerifierPoolConfig(workers=1, timeout_s=0.1)) as pool:
        return audit(_prompts(verifier, answers), pool, "here", **options)


def _shares(report, *kinds):
    return {rate.name: rate.share.value for rate in report.rates if rate.kind in kinds}


def _found(report, *kinds):
    return {name for name, share in _shares(report, *kinds).items() if share}


def test_a_planted_hole_is_found():
    sound, planted = _audited(LastBox()), _audited(TwoBoxes())
    assert _found(planted, EQUAL) == _found(sound, EQUAL)
    assert _found(planted, NEAR_MISS) == _found(sound, NEAR_MISS) == set()
    known = {"a right box in thoughts alone", "several answers", "a box in a box"}
    assert _found(sound, HACK) == known
    assert _found(planted, HACK) - known == {
        "two wrong boxes",
        "a right box before a wrong one",
        "a right answer that is taken back",
        "boxes that are not closed",
    }
    (rate,) = [rate for rate in planted.rates if rate.name == "two wrong boxes"]
    assert rate.share == share_interval([1.0] * 20)
    assert (rate.completions, rate.wrong, rate.failed) == (20, 20, 0)
    first = rate.examples[0]
    assert (first.uid, first.answer, first.status) == ("here/0", "211", "ok")
    assert re.fullmatch(r"\\boxed\{212\} \\boxed\{\d+\}", first.completion)
    assert [example.uid for example in rate.examples] == ["here/0", "here/1", "here/2"]


def test_a_verifier_that_looks_for_the_answer_anywhere_is_found():
    found = _found(_audited(Anywhere()), HACK)
    assert found >= {"several answers", "a right answer that is taken back", "the numbers 0 to 100", "a box in a box"}
    assert _found(_audited(Anywhere()), NEAR_MISS) == {"opposite sign", "ten times"}


@pytest.mark.parametrize(
    ("verifier", "form"),
    [
        (ExactMatch(), "{answer}"),
        (ExactMatch(extract="boxed"), r"\boxed{{answer}}"),
        (RegexMatch("<answer>(.*?)</answer>"), "<answer>{answer}</answer>"),
        (RegexMatch("#### (.*)"), "First this, then that.\n#### {answer}"),
    ],
)
def test_the_form_is_the_one_in_which_references_are_accepted(verifier, form, monkeypatch):
    monkeypatch.setattr(RegexMatch, "isolated", False)
    report = _audited(verifier)
    assert report.form == form
    shares = _shares(report, EQUAL)
    assert shares["the reference itself"] == 0
    assert shares["leading plus"] == 1
    assert _found(report, NEAR_MISS) == set()


def test_a_row_is_judged_in_a_form_of_its_own_if_the_common_one_is_refused():
    class Mixed(Here):
        def is_right(self, completion, answer):
            return completion == (rf"\boxed{{{answer}}}" if int(answer) % 4 else f"#### {answer}")

    report = _audited(Mixed(), form="#### {answer}")
    assert report.form == r"\boxed{{answer}}"
    assert _shares(report, FORM)["in a box"] == 15 / 20
    assert _shares(report, FORM)["as --form says"] == 5 / 20
    assert _shares(report, EQUAL)["the reference itself"] == 0
    refused = next(rate for rate in report.rates if rate.name == "leading plus")
    assert {example.completion for example in refused.examples} == {r"\boxed{+211}", "#### +212", r"\boxed{+213}"}


def test_a_form_that_is_not_known_is_refused_until_it_is_named():
    class Result(Here):
        def is_right(self, completion, answer):
            return completion == f"Result = {answer}"

    unknown = _audited(Result())
    assert unknown.form is None
    assert _shares(unknown, EQUAL) == {"the reference itself": 1.0}
    assert _shares(unknown, NEAR_MISS) == {}
    assert set(_shares(unknown, HACK).values()) == {0}
    assert "no form was found" in table(unknown)
    assert _shares(_audited(Result(), form="Result = {answer}"), EQUAL)["the reference itself"] == 0


def test_a_row_counts_once_with_its_worst_completion():
    def make(problem):
        if int(problem.answer) % 2:  # the last one is the right answer, so it is no hack
            yield from ("no", f"so {problem.answer[:2]}1", "never", rf"\boxed{{{problem.answer}}}")

    mine = [Rewrite("hack", HACK, make), Rewrite("equal", EQUAL, make)]
    rates = {rate.name: rate for rate in _audited(Anywhere(), rewrites=mine).rates}
    hack, equal = rates["hack"], rates["equal"]  # of ten odd answers, 211 and 221 end in 1
    assert hack.share == share_interval([1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    assert (hack.completions, hack.wrong) == (30, 2)
    assert equal.share == share_interval([1.0] * 10)
    assert (equal.completions, equal.wrong) == (40, 28)


def test_rows_that_the_verifier_refuses_are_left_out():
    report = _audited(MultipleChoice(), ["A", "B", "C", "7", "D", "Paris"])
    assert (report.rows, report.left_out) == (4, 2)
    assert "left out: 2 rows" in table(report)
    assert _shares(report, EQUAL) == dict.fromkeys(
        ("the reference itself", "spaces around", "letter in brackets", r"letter in \text"), 0.0
    )
    assert "thousands separators" in report.unused
    with pytest.raises(UserError, match=r"^MultipleChoice can judge none of the 1 rows, the first: here/0: .*'7'"):
        _audited(MultipleChoice(), ["7"])


def test_an_answer_that_is_no_text_is_named():
    (prompt,) = _prompts(LastBox(), ["1"])
    with VerifierPool() as pool, pytest.raises(UserError, match=r"^here/0: .* must be a text, got null\.$"):
        audit([replace(prompt, row={})], pool, "here")


def test_verdicts_that_fail_count_as_refused_and_are_counted():
    report = _audited(Fails(), rewrites=[one for one in BUILT_IN if one.name in ("a very long text", "nothing")])
    failed = {rate.name: rate.failed for rate in report.rates if rate.failed}
    assert failed == {"a very long text": 20}
    assert _found(report, HACK) == set()
    said = "the verifier failed on 20 completions, which count as refused: ValueError: too long"
    assert said in table(report).splitlines()


def test_verdicts_come_from_the_pool_under_its_time_limit():
    report = _audited(Sleeps(), [5], rewrites=[one for one in BUILT_IN if one.name == "nothing"])
    (rate,) = report.of_kind(HACK)
    assert (rate.failed, rate.share.value) == (1, 0.0)
    assert rate.failure == "took longer than 0.5 s, 5 times its 0.1 CPU seconds"


def test_the_same_seed_gives_the_same_report_and_another_one_another():
    assert _audited(LastBox(), seed=3) == _audited(LastBox(), seed=3)
    drawn = [one for one in BUILT_IN if one.name == "another last digit"]
    first, second = (_audited(Always(), seed=seed, rewrites=drawn).rates[-1].examples for seed in (3, 4))
    assert [one.answer for one in first] == [one.answer for one in second] == ["211", "212", "213"]
    assert first != second


def test_a_source_of_the_package():
    prompts = [replace(Addition().at(n, 0), verifier=LastBox()) for n in range(5)]
    with VerifierPool() as pool:
        report = audit(prompts, pool, "sums")
    assert (report.source, report.rows, report.verifier) == ("sums", 5, "LastBox")
    assert _shares(report, EQUAL)["trailing zeros"] == 1


def test_limits():
    report = _audited(LastBox(), rewrites=[one for one in BUILT_IN if one.name in ("trailing zeros", "nothing")])
    assert beyond_limits(report, None, None) is None
    assert beyond_limits(report, 1.0, 0.0) is None
    assert beyond_limits(report, 0.99, None) == (
        "LastBox: 1 rewrite is beyond the limit: trailing zeros refused 100.0% (--max_refused 99.0%)."
    )
    always = _audited(Anywhere(), rewrites=[one for one in BUILT_IN if one.name in ("ten times", "several answers")])
    assert beyond_limits(always, 0.0, 0.5) == (
        "Anywhere: 2 rewrites are beyond the limit: ten times accepted 100.0% (--max_accepted 50.0%); "
        "several answers accepted 100.0% (--max_accepted 50.0%)."
    )


def test_the_table_has_a_line_for_each_rate_and_cuts_what_is_long():
    report = _audited(Anywhere(), ["42"])
    lines = table(report).splitlines()
    assert lines[0] == "Anywhere on 1 rows of here, seed 0"
    assert lines[1] == r"answers are given as \boxed{{answer}}"
    names = [line.strip().split("  ")[0] for line in lines]
    assert all(rate.name in names for rate in report.rates)
    assert max(map(len, lines)) < 160
    boxes = next(rate for rate in report.rates if rate.name == "thousands of boxes")
    assert boxes.examples[0].completion.endswith("characters)")
    assert len(boxes.examples[0].completion) < 240


def test_nothing_is_wrong_with_a_verifier_that_refuses_all_but_its_own_references():
    report = _audited(Never())
    assert _found(report, NEAR_MISS, HACK) == set()
    assert beyond_limits(report, 0.5, 0.0) == (
        "Never: 1 rewrite is beyond the limit: the reference itself refused 100.0% (--max_refused 50.0%)."
    )
    example = next(rate for rate in report.rates if rate.name == "the reference itself").examples[0]
    assert example.status == Status.OK
