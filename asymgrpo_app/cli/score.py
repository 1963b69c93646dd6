"""Judge a file of completions.

Writes each line's fields with "correct", "status" (ok, no_answer, timeout or error) and "detail", and says how many
there are of each. Nothing is written if a line cannot be used, unless --bad_rows is skip.
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tqdm import tqdm

from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.cli.own_classes import find_own_classes
from asymgrpo_app.errors import ExitCode, UserError
from asymgrpo_app.evaluation.files import refuse_existing, whole_file
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.jsonl import JsonTable
from asymgrpo_app.prompts.references import unread_solution
from asymgrpo_app.prompts.values import Row, as_text, field_value, only_element, shown_value
from asymgrpo_app.rewards import Status, Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.runtime.console import printable, say

_CHUNK = 1_000  # completions in memory at a time
_NAMED = 3  # of the rows that are left out


@dataclass(frozen=True)
class Item:
    """One completion with the row to judge it against."""

    line: Row
    completion: str
    row: Mapping[str, Any]


@dataclass
class LeftOut:
    """Rows that are left out.

    Attributes:
        count: How many there are.
        first: Why the first few are.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, reason: BadRow) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(str(reason))


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
    bad_rows: Literal["stop", "skip"] = "stop",
    pool: VerifierPoolConfig = VerifierPoolConfig(),  # noqa: B008 (frozen)
) -> None:
    """Judge the completions of a file.

    Args:
        verifier: What judges the completions: a verifier of asymgrpo_app.rewards by name, or a class of yours as
            module.Class; its settings as --verifier.NAME.
        input: JSON Lines: one object with a completion per line.
        output: JSON Lines to write; must not exist yet.
        completion_field: The field of the completion; dots reach into objects and lists, e.g. messages.-1.content.
        answer_field: The field of the right answer, named likewise; null for a verifier that reads other fields.
        bad_rows: Handling of a line that cannot be read, or that the verifier cannot judge against: stop with a message
            and write nothing, or skip it, count it, and name the first few.
        pool: The processes that judge.
    """
    table = _table(input, output)

    def items(left_out: LeftOut | None) -> Iterator[Item]:
        return _items(table, lambda line: _item(line, completion_field, answer_field, verifier), left_out)

    unread, left_out = (LeftOut(), LeftOut()) if bad_rows == "skip" else (None, None)
    for _ in items(unread):  # judging may take hours, so a bad line has to show before
        pass
    _refuse_if_none_is_left(unread, len(table), input)
    file = contextlib.nullcontext() if output is None else whole_file(output, option="--output")
    with VerifierPool(pool) as started, file as opened:
        summary = _judge(items(left_out), len(table), verifier, started, opened, left_out)
        _refuse_if_none_is_left(left_out, len(table), input)
    summary.tell(left_out)


def _table(input: Path, output: Path | None) -> JsonTable:  # noqa: A002
    if not input.is_file():
        raise UserError(f"--input {input}: there is no such file.")
    if output is not None:
        refuse_existing(output, option="--output")
        if not output.parent.is_dir():
            raise UserError(f"--output {output}: the folder {output.parent} does not exist.")
    table = JsonTable(str(input), input.name)
    if not len(table):
        raise UserError(f"--input {input}: the file is empty.")
    return table


def _items(table: JsonTable, made: Callable[[Row], Item], left_out: LeftOut | None) -> Iterator[Item]:
    for index in range(len(table)):
        try:
            item = made(table.row(index))
        except BadRow as error:
            if left_out is None:
                raise
            left_out.add(error)
        else:
            yield item


def _refuse_if_none_is_left(left_out: LeftOut | None, total: int, input: Path) -> None:  # noqa: A002
    if left_out is not None and left_out.count == total:
        raise UserError(f"--input {input}: none of its {total:,} lines can be judged, the first: {left_out.first[0]}")


def _item(line: Row, completion_field: str, answer_field: str | None, verifier: Verifier) -> Item:
    row = dict(line.fields)
    completion = _field(line, completion_field, "--completion_field")
    row.pop(completion_field, None)
    if not isinstance(completion, str):
        raise BadRow(f"{line.place}: {completion_field!r} must be a string, not {shown_value(completion)}.")
    if answer_field is not None:
        found = _field(line, answer_field, "--answer_field")
        answer = as_text(only_element(found))
        if answer is None:
            kind = "a string that is not empty or a number"
            raise BadRow(f"{line.place}: {answer_field!r} must be {kind}, not {shown_value(found)}.")
        if unread_solution(answer, verifier) is not None:
            raise BadRow(
                f"{line.place}: {answer_field!r} holds a whole solution, which no answer equals for "
                f"{type(verifier).__name__}: name a field with the answer alone, seen the end "
                f"{shown_value(answer[-40:])}."
            )
        row["answer"] = answer
    return Item(line, completion, row)


def _field(line: Row, name: str, option: str) -> Any:
    try:
        return field_value(line, name)
    except BadRow as error:
        raise BadRow(f"{str(error).removesuffix('.')} (see {option}).") from error


@dataclass
class Summary:
    """What became of the completions.

    Attributes:
        seconds: Time that judging took.
        counts: Verdicts by status, and those that are `correct`.
        examples: The first verdict of each status that is a failure.
    """

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[Status, str] = field(default_factory=dict)

    def tell(self, left_out: LeftOut | None) -> None:
        """Print it, and which rows were left out."""
        total = sum(self.counts[status] for status in Status)
        say(f"{total:,} verdicts in {self.seconds:.1f} s, {total / self.seconds:,.0f} per second")
        for name in (*Status, "correct"):
            say(f"  {name:<10}{self.counts[name]:>12,}{self.counts[name] / total:>9.2%}")
        for status, example in self.examples.items():
            say(f"  first {status}: {printable(example)}")
        if left_out is not None and left_out.count:
            say(f"  {left_out.count:,} left out, among them:")
            for reason in left_out.first:
                say(f"    {printable(reason)}")


def _judge(
    items: Iterator[Item],
    total: int,
    verifier: Verifier,
    pool: VerifierPool,
    file: BinaryIO | None,
    left_out: LeftOut | None,
) -> Summary:
    """Judge all items chunk by chunk, and write each chunk's verdicts at once."""
    began = time.monotonic()
    summary = Summary()
    with tqdm(total=total, unit=" completions", disable=not sys.stderr.isatty()) as bar:
        while read := list(islice(items, _CHUNK)):
            chunk = _usable(read, verifier, pool, left_out)
            completions, rows = [item.completion for item in chunk], [item.row for item in chunk]
            verdicts = pool.score([verifier] * len(chunk), completions, rows)
            for item, verdict in zip(chunk, verdicts, strict=True):
                summary.counts[verdict.status] += 1
                summary.counts["correct"] += verdict.correct
                if verdict.status.failed:
                    summary.examples.setdefault(verdict.status, f"{item.line.place}: {verdict.detail}")
                if file is not None:
                    judged = {"correct": verdict.correct, "status": verdict.status.value, "detail": verdict.detail}
                    file.write(f"{json.dumps({**item.line.fields, **judged})}\n".encode())
            bar.update(len(read))
    summary.seconds = time.monotonic() - began
    return summary


def _usable(chunk: Sequence[Item], verifier: Verifier, pool: VerifierPool, left_out: LeftOut | None) -> Sequence[Item]:
    """The items without those whose row no completion could satisfy, which would only seem to be wrong.

    Raises:
        BadRow: There is one, and none may be left out.
    """
    distinct = {json.dumps(item.row): item.row for item in chunk}  # the completions of a problem share it
    reasons = dict(zip(distinct, pool.check([verifier] * len(distinct), list(distinct.values())), strict=True))
    usable = []
    for item in chunk:
        reason = reasons[json.dumps(item.row)]
        if reason is None:
            usable.append(item)
            continue
        refused = BadRow(f"{item.line.place}: {type(verifier).__name__} cannot judge against it: {reason}.")
        if left_out is None:
            raise refused
        left_out.add(refused)
    return usable
