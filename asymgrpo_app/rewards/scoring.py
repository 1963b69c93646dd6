"""Judging many completions."""

from collections.abc import Mapping, Sequence
from typing import Any

from asymgrpo_app.rewards.base import Verdict, Verifier


def score(verifier: Verifier, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """One verdict per completion, in order.

    Args:
        verifier: Judges each completion against its row.
        completions: N texts.
        rows: N mappings with at least `answer`.

    Raises:
        ValueError: The two sequences differ in length.
    """
    return [verifier.verify(text, row) for text, row in zip(completions, rows, strict=True)]
