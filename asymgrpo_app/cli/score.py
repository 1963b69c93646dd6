"""`asymgrpo score`: verdicts on a file of completions."""

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.errors import ExitCode, RunError, UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.jsonl import JsonTable
from asymgrpo_app.prompts.rows import Row, shown_value
from asymgrpo_app.rewards import Status, Verdict, Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig

_CHUNK_ITEMS = 1_000
_CHUNK_CHARS = 2**24

_DESCRIPTION = """Judge a file of completions.

Writes each line's fields with "correct", "status" (ok, no_answer, timeout or error) and "detail", and says how many
there are of each. Nothing is written if a line cannot be used."""


@dataclass(frozen=True)
class Settings:
    """Settings of the command.

    Attributes:
        path: The file of completions.
        output: The file that the verdicts are written to.
        completion_field: Field of the completion, from the command line.
        answer_field: Field of the right answer, from the command line.
    """

    path: Path
    output: Path | None
    completion_field: str
    answer_field: str | None


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
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a user's own verifier; at the end, so that it shadows no package
    parser = _parser()
    config = parser.instantiate_classes(parser.parse_args(list(arguments)))
    settings = Settings(
        Path(config.input), config.output and Path(config.output), config.completion_field, config.answer_field
    )
    table = _table(settings)
    started = time.monotonic()
    with VerifierPool(config.pool) as pool, _new_file(settings.output) as file:
        tally = _score(table, settings, config.verifier, pool, file)
    _summarise(tally, time.monotonic() - started)
    return ExitCode.OK


def _parser() -> CommandParser:
    parser = CommandParser(prog="asymgrpo score", description=_DESCRIPTION)
    parser.add_argument(
        "--verifier",
        type=Verifier,
        required=True,
        help="What judges the completions: a verifier of asymgrpo_app.rewards by name, or a class of yours as "
        "module.Class; its settings as --verifier.NAME.",
    )
    parser.add_argument("--input", type=str, required=True, help="JSON Lines: one object with a completion per line.")
    parser.add_argument("--output", type=str | None, help="JSON Lines to write; must not exist yet.")
    parser.add_argument("--completion_field", type=str, default="completion", help="The field of the completion.")
    parser.add_argument(
        "--answer_field",
        type=str | None,
        default="answer",
        help="The field of the right answer; null for a verifier that reads other fields.",
    )
    parser.add_class_arguments(VerifierPoolConfig, "pool")
    return parser


def _table(settings: Settings) -> JsonTable:
    """The lines of the file, all checked first: judging may take hours, so a bad line has to show before."""
    if not settings.path.is_file():
        raise UserError(f"--input {settings.path}: there is no such file.")
    if settings.output is not None:
        _refuse_existing(settings.output)
        if not settings.output.parent.is_dir():
            raise UserError(f"--output {settings.output}: the folder {settings.output.parent} does not exist.")
    table = JsonTable(str(settings.path), settings.path.name)
    if not len(table):
        raise UserError(f"--input {settings.path}: the file is empty.")
    for index in range(len(table)):
        _item(table.row(index), settings)
    return table


def _item(line: Row, settings: Settings) -> Item:
    row = dict(line.fields)
    completion = row.pop(settings.completion_field, None)
    if not isinstance(completion, str):
        _refuse(line, "--completion_field", settings.completion_field, "a string")
    if settings.answer_field is not None:
        answer = line.fields.get(settings.answer_field)
        if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            _refuse(line, "--answer_field", settings.answer_field, "a string that is not empty or a number")
        row["answer"] = answer
    return Item(line, completion, row)


def _refuse(line: Row, option: str, field: str, kind: str) -> Any:
    if field not in line.fields:
        fields = shown_value(list(line.fields))
        raise BadRow(f"{line.place}: the field {field!r} is missing, the line has {fields} (see {option}).")
    raise BadRow(f"{line.place}: {field!r} must be {kind}, not {shown_value(line.fields[field])}.")


def _chunks(table: JsonTable, settings: Settings) -> Iterator[list[Item]]:
    """The items in chunks, which bounds the memory they take."""
    chunk: list[Item] = []
    chars = 0
    for index in range(len(table)):
        chunk.append(_item(table.row(index), settings))
        chars += len(chunk[-1].completion)
        if len(chunk) >= _CHUNK_ITEMS or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _score(
    table: JsonTable, settings: Settings, verifier: Verifier, pool: VerifierPool, file: TextIO | None
) -> "_Tally":
    """Judge all items chunk by chunk, and write each chunk's verdicts at once."""
    tally = _Tally()
    with tqdm(total=len(table), unit=" completions", disable=not sys.stderr.isatty()) as bar:
        for chunk in _chunks(table, settings):
            _check_rows(chunk, verifier, pool)
            completions, rows = [item.completion for item in chunk], [item.row for item in chunk]
            verdicts = pool.score([verifier] * len(chunk), completions, rows)
            for item, verdict in zip(chunk, verdicts, strict=True):
                tally.add(item, verdict)
                if file is not None:
                    judged = {"correct": verdict.correct, "status": verdict.status.value, "detail": verdict.detail}
                    file.write(json.dumps({**item.line.fields, **judged}) + "\n")
            bar.update(len(chunk))
    return tally


def _check_rows(chunk: Sequence[Item], verifier: Verifier, pool: VerifierPool) -> None:
    """Refuse rows that no completion could satisfy: their completions would only seem to be wrong."""
    distinct: dict[str, Item] = {}
    for item in chunk:
        distinct.setdefault(json.dumps(item.row), item)  # the completions of a problem share it
    items = list(distinct.values())
    for item, reason in zip(items, pool.check([verifier] * len(items), [item.row for item in items]), strict=True):
        if reason is not None:
            raise BadRow(f"{item.line.place}: {type(verifier).__name__} cannot judge against it: {reason}.")


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[TextIO | None]:
    """A file under a temporary name that is renamed once it is whole; it never replaces another file."""
    if path is None:
        yield None
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            yield file
        _refuse_existing(path)
        part.rename(path)
    except OSError as error:
        raise RunError(f"--output {path} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UserError(f"--output {path} exists already: name a new file.")


class _Tally:
    """Verdicts counted by status."""

    def __init__(self) -> None:
        self.statuses: Counter[Status] = Counter()
        self.correct = 0
        self.examples: dict[Status, str] = {}

    def add(self, item: Item, verdict: Verdict) -> None:
        self.statuses[verdict.status] += 1
        self.correct += verdict.correct
        if verdict.status.failed:
            self.examples.setdefault(verdict.status, f"{item.line.place}: {verdict.detail}")


def _summarise(tally: _Tally, seconds: float) -> None:
    total = tally.statuses.total()
    print(f"{total:,} verdicts in {seconds:.1f} s, {total / seconds:,.0f} per second")
    for status in Status:
        print(f"  {status.value:<10}{tally.statuses[status]:>12,}{tally.statuses[status] / total:>9.2%}")
    print(f"  {'correct':<10}{tally.correct:>12,}{tally.correct / total:>9.2%}")
    for status, example in tally.examples.items():
        print(f"  first {status.value}: {example}")
