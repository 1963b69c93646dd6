"""Tries the second verifier before a run: on rows, on right and on wrong answers, and against the first."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lightning.pytorch import Trainer

from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.checks.verifiers import (
    EMPTY,
    LONG_S,
    WRONG,
    Trial,
    forms,
    judged_trials,
    notes_of,
    of_each_verifier,
    training_prompts,
)
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.prompts.rows import shown_value
from asymgrpo_app.rollout.second_opinion import KEY, SecondOpinion


def check_second_opinion(data: PromptDataModule, trainer: Trainer) -> list[str]:
    """Call the second verifier of a training run, if it has one; returns notes, one sentence each.

    Notes say which rows it refuses, that it calls an empty completion right, and where it calls wrong what the verifier
    of the data calls right: the reference itself.

    Raises:
        UserError: It raises, hangs, returns something else than a verdict, or can judge none of the rows.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    second = next((each.second_opinion for each in callbacks if isinstance(each, VLLMRolloutCallback)), None)
    if second is None:
        return []
    judged, notes = _readable(training_prompts(data), second, data)
    pairs = [(prompt, replace(prompt, verifier=second.verifier)) for prompt in of_each_verifier(judged)]
    notes += _same(pairs, second)
    began = time.monotonic()
    judged_trials([Trial("data.train", pairs[0][0], forms(pairs[0][0])[0])], data.pool)
    judged_trials([Trial(f"{KEY}.verifier", pairs[0][1], EMPTY)], data.pool)
    if time.monotonic() - began > LONG_S:
        return notes
    given = [(pair, text) for pair in pairs for text in (*forms(pair[0]), WRONG, EMPTY)]
    seconds = judged_trials([Trial(f"{KEY}.verifier", own, text) for (_, own), text in given], data.pool)
    firsts = judged_trials([Trial("data.train", prompt, text) for (prompt, _), text in given], data.pool)
    return notes + notes_of(seconds) + _disagreements(firsts, seconds)


def _readable(
    prompts: Sequence[EncodedPrompt], second: SecondOpinion, data: PromptDataModule
) -> tuple[list[EncodedPrompt], list[str]]:
    """The prompts whose rows the second verifier can judge, and a note on the others.

    Raises:
        UserError: It can judge none.
    """
    reasons = data.pool.check([second.verifier] * len(prompts), [encoded.prompt.row for encoded in prompts])
    refused = [(encoded, reason) for encoded, reason in zip(prompts, reasons, strict=True) if reason is not None]
    if not refused:
        return list(prompts), []
    encoded, reason = refused[0]
    first = f"the first: {encoded.prompt.place or encoded.prompt.uid}: {reason}"
    if len(refused) == len(prompts):
        raise UserError(
            f"{KEY}.verifier: {second.name} cannot judge any of {len(prompts):,} rows of data.train, {first}; choose a "
            "verifier that reads their references, or leave the second opinion out."
        )
    judged = [encoded for encoded, reason in zip(prompts, reasons, strict=True) if reason is None]
    return judged, [
        f"{KEY}: {second.name} cannot judge {len(refused):,} of {len(prompts):,} rows, whose answers get no second "
        f"opinion, {first}"
    ]


def _same(pairs: Iterable[tuple[Prompt, Prompt]], second: SecondOpinion) -> list[str]:
    """A warning if the second verifier is the first once more."""
    if any(
        type(first.verifier) is type(own.verifier) and str(vars(first.verifier)) == str(vars(own.verifier))
        for first, own in pairs
    ):
        return [f"WARNING: {KEY}: {second.name} is the verifier of data.train itself, so it agrees with it always."]
    return []


def _disagreements(firsts: Sequence[Trial], seconds: Sequence[Trial]) -> list[str]:
    """Where the reference, given back, is right for the first verifier alone; one warning for each first verifier."""
    found: dict[str, str] = {}
    for first, second in zip(firsts, seconds, strict=True):
        assert first.verdict is not None
        assert second.verdict is not None
        told = first.completion not in (WRONG, EMPTY)
        if told and first.verdict.correct and not second.verdict.correct:
            names = [type(trial.prompt.verifier).__name__ for trial in (second, first)]
            found.setdefault(
                names[1],
                f"WARNING: {KEY}: {names[0]} calls wrong what {names[1]} calls right, the reference itself "
                f"({first.prompt.place or first.prompt.uid}), given back as {shown_value(first.completion)}: such "
                "answers count as disagreement.",
            )
    return list(found.values())
