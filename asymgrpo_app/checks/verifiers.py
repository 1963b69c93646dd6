"""Calls each verifier before a run: what it returns, what it raises, how long it takes, and what it calls right."""

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.prompts.rows import shown_value
from asymgrpo_app.prompts.screening import attempt
from asymgrpo_app.rewards import ExactMatch, MathVerifier, MultipleChoice, NumericMatch
from asymgrpo_app.rewards.base import Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool
from asymgrpo_app.rewards.pool.time_limit import TimeLimit

_ROWS = 4  # of each verifier
_READ = 512  # prompts of a set, among which verifiers are looked for
_MOST_VERIFIERS = 16  # of a source that makes them row by row
_SOON_S = 0.001  # a timer that is set to 0 never rings
LONG_S = 5.0  # for one call of each, the start of the workers included
EMPTY, WRONG = "", "I do not know."
_TAKE_REFERENCE = (ExactMatch, MathVerifier, MultipleChoice, NumericMatch)
"""The verifiers whose reference is an answer, so that it is right when given back."""


@dataclass(frozen=True)
class Trial:
    """A completion that a verifier is called with.

    Attributes:
        key: The config key of its source.
        prompt: The problem.
        completion: The text.
        verdict: The verdict, once there is one.
    """

    key: str
    prompt: Prompt
    completion: str
    verdict: Verdict | None = None


def check_verifiers(data: PromptDataModule, *, training: bool) -> list[str]:
    """Call the verifiers of training and of all evaluation sets on right, wrong and empty answers.

    Returns:
        Notes, one sentence each: an empty completion is right, or a reference is not.

    Raises:
        UserError: A verifier raises, hangs, or returns something else than a verdict.
    """
    prompts = {f"data.validation.{name}": data.evaluation_problems(name)[:_READ] for name in data.evaluation_sets}
    if training:
        prompts = {"data.train": training_prompts(data)} | prompts
    chosen = [(key, prompt) for key, found in prompts.items() for prompt in of_each_verifier(found)]
    first = {id(prompt.verifier): (key, prompt) for key, prompt in reversed(chosen)}
    # One call of each at first: one that hangs is then waited for once, and one that takes long is called once more.
    began = time.monotonic()
    judged_trials([Trial(key, prompt, forms(prompt)[0]) for key, prompt in first.values()], data.pool)
    texts = [(key, prompt, text) for key, prompt in chosen for text in (*forms(prompt), WRONG, EMPTY)]
    if time.monotonic() - began > LONG_S:
        texts = [(key, prompt, EMPTY) for key, prompt in first.values()]
    trials = judged_trials([Trial(*given) for given in texts], data.pool)
    return notes_of(trials)


def training_prompts(data: PromptDataModule) -> list[EncodedPrompt]:
    """Prompts of each part of the source, however small its share, and those of the first step."""
    assert data.train_source is not None
    found = list(data.training_batch(0).prompts)
    for part in data.train_source.parts():
        tried = [attempt(part.at, position, data.seed) for position in range(_ROWS)]
        found += [outcome for outcome in data.screening().screen(tried) if isinstance(outcome, EncodedPrompt)]
    return found


def of_each_verifier(prompts: Iterable[EncodedPrompt]) -> list[Prompt]:
    """A few prompts of each verifier."""
    found = defaultdict[int, list[Prompt]](list)
    for encoded in prompts:
        same = found[id(encoded.prompt.verifier)]
        if len(same) < _ROWS:
            same.append(encoded.prompt)
    return [prompt for same in islice(found.values(), _MOST_VERIFIERS) for prompt in same]


def forms(prompt: Prompt) -> list[str]:
    """The reference as completions; none that says so if the row has no text for an answer."""
    answer = prompt.row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return [WRONG]
    return [f"\\boxed{{{answer}}}", answer, f"The answer is {answer}"]


def judged_trials(trials: Sequence[Trial], pool: VerifierPool) -> list[Trial]:
    """Trials with their verdicts.

    Raises:
        UserError: A verifier failed on one of them.
    """
    verdicts = _in_time(trials, pool)
    for trial, verdict in zip(trials, verdicts, strict=True):
        if verdict.status.failed:
            raise UserError(_failure(trial, verdict))
    return [Trial(t.key, t.prompt, t.completion, verdict) for t, verdict in zip(trials, verdicts, strict=True)]


class _LateError(BaseException):
    """A verifier in this process took too long; no `except Exception` of its own catches it."""


def _in_time(trials: Sequence[Trial], pool: VerifierPool) -> list[Verdict]:
    """The verdicts. The user's verifiers that run in this process get the time limit that others have in the pool.

    Raises:
        UserError: One of those hangs.
    """

    def judged(given: Sequence[Trial]) -> list[Verdict]:
        prompts = [trial.prompt for trial in given]
        return pool.score([p.verifier for p in prompts], [t.completion for t in given], [p.row for p in prompts])

    if not any(map(_is_unbounded, trials)):
        return judged(trials)
    verdicts: list[Verdict] = []
    for trial in trials:
        try:
            with _alarm(pool.config.timeout_s if _is_unbounded(trial) else 0):
                verdicts += judged([trial])
        except _LateError as late:
            raise UserError(_failure(trial, Verdict(correct=False, detail=str(late)))) from None
    return verdicts


def _is_unbounded(trial: Trial) -> bool:
    verifier = trial.prompt.verifier
    return not verifier.isolated and not type(verifier).__module__.startswith("asymgrpo_app.")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_LateError` after so many CPU seconds, or several times as many by the clock, as the pool's `TimeLimit`.

    Never for 0, or where no signal can be handled.
    """
    limit = TimeLimit(seconds, time.thread_time(), time.monotonic())

    def ring(*_: object) -> None:
        cpu, now = time.thread_time(), time.monotonic()
        if late := limit.overrun(cpu, now):
            raise _LateError(late)
        signal.setitimer(signal.ITIMER_REAL, max(limit.next_look(cpu, now) - now, _SOON_S))

    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _failure(trial: Trial, verdict: Verdict) -> str:
    prompt = trial.prompt
    seen = f", the row has {shown_value(list(prompt.row))}" if verdict.detail.startswith("KeyError") else ""
    return (
        f"{trial.key}: the verifier {type(prompt.verifier).__name__} does not work: {verdict.detail}{seen} "
        f"({prompt.place or prompt.uid}, completion {shown_value(trial.completion)}); it must return a Verdict with "
        "True or False for any completion."
    )


def notes_of(trials: Sequence[Trial]) -> list[str]:
    """Warnings, one sentence each: an empty completion is right, or a reference is not."""
    found: dict[tuple[str, str], str] = {}
    of_row = defaultdict[tuple[str, int], list[Trial]](list)
    for trial in trials:
        of_row[trial.key, id(trial.prompt)].append(trial)
    for (key, _), same in of_row.items():
        prompt = same[0].prompt
        name, place = type(prompt.verifier).__name__, prompt.place or prompt.uid
        right = [trial.completion for trial in same if trial.verdict is not None and trial.verdict.correct]
        if EMPTY in right:
            found.setdefault(
                (key, f"{name} empty"), f"WARNING: {key}: {name} calls an empty completion right ({place})."
            )
        if type(prompt.verifier) in _TAKE_REFERENCE and not right and len(same) > 1:
            found.setdefault(
                (key, f"{name} reference"),
                f"WARNING: {key}: {name} does not take the reference itself for a right answer, neither as it is nor "
                f"in \\boxed{{}} ({place}): {shown_value(prompt.row.get('answer'))}.",
            )
    return list(found.values())
