"""The audit: finds the form in which a verifier accepts its references, and judges every rewrite of every row in it."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from asymgrpo_app.audit.equal import EQUAL
from asymgrpo_app.audit.forms import named_forms
from asymgrpo_app.audit.hacks import HACKS
from asymgrpo_app.audit.near_misses import NEAR_MISSES, wrong_answers
from asymgrpo_app.audit.problems import ANSWER, Problem, kind_of, other_answers
from asymgrpo_app.audit.report import AuditReport, Example, Rate
from asymgrpo_app.audit.rewrites import Make, Rewrite, RewriteKind
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.intervals import share_interval
from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.prompts.rows import shown_value
from asymgrpo_app.rewards.base import Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool

BUILT_IN: tuple[Rewrite, ...] = (*EQUAL, *NEAR_MISSES, *HACKS)
REFERENCE = "the reference itself"
"""Name of the equal answer that is spelled as the reference: refused where no form of it is accepted."""

_ROWS_AT_ONCE = 16  # a row has a hundred completions, some of which are long
_EXAMPLES = 3
_LONGEST_EXAMPLE = 200


def audit(
    prompts: Sequence[Prompt],
    pool: VerifierPool,
    source: str,
    rewrites: Sequence[Rewrite] = BUILT_IN,
    seed: int = 0,
    form: str | None = None,
) -> AuditReport:
    """Judge rewrites of the references of some rows.

    Args:
        prompts: The rows, each with its verifier.
        pool: What judges.
        source: Name of the data.
        rewrites: What is made of each row.
        seed: Seed of what is drawn.
        form: A further form in which a completion may give an answer, a text with `{answer}`.

    Raises:
        UserError: No row can be used, or a user's function fails.
        RunError: Worker processes do not start.
    """
    usable = _usable(prompts, pool)
    forms = named_forms(form)
    shapes = [Rewrite(name, RewriteKind.FORM, _writer(text)) for name, text in forms.items()]
    reference = Rewrite(REFERENCE, RewriteKind.EQUAL, lambda problem: [problem.written(problem.answer)])
    tallies = {rewrite.name: _Tally(rewrite) for rewrite in (*shapes, reference, *rewrites)}

    tried = list(_judged(_problems(usable, seed), shapes, pool, "forms"))
    problems = _in_their_form(tried, forms)
    for judged in (*tried, *_judged(problems, [reference, *rewrites], pool, "rewrites")):
        for one in judged:
            tallies[one.rewrite.name].count(one)
    used = Counter(problem.form for problem in problems if problem.accepted)
    return AuditReport(
        verifier=", ".join(dict.fromkeys(type(prompt.verifier).__name__ for prompt in usable)),
        source=source,
        seed=seed,
        rows=len(usable),
        left_out=len(prompts) - len(usable),
        form=used.most_common(1)[0][0] if used else None,
        rates=[tally.rate() for tally in tallies.values() if tally.values],
        unused=[name for name, tally in tallies.items() if not tally.values],
    )


# ---- problems ----


def _usable(prompts: Sequence[Prompt], pool: VerifierPool) -> list[Prompt]:
    """The prompts with a reference that is a text, and that their verifier can judge against."""
    for prompt in prompts:
        answer = prompt.row.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(
                f"{prompt.place or prompt.uid}: an audit rewrites the row's answer, which must be a text, got "
                f"{shown_value(answer)}."
            )
    reasons = pool.check([prompt.verifier for prompt in prompts], [prompt.row for prompt in prompts])
    usable = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
    if not usable:
        first = prompts[0]
        raise UserError(
            f"{type(first.verifier).__name__} can judge none of the {len(prompts)} rows, the first: "
            f"{first.place or first.uid}: {reasons[0]}."
        )
    return usable


def _problems(prompts: Sequence[Prompt], seed: int) -> list[Problem]:
    """The prompts as problems that no form was found for yet."""
    answers, rows = [prompt.row["answer"].strip() for prompt in prompts], [prompt.row for prompt in prompts]
    others = other_answers(answers, rows, seed)
    problems = [
        Problem(prompt, answer, kind_of(answer, prompt.row), ANSWER, other=other, seed=seed)
        for prompt, answer, other in zip(prompts, answers, others, strict=True)
    ]
    return [replace(problem, wrong=wrong_answers(problem)) for problem in problems]


def _in_their_form(tried: "Sequence[Sequence[_Judged]]", forms: Mapping[str, str]) -> list[Problem]:
    """The problems with the form in which their verifier accepts most references, or another that it accepts this in.

    Args:
        tried: Of each problem, the verdicts on all forms of its reference.
        forms: The forms by name, the preferred first.
    """
    votes = defaultdict[int, Counter[str]](Counter)
    for judged in tried:
        votes[id(judged[0].problem.prompt.verifier)].update(one.rewrite.name for one in judged if not one.wrong)
    problems = []
    for judged in tried:
        problem = judged[0].problem
        counts = votes[id(problem.prompt.verifier)]
        ranked = sorted(forms, key=lambda name: -counts[name])
        right = {one.rewrite.name for one in judged if not one.wrong}
        chosen = next((name for name in ranked if name in right), ranked[0])
        problems.append(replace(problem, form=forms[chosen], accepted=chosen in right))
    return problems


# ---- verdicts ----


@dataclass(frozen=True)
class _Judged:
    """The completions that a rewrite makes of a problem (at least one), with their verdicts."""

    problem: Problem
    rewrite: Rewrite
    completions: Sequence[str]
    verdicts: Sequence[Verdict]

    @property
    def wrong(self) -> list[tuple[str, Verdict]]:
        """The completions with a verdict that should have been another."""
        right = self.rewrite.kind in (RewriteKind.FORM, RewriteKind.EQUAL)
        pairs = zip(self.completions, self.verdicts, strict=True)
        return [(completion, verdict) for completion, verdict in pairs if verdict.correct != right]


def _judged(
    problems: Sequence[Problem], rewrites: Sequence[Rewrite], pool: VerifierPool, what: str
) -> Iterator[list[_Judged]]:
    """Yield for each problem what its verifier says of each rewrite that fits it."""
    with tqdm(total=len(problems), desc=what, unit=" rows", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(problems), _ROWS_AT_ONCE):
            chunk = problems[start : start + _ROWS_AT_ONCE]
            made = [[(rewrite, _completions(rewrite, problem)) for rewrite in rewrites] for problem in chunk]
            flat = [
                (problem.prompt, completion)
                for problem, cases in zip(chunk, made, strict=True)
                for _, completions in cases
                for completion in completions
            ]
            verdicts = iter(
                pool.score([p.verifier for p, _ in flat], [text for _, text in flat], [p.row for p, _ in flat])
            )
            for problem, cases in zip(chunk, made, strict=True):
                yield [
                    _Judged(problem, rewrite, completions, [next(verdicts) for _ in completions])
                    for rewrite, completions in cases
                    if completions
                ]
            bar.update(len(chunk))


def _completions(rewrite: Rewrite, problem: Problem) -> list[str]:
    """What a rewrite makes of a problem, without what is the right answer after all."""
    if rewrite.in_form and not problem.accepted:
        return []  # the form would be refused, whatever the spelling
    made = rewrite.completions(problem)
    if rewrite.kind in (RewriteKind.FORM, RewriteKind.EQUAL):
        return made
    right = {form.replace(ANSWER, problem.answer).strip() for form in (problem.form, *named_forms().values())}
    return [completion for completion in made if completion.strip() not in right]


def _writer(form: str) -> Make:
    return lambda problem: [form.replace(ANSWER, problem.answer)]


# ---- rates ----


@dataclass
class _Tally:
    """Counts of one rewrite over rows."""

    rewrite: Rewrite
    values: list[float] = field(default_factory=list)
    completions: int = 0
    wrong: int = 0
    failed: int = 0
    failure: str = ""
    examples: list[Example] = field(default_factory=list)

    def count(self, judged: _Judged) -> None:
        """Count one row."""
        wrong = judged.wrong
        is_form = self.rewrite.kind is RewriteKind.FORM
        self.values.append(float(bool(wrong) != is_form))
        self.completions += len(judged.completions)
        self.wrong += len(wrong)
        failures = [verdict.detail for verdict in judged.verdicts if verdict.status.failed]
        self.failed += len(failures)
        self.failure = next((detail for detail in (self.failure, *failures) if detail), "")
        if wrong and not is_form and len(self.examples) < _EXAMPLES:
            completion, verdict = wrong[0]
            problem = judged.problem
            self.examples.append(Example(problem.prompt.uid, problem.answer, _shortened(completion), verdict.status))

    def rate(self) -> Rate:
        """The rate over all rows that the rewrite fits."""
        return Rate(
            name=self.rewrite.name,
            kind=self.rewrite.kind,
            share=share_interval(self.values),
            completions=self.completions,
            wrong=self.wrong,
            failed=self.failed,
            failure=self.failure,
            examples=self.examples,
        )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}... ({len(text):,} characters)"
