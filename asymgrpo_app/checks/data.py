"""Looks at the data before a run: rows that cannot be used, problems that are in evaluation sets, the first prompts."""

import sys
from array import array
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from asymgrpo_app.checks.verifiers import check_verifiers
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.prompts.base import EncodedPrompt, PromptSource
from asymgrpo_app.prompts.screening import Reason, Rejected, Tally, attempt, fingerprint
from asymgrpo_app.runtime.console import printable

_READ_BEFORE_A_RUN = 20_000
_JUDGED_BEFORE_A_RUN = 512
"""Rows that are also tokenized and shown to their verifier: all in all this costs about a second."""

_CHUNK = 1_000
_PREVIEWED = 2
_PREVIEW_CHARS = 1_000
_PREVIEW_END = 300


def check_data(data: PromptDataModule, *, training: bool = True, every_row: bool = False) -> list[str]:
    """Check the templates, all evaluation sets, and rows of the training data; returns notes, one sentence each.

    Args:
        data: The data of a run.
        training: Whether the run trains.
        every_row: Whether all rows of the training data are checked, or just the first.

    Raises:
        UserError: A template does not suit the tokenizer, a verifier does not work, or a row cannot be used (in
            training data: and `bad_rows` is `stop`).
    """
    for name in (None, *data.evaluation_sets):
        data.screening(name).template.check(data.tokenizer)
    notes = []
    for name in data.evaluation_sets:
        tally = data.screened_problems(name)[1]
        if dropped := tally.rejected[Reason.TOO_LONG]:
            notes.append(
                f"data.validation.{name}: {dropped:,} of {tally.drawn:,} problems left out for too many tokens, the "
                f"first: {tally.messages[Reason.TOO_LONG][0]}"
            )
    parts = data.train_source.finite_parts() if training and data.train_source is not None else []
    limits = {} if every_row else {"read": _READ_BEFORE_A_RUN, "judged": _JUDGED_BEFORE_A_RUN}
    findings = [inspect(data, part, **limits) for part in parts]
    bad = sum(found.tally.rejected[Reason.BAD_ROW] for found in findings)
    if bad and data.bad_rows == "stop":
        messages = [message for found in findings for message in found.tally.messages[Reason.BAD_ROW]]
        raise UserError(
            f"{bad:,} of the rows of data.train cannot be used (repair them, or set data.bad_rows: skip), the first: "
            f"{' '.join(messages)}"
        )
    for part, found in zip(parts, findings, strict=True):
        if every_row:
            usable = found.tally.drawn - found.tally.rejected.total()
            notes.append(f"data.train: {found.tally.drawn:,} rows of {part}, {usable:,} of them can be used.")
        notes += [f"data.train: {line}" for line in found.notes()]
    return notes + _odd_prompts(data, training=training) + check_verifiers(data, training=training)


def _odd_prompts(data: PromptDataModule, *, training: bool) -> list[str]:
    """What is odd about the tokens around the first prompt of training, and of each set."""
    first = {"data.train": (data.screening(), data.training_batch(0).prompts[0])} if training else {}
    for name in data.evaluation_sets:
        first[f"data.validation.{name}"] = data.screening(name), data.evaluation_problems(name)[0]
    found = {key: screening.warnings(encoded) for key, (screening, encoded) in first.items()}
    return [f"WARNING: {key}: {line}" for key, lines in found.items() for line in lines]


def preview(data: PromptDataModule, max_completion_tokens: int) -> list[str]:
    """The first prompts of a training run as the policy gets them: the text of their tokens, special ones included."""
    template, limit = type(data.template).__name__, f"{max_completion_tokens:,}"
    lines = [f"The first prompts, as the policy sees them ({template}; completions of at most {limit} tokens):"]
    for encoded in data.training_batch(0).prompts[:_PREVIEWED]:
        answer = one_line(ascii(encoded.prompt.row.get("answer")))
        lines.append(f"  {encoded.prompt.uid}, {len(encoded.token_ids)} tokens, answer {answer}")
        text = encoded.rendered
        if len(text) > _PREVIEW_CHARS:  # how it ends is what the policy goes on from
            text = f"{text[: _PREVIEW_CHARS - _PREVIEW_END]} ... {text[-_PREVIEW_END:]}"
        lines += [f"    | {printable(line)}" for line in text.split("\n")]
    return lines


@dataclass
class Inspection:
    """The findings on the rows of a source.

    Attributes:
        judged: Number of rows that were also tokenized and checked by their verifier.
        tally: Outcomes of all rows that were read.
        repeated: Number of rows whose prompt an earlier row has, too.
        shared: Number of rows that are also in an evaluation set.
        first_shared: Place of the first of these, with the set's name.
    """

    judged: int
    tally: Tally = field(default_factory=Tally)
    repeated: int = 0
    shared: int = 0
    first_shared: str = ""

    def notes(self) -> list[str]:
        """Notes for the user, one sentence each."""
        read, rejected = self.tally.drawn, self.tally.rejected
        first = {reason: f"the first: {messages[0]}" for reason, messages in self.tally.messages.items() if messages}
        memory = f"the first: {self.first_shared}. Evaluations then measure memory."
        findings = [
            (rejected[Reason.BAD_ROW], read, f"cannot be used, {first.get(Reason.BAD_ROW)}"),
            (rejected[Reason.TOO_LONG], self.judged, f"left out for too many tokens, {first.get(Reason.TOO_LONG)}"),
            (self.shared, read, f"also found in an evaluation set, {memory}"),
            (self.repeated, read, "with the prompt of an earlier row."),
        ]
        return [f"{count:,} of the first {rows:,} rows {what}" for count, rows, what in findings if count]


def inspect(
    data: PromptDataModule, source: PromptSource, read: int = sys.maxsize, judged: int = sys.maxsize
) -> Inspection:
    """Inspect the first rows of a source that ends, in its own order.

    Args:
        data: The data module that the source belongs to.
        source: A source with a size.
        read: Most rows that are read, checked for their fields, and compared with the evaluation sets.
        judged: Most rows among them that are also tokenized and checked by their verifier.
    """
    assert source.size is not None
    read = min(read, source.size)
    found = Inspection(min(judged, read))
    screening = data.screening()
    prints = array("Q")
    hidden = read <= _READ_BEFORE_A_RUN or not sys.stderr.isatty()
    for start in tqdm(range(0, read, _CHUNK), str(source), unit=" rows", unit_scale=_CHUNK, disable=hidden):
        rows = [attempt(source.nth, index) for index in range(start, min(start + _CHUNK, read))]
        own = max(0, judged - start)
        outcomes = [*screening.screen(rows[:own]), *rows[own:]]
        found.tally.count(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                continue
            prompt = outcome.prompt if isinstance(outcome, EncodedPrompt) else outcome
            prints.append(fingerprint(prompt.text))
            if name := data.validation_prints.get(prints[-1]):
                found.shared += 1
                found.first_shared = found.first_shared or f"{prompt.place or prompt.uid} is in {name}"
    found.repeated = len(prints) - len(np.unique(np.frombuffer(prints, dtype=np.uint64)))
    return found
