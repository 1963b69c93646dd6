"""Paths in configs and options as a shell would read them: `~`, `~user`, `$NAME` and `${NAME}`."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from asymgrpo_app.errors import UserError

_WORDS = "path|paths|dir|folder|file|files|policy|tokenizer|input|output|results|plot|name"
_PATH_KEY = re.compile(rf"(?:.*_)?(?:{_WORDS})|dirpath")
_CLASS = "class_path"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand_paths(config: Any, prefix: str = "") -> None:
    """Expand the paths of a parsed config, in place: the texts, also in lists, under keys with the name of a path.

    Args:
        config: Namespaces, mappings and lists, as a parser makes them.
        prefix: What stands before its keys in messages.

    Raises:
        UserError: A path names a user or a variable that there is not; the message has the key.
    """
    for holder, place, key in _places(config, prefix):
        holder[place] = expanded(key, holder[place])


def expanded(key: str, value: Any) -> Any:
    """A path with its `~` and variables expanded; one that exists as it is written stays as it is.

    Raises:
        UserError: There is no such user, or a variable is not set or empty.
    """
    text = str(value)
    if not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return value
    for match in _VARIABLE.finditer(text):
        name = match[1] or match[2]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise UserError(
                f"{key} {text}: the variable {name} is {state} in the environment: set it, or give the path."
            )
    found = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 (Path.expanduser raises for unknown users)
    if found.startswith("~"):
        user = found[1:].partition("/")[0]
        raise UserError(
            f"{key} {text}: there is no user {user} on this machine: write ./{found} for a folder of that name."
        )
    return type(value)(found)


def expand_config_names(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with the names of config files expanded: no shell does that for `--config=~/my.yaml`.

    Raises:
        UserError: As for `expanded`.
    """
    done = list(arguments)
    for index, argument in enumerate(done):
        option, equals, name = argument.partition("=")
        if option == "--config" and equals:
            done[index] = f"--config={expanded('--config', name)}"
        elif option in ("--config", "-c") and index + 1 < len(done):
            done[index + 1] = expanded("--config", done[index + 1])
    return done


def _places(config: Any, key: str) -> Iterator[tuple[Any, Any, str]]:
    """Where paths are: what holds each, its index or name there, and its key in messages."""
    is_list = isinstance(config, MutableSequence)
    holder = vars(config) if isinstance(config, Namespace) else config
    for place, value in list(enumerate(holder) if is_list else holder.items()):
        named = f"{key}[{place}]" if is_list else _joined(key, str(place))
        if isinstance(value, Namespace | MutableMapping | MutableSequence):
            yield from _places(value, named)
        elif isinstance(value, str | Path):
            word = re.sub(r"\[\d+\]", "", named).rpartition(".")[2].lstrip("-")
            if word != _CLASS and _PATH_KEY.fullmatch(word):
                yield holder, place, named


def _joined(key: str, name: str) -> str:
    """`init_args` is left out, as in options of the command line."""
    if name == "init_args":
        return key
    return f"{key}{name}" if not key or key == "--" else f"{key}.{name}"
