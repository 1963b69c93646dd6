"""Judges many completions with one verifier."""

from collections.abc import Mapping, Sequence
from typing import Any

from asymgrpo_app.rewards.base import Verdict, Verifier
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
        ValueError: The two sequences differ in length.
    """
    if len(completions) != len(rows):
        raise ValueError(f"there are {len(completions)} completions, but {len(rows)} rows")
    if pool is not None:
        return pool.score([verifier] * len(rows), completions, rows)
    with VerifierPool() as own_pool:
        return own_pool.score([verifier] * len(rows), completions, rows)
