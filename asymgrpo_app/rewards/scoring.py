"""Judges many completions with one verifier."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from asymgrpo_app.rewards.base import Verdict, Verifier
from asymgrpo_app.rewards.functions import checked_verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool


def score(
    verifier: Verifier,
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    pool: VerifierPool | None = None,
) -> list[Verdict]:
    """One verdict per completion, in order.

    Args:
        verifier: Judges each completion against its row.
        completions: N texts.
        rows: N mappings with at least `answer`.
        pool: The pool that isolated verifiers run in; a pool for this call alone if left out.

    Raises:
        UserError: It is no verifier.
        ValueError: The two sequences differ in length.
    """
    checked_verifier(verifier, "score")
    if len(completions) != len(rows):
        raise ValueError(f"there are {len(completions)} completions, but {len(rows)} rows")
    with VerifierPool() if pool is None else nullcontext(pool) as used:
        return used.score([verifier] * len(rows), completions, rows)
