"""Checks every row of the training data, and shows the first prompts."""

import sys

from tqdm import tqdm

from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.prompts.inspection import EVERYTHING
from asymgrpo_app.prompts.screening import Reason
from asymgrpo_app.runtime.console import printable

_PREVIEWED = 2
_PREVIEW_CHARS = 1_000


def check_all_data(data: PromptDataModule) -> list[str]:
    """Check every row of the training data; returns the notes for the user.

    Raises:
        UserError: Some rows cannot be used, and the config says that this stops a run.
    """
    parts = data.train_source.finite_parts() if data.train_source else []
    notes = data.check(training=False)
    with tqdm(total=sum(part.size or 0 for part in parts), unit="row", disable=not sys.stderr.isatty()) as bar:
        findings = data.inspections(EVERYTHING, progress=bar.update)
    for part, found in zip(parts, findings, strict=True):
        notes.append(f"data.train: {found.seen:,} rows of {part}, {found.usable:,} of them can be used.")
        notes += [f"data.train: {line}" for line in found.notes()]
    faults = [fault for found in findings for fault in found.faults[Reason.BAD_ROW]]
    if faults and data.bad_rows == "stop":
        count = sum(found.tally.rejected[Reason.BAD_ROW] for found in findings)
        shown = " ".join(faults)
        raise UserError(
            f"{count:,} row{'s' * (count > 1)} of data.train cannot be used (repair them, or set data.bad_rows: "
            f"skip){', the first' * (count > len(faults))}: {shown}"
        )
    data.training_batch(0)
    return notes


def preview(data: PromptDataModule) -> list[str]:
    """The first prompts as the policy sees them."""
    lines = ["The first prompts, as the policy sees them:"]
    for encoded in data.preview(_PREVIEWED):
        answer = one_line(ascii(encoded.prompt.row.get("answer")))
        lines.append(f"  {encoded.prompt.uid}, {len(encoded.token_ids)} tokens, answer {answer}")
        text = encoded.rendered
        shown = text if len(text) <= _PREVIEW_CHARS else text[:_PREVIEW_CHARS] + " ..."
        lines += [f"    | {printable(line)}" for line in shown.split("\n")]
    return lines
