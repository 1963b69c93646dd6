#!/usr/bin/env python3
r"""Write the problem files of configs/recipes from the hub: {"problem": ..., "answer": ...} in each line.

    .venv/bin/python tools/problem_files.py gsm8k math

The answer is what GSM8K has after `####`, and the content of the last \boxed{} in a solution of MATH. Rows without one
are left out and counted.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymgrpo_app.rewards.extraction import last_boxed


def gsm8k_answer(row: Mapping[str, Any]) -> str | None:
    """What stands after the mark, without separators of thousands."""
    _, mark, answer = row["answer"].rpartition("####")
    return answer.strip().replace(",", "") if mark else None


def math_answer(row: Mapping[str, Any]) -> str | None:
    """The content of the last box."""
    return last_boxed(row["solution"]) or None


@dataclass(frozen=True)
class Origin:
    """Where problems come from.

    Attributes:
        name: The data set's id on the hub.
        config: Its configuration.
        problem_field: The column of the problem.
        answer: The right answer of a row, or None if there is none.
    """

    name: str
    config: str
    problem_field: str
    answer: Callable[[Mapping[str, Any]], str | None]


ORIGINS = {
    "gsm8k": Origin("openai/gsm8k", "main", "question", gsm8k_answer),
    "math": Origin("DigitalLearningGmbH/MATH-lighteval", "default", "problem", math_answer),
}


def write(rows: Sequence[Mapping[str, Any]], origin: Origin, path: Path) -> int:
    """Write the rows that have an answer; returns how many that are."""
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for row in rows:
            answer = origin.answer(row)
            if answer is not None:
                file.write(json.dumps({"problem": row[origin.problem_field], "answer": answer}) + "\n")
                written += 1
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(ORIGINS))
    parser.add_argument("--folder", type=Path, default=Path("data"))
    options = parser.parse_args(arguments)
    from datasets import load_dataset

    for name in options.names:
        origin = ORIGINS[name]
        for split in ("train", "test"):
            rows = load_dataset(origin.name, origin.config, split=split)
            path = options.folder / f"{name}_{split}.jsonl"
            print(f"{path}: {write(rows, origin, path):,} of {len(rows):,} rows.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
