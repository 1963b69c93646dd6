"""Judge a file of completions.

Writes each line's fields with "correct", "status" (ok, no_answer, timeout or error) and "detail", and says how many
there are of each. Nothing is written if a line cannot be used.
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tqdm import tqdm

from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.cli.own_classes import find_own_classes
from asymgrpo_app.errors import ExitCode, UserError
from asymgrpo_app.evaluation.files import refuse_existing, whole_file
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.jsonl import JsonTable
from asymgrpo_app.prompts.rows import Row, is_finite, shown_value
from asymgrpo_app.rewards import Status, Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.runtime.console import printable, say

_CHUNK = 1_000  # completions in memory at a time


@dataclass(frozen=True)
class Item:
    """One completion with the row to judge it against."""

    line: Row
    completion: str
    row: Mapping[str, Any]


def run(arguments: Sequence[str]) -> int:
    """Judge a file of completions; returns the exit code.

    Raises:
        UserError: The arguments or the file cannot be used.
        RunError: The verdicts cannot be written, or worker processes do not start.
    """
    find_own_classes(arguments)
    parser = CommandParser(prog="asymgrpo score", description=__doc__)
    parser.add_function_arguments(score)
    score(**parser.instantiate_classes(parser.parse_args(list(arguments))))
    return ExitCode.OK


def score(
    verifier: Verifier,
    input: Path,  # noqa: A002 (the name of the option)
    output: Path | None = None,
    completion_field: str = "completion",
    answer_field: str | None = "answer",
    pool: VerifierPoolConfig = VerifierPoolConfig(),  # noqa: B008 (frozen)
) -> None:
    """Judge the completions of a file.

    Args:
        verifier: What judges the completions: a verifier of asymgrpo_app.rewards by name, or a class of yours as
            module.Class; its settings as --verifier.NAME.
        input: JSON Lines: one object with a completion per line.
        output: JSON Lines to write; must not exist yet.
        completion_field: The field of the completion.
        answer_field: The field of the right answer; null for a verifier that reads other fields.
        pool: The processes that judge.
    """
    if not input.is_file():
        raise UserError(f"--input {input}: there is no such file.")
    if output is not None:
        refuse_existing(output, option="--output")
        if not output.parent.is_dir():
            raise UserError(f"--output {output}: the folder {output.parent} does not exist.")
    table = JsonTable(str(input), input.name)
    if not len(table):
        raise UserError(f"--input {input}: the file is empty.")

    def items() -> Iterator[Item]:
        return (_item(table.row(index), completion_field, answer_field) for index in range(len(table)))

    for _ in items():  # judging may take hours, so a bad line has to show before
        pass
    file = contextlib.nullcontext() if output is None else whole_file(output, option="--output")
    with VerifierPool(pool) as started, file as opened:
        _judge(items(), len(table), verifier, started, opened)


def _item(line: Row, completion_field: str, answer_field: str | None) -> Item:
    row = dict(line.fields)
    completion = row.pop(completion_field, None)
    if not isinstance(completion, str):
        _refuse(line, "--completion_field", completion_field, "a string")
    if answer_field is not None:
        answer = line.fields.get(answer_field)
        if isinstance(answer, int | float) and not isinstance(answer, bool) and is_finite(answer):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            _refuse(line, "--answer_field", answer_field, "a string that is not empty or a number")
        row["answer"] = answer
    return Item(line, completion, row)


def _refuse(line: Row, option: str, field: str, kind: str) -> NoReturn:
    if field not in line.fields:
        fields = shown_value(list(line.fields))
        raise BadRow(f"{line.place}: the field {field!r} is missing, the line has {fields} (see {option}).")
    raise BadRow(f"{line.place}: {field!r} must be {kind}, not {shown_value(line.fields[field])}.")


def _judge(items: Iterator[Item], total: int, verifier: Verifier, pool: VerifierPool, file: BinaryIO | None) -> None:
    """Judge all items chunk by chunk, write each chunk's verdicts at once, and print their summary."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    examples: dict[Status, str] = {}
    with tqdm(total=total, unit=" completions", disable=not sys.stderr.isatty()) as bar:
        while chunk := list(islice(items, _CHUNK)):
            _check_rows(chunk, verifier, pool)
            completions, rows = [item.completion for item in chunk], [item.row for item in chunk]
            verdicts = pool.score([verifier] * len(chunk), completions, rows)
            for item, verdict in zip(chunk, verdicts, strict=True):
                counts[verdict.status] += 1
                counts["correct"] += verdict.correct
                if verdict.status.failed:
                    examples.setdefault(verdict.status, f"{item.line.place}: {verdict.detail}")
                if file is not None:
                    judged = {"correct": verdict.correct, "status": verdict.status.value, "detail": verdict.detail}
                    file.write(f"{json.dumps({**item.line.fields, **judged})}\n".encode())
            bar.update(len(chunk))
    seconds = time.monotonic() - began
    say(f"{total:,} verdicts in {seconds:.1f} s, {total / seconds:,.0f} per second")
    for name in (*Status, "correct"):
        say(f"  {name:<10}{counts[name]:>12,}{counts[name] / total:>9.2%}")
    for status, example in examples.items():
        say(f"  first {status}: {printable(example)}")


def _check_rows(chunk: Sequence[Item], verifier: Verifier, pool: VerifierPool) -> None:
    """Refuse rows that no completion could satisfy: their completions would only seem to be wrong."""
    distinct: dict[str, Item] = {}
    for item in chunk:
        distinct.setdefault(json.dumps(item.row), item)  # the completions of a problem share it
    reasons = pool.check([verifier] * len(distinct), [item.row for item in distinct.values()])
    for item, reason in zip(distinct.values(), reasons, strict=True):
        if reason is not None:
            raise BadRow(f"{item.line.place}: {type(verifier).__name__} cannot judge against it: {reason}.")
