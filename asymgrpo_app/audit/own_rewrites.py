"""Rewrites of users, from a YAML file."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from asymgrpo_app.audit.problems import ANSWER, Problem
from asymgrpo_app.audit.rewrites import Make, Rewrite, RewriteKind
from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.evaluation.files import checked
from asymgrpo_app.runtime.bounded_yaml import load_yaml

OwnFunction = Callable[[str, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Entry:
    """An entry of the file.

    Attributes:
        name: Name of the rewrite.
        kind: What it makes.
        template: A completion, with `{answer}` in place of the reference.
        function: Import path of a function `f(answer, row)` that returns a completion, several, or None for none.
    """

    name: str
    kind: Literal["equal", "near_miss", "hack"]
    template: str | None = None
    function: str | None = None


def read_rewrites(path: Path, taken: set[str]) -> list[Rewrite]:
    """Read the rewrites of a file, a list of entries.

    Args:
        path: The file.
        taken: Names that other rewrites have.

    Raises:
        UserError: It cannot be read, an entry is not sound, or a name is taken.
    """
    where = f"--rewrites {path}"
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where}: not YAML in UTF-8 ({one_line(str(error))}).") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: expected a list of entries with name, kind, and template or function.")
    entries = checked(list[Entry], content, where)
    seen = set(taken)
    for entry in entries:
        if not entry.name.strip() or entry.name in seen:
            raise UserError(f"{where}: the name {entry.name!r} is empty or taken: every rewrite needs its own.")
        seen.add(entry.name)
    return [Rewrite(entry.name, RewriteKind(entry.kind), _make(entry, f"{where}: {entry.name}")) for entry in entries]


def _make(entry: Entry, where: str) -> Make:
    if (entry.template is None) == (entry.function is None):
        raise UserError(f"{where} must have either template or function.")
    if entry.function is not None:
        return _called(_found(entry.function, where), where)
    template = entry.template or ""
    if ANSWER not in template and entry.kind != "hack":
        raise UserError(f"{where}: the template {template!r} of kind {entry.kind} must hold {ANSWER}.")
    return lambda problem: [template.replace(ANSWER, problem.answer)]


def _found(path: str, where: str) -> OwnFunction:
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{where}: function must be a module and a name, e.g. my_rewrites.in_words, got {path!r}.")
    try:
        function: OwnFunction = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: the function {path} cannot be loaded: {error}.") from error
    if not callable(function):
        raise UserError(f"{where}: {path} is no function.")
    return function


def _called(function: OwnFunction, where: str) -> Make:
    def make(problem: Problem) -> list[str]:
        try:
            made = function(problem.answer, dict(problem.row))
        except Exception as error:  # whatever a user's function may raise
            raise UserError(
                f"{where}: the function failed on the answer {problem.answer!r:.100} of {_place(problem)}: "
                f"{type(error).__name__}: {one_line(str(error))}."
            ) from error
        texts = [made] if isinstance(made, str) else [] if made is None else made
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where}: the function must return a text, a list of texts or None, got {made!r:.100} "
                f"({_place(problem)})."
            )
        return [*texts]

    return make


def _place(problem: Problem) -> str:
    return problem.prompt.place or problem.prompt.uid
