"""Measures the maths verifier on a file of reference answers: what it accepts, what it rejects, and how fast it is.

    python benchmarks/verifiers.py --data math_train.jsonl

Every row is a JSON object with "answer". Rows with an empty answer are left out.
"""

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asymgrpo_app.rewards import MathVerifier, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig

SENTENCE = r"Working it out step by step gives 17 and then the answer \boxed{%s}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with a field answer")
    parser.add_argument("--pairs", type=int, default=7_500, help="pairs of different answers to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    options = parser.parse_args()
    lines = options.data.read_text(encoding="utf-8").splitlines()
    answers = [str(answer) for line in lines if str(answer := json.loads(line)["answer"]).strip()]
    rows = [{"answer": answer} for answer in answers]

    refused = [reason for reason in timed("check", rows, options.workers) if reason]
    verdicts = timed("given back", rows, options.workers, [SENTENCE % answer for answer in answers])
    missed = [answer for answer, verdict in zip(answers, verdicts, strict=True) if not verdict.correct]
    pairs = draw_pairs(answers, options.pairs, options.seed)
    other_rows = [{"answer": reference} for reference, _ in pairs]
    others = timed("other rows", other_rows, options.workers, [SENTENCE % other for _, other in pairs])
    accepted = [(pair, verdict) for pair, verdict in zip(pairs, others, strict=True) if verdict.correct]

    print(f"references refused by check_row: {len(refused)} of {len(answers)}", *refused, sep="\n  ")
    print(f"given back and not accepted: {len(missed)} of {len(answers)}", *missed, sep="\n  ")
    print(f"of other rows and accepted: {len(accepted)} of {len(pairs)}", *sorted(p for p, _ in accepted), sep="\n  ")
    failures = [(pair, verdict) for pair, verdict in zip(pairs, others, strict=True) if verdict.status.failed]
    print(f"timeouts and errors: {len(failures)}", *failures, sep="\n  ")


def draw_pairs(answers: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of a reference and the answer of another row that is spelled differently."""
    draw = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        reference, other = draw.choice(answers), draw.choice(answers)
        if reference != other:
            pairs.append((reference, other))
    return pairs


def timed(
    name: str, rows: Sequence[Mapping[str, Any]], workers: int, completions: Sequence[str] | None = None
) -> list[Any]:
    """The verdicts, or without completions the reasons of `check`, of a pool whose start and end are timed too."""
    start = time.perf_counter()
    with VerifierPool(VerifierPoolConfig(workers=workers)) as pool:
        verifiers = [MathVerifier()] * len(rows)
        results: list[Verdict] | list[str | None] = (
            pool.check(verifiers, rows) if completions is None else pool.score(verifiers, completions, rows)
        )
    seconds = time.perf_counter() - start
    print(f"{name}: {len(rows)} in {seconds:.1f} s, {len(rows) / seconds:.0f} a second", flush=True)
    return list(results)


if __name__ == "__main__":
    main()
