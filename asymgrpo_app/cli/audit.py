"""Find the holes of a verifier before a policy does.

Rewrites the right answers of some rows and reports, with 95 % intervals and examples, how often equal answers written
otherwise are refused, and near misses and known reward hacks are accepted. docs/audit.md lists the rewrites.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asymgrpo_app.audit.audit import BUILT_IN, REFERENCE, audit
from asymgrpo_app.audit.forms import named_forms
from asymgrpo_app.audit.own_rewrites import read_rewrites
from asymgrpo_app.audit.problems import ANSWER
from asymgrpo_app.audit.report import beyond_limits, table
from asymgrpo_app.audit.rewrites import Rewrite
from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.cli.commands import long_options
from asymgrpo_app.cli.config_files import check_config_file, config_paths
from asymgrpo_app.cli.own_classes import find_own_classes
from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.errors import ExitCode, UserError, at_least_1, user_error_in, with_key
from asymgrpo_app.evaluation.files import refuse_existing, write_record
from asymgrpo_app.prompts import Prompt, PromptSource
from asymgrpo_app.rewards import Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from asymgrpo_app.runtime.compat import key_of
from asymgrpo_app.runtime.console import complain, say


def run(arguments: Sequence[str]) -> int:
    """Audit a verifier; returns the exit code, 1 if a limit is exceeded.

    Raises:
        UserError: The arguments, a file or the data cannot be used.
        RunError: The report cannot be written, or worker processes do not start.
    """
    given = long_options(arguments)
    find_own_classes(given)
    parser = CommandParser(prog="asymgrpo audit", description=__doc__)
    parser.add_argument("--config", type=Path | None, default=None, help="Config of a run, for its data and verifier.")
    parser.add_argument(
        "--set", type=str | None, default=None, help="Set of data.validation of --config; null: data.train."
    )
    parser.add_function_arguments(audit_verifier, skip={"settings"})
    if len(files := config_paths(given)) > 1:
        raise UserError(f"asymgrpo audit reads one --config, got {len(files)}: name the file that has the data.")
    parsed = parser.parse_args(given)
    if parsed.config is not None:
        if parsed.source is not None:
            raise UserError("--source and --config both name the data: give one of them.")
        parsed = parser.parse_args([*_options_of(parsed.config, parsed.set), *given])
    elif parsed.set is not None:
        raise UserError(f"--set {parsed.set} names a set of a config: give --config, too.")
    try:
        options = parser.instantiate_classes(parsed)
    except (UserError, ValueError, TypeError) as error:
        # The parser wraps a constructor's complaint about an optional class in one of its own.
        raise UserError(with_key(str(user_error_in(error) or plain(str(error))), key_of(error))) from error
    del options["config"], options["set"]
    return audit_verifier(**options, settings=json.loads(parser.dump(parsed, format="json", skip_none=False)))


def audit_verifier(
    source: PromptSource | None = None,
    verifier: Verifier | None = None,
    rows: int = 200,
    seed: int = 0,
    form: str | None = None,
    rewrites: Path | None = None,
    skip: list[str] | None = None,
    max_refused: float | None = None,
    max_accepted: float | None = None,
    output: Path | None = None,
    pool: VerifierPoolConfig = VerifierPoolConfig(),  # noqa: B008 (frozen)
    settings: Mapping[str, Any] | None = None,
) -> int:
    r"""Audit a verifier on the rows of a source.

    Args:
        source: Where rows come from: a source of asymgrpo_app.prompts by name, or a class of yours as module.Class; its
            settings as --source.NAME.
        verifier: What is audited, named likewise; null: the verifier of the source.
        rows: Rows to rewrite; all of a source that has fewer.
        seed: Seed of the rows and of what is drawn.
        form: A form in which completions give their answer, e.g. "Result = {answer}", for a verifier that accepts none
            of the usual ones.
        rewrites: A YAML file with further rewrites, a list of entries with name, kind (equal, near_miss or hack), and
            either template ("The answer is {answer}.") or function (called as f(answer, row)).
        skip: Names of rewrites to leave out.
        max_refused: Exit with code 1 if an equal rewrite is refused in a larger share of its rows; null: never.
        max_accepted: Exit with code 1 if a near miss or a hack is accepted in a larger share of its rows; null: never.
        output: JSON file to write; must not exist yet.
        pool: The processes that judge.
        settings: The parsed options, for the file.
    """
    at_least_1("--rows", rows)
    for option, limit in (("--max_refused", max_refused), ("--max_accepted", max_accepted)):
        if limit is not None and not 0 <= limit <= 1:
            raise UserError(f"{option} is a share from 0 to 1, got {limit}.")
    if form is not None and ANSWER not in form:
        raise UserError(f"--form {form!r} must hold {ANSWER}, which stands for the answer.")
    if output is not None:
        refuse_existing(output, option="--output")
    if source is None:
        raise UserError("asymgrpo audit needs --source or --config (see asymgrpo audit --help).")
    chosen = _chosen(rewrites, skip or [])
    prompts = _prompts(source, rows, seed)
    if verifier is not None:
        prompts = [replace(prompt, verifier=verifier) for prompt in prompts]
    with VerifierPool(pool) as started:
        report = replace(audit(prompts, started, str(source), chosen, seed, form), settings=dict(settings or {}))
    say(table(report))
    if output is not None:
        write_record(output, report)
    if (sentence := beyond_limits(report, max_refused, max_accepted)) is not None:
        complain(f"asymgrpo: {sentence}")
        return ExitCode.FAILURE
    return ExitCode.OK


def _chosen(own: Path | None, skip: Sequence[str]) -> list[Rewrite]:
    """The rewrites of this package and of a user's file, without those to be left out."""
    taken = {REFERENCE, *named_forms(""), *(rewrite.name for rewrite in BUILT_IN)}
    found = [*BUILT_IN, *(read_rewrites(own, taken) if own is not None else [])]
    if unknown := [name for name in skip if name not in {rewrite.name for rewrite in found}]:
        raise UserError(f"--skip: there is no rewrite {unknown[0]!r}; docs/audit.md lists them.")
    return [rewrite for rewrite in found if rewrite.name not in skip]


def _prompts(source: PromptSource, rows: int, seed: int) -> list[Prompt]:
    """Different rows in the order of training."""
    count = rows if source.size is None else min(rows, source.size)
    drawn = (source.at(position, seed) for position in range(count))
    return list({prompt.uid: prompt for prompt in drawn}.values())


def _options_of(path: Path, name: str | None) -> list[str]:
    """The data of a config and the limits of its verifiers, as options of this command.

    Raises:
        UserError: It cannot be read, or has no such data.
    """
    check_config_file(path)
    data = load_yaml(path.read_text(encoding="utf-8")).get("data", {})
    if not isinstance(data, dict):
        raise UserError(f"--config {path}: data must be keys with values to be audited, got {data!r:.100}.")
    if name is None:
        key, source = "data.train", data.get("train")
    else:
        sets = data.get("validation")
        chosen = sets.get(name) if isinstance(sets, dict) else None
        key, source = f"data.validation.{name}.source", chosen.get("source") if isinstance(chosen, dict) else None
    if source is None:
        raise UserError(f"--config {path} has no {key}: name a config with data, or the data with --source.")
    options = [f"--source={json.dumps(source, default=str)}"]
    if data.get("verifiers") is not None:
        options.append(f"--pool={json.dumps(data['verifiers'], default=str)}")
    return options
