"""How the parsers of all commands read and write YAML."""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.bounded_yaml import load_yaml, refuse_bomb
from asymgrpo_app.runtime.compat import bound_yaml_of_parser

_PLAIN = (bool, str, int, float)
_as_before = get_loader("yaml")


def read_yaml_as_meant() -> None:
    """Have jsonargparse read configs, the files they name, and values of options as `load_yaml` does."""
    bound_yaml_of_parser(refuse_bomb)
    set_loader("yaml", _read, (yaml.YAMLError,))
    set_dumper("yaml", written)


def _read(text: str) -> Any:
    value = load_yaml(text)
    if isinstance(value, dict) and value and not any(value.values()):
        before = _as_before(text)
        return before if isinstance(before, str) else value  # `{prompt}` is a text to jsonargparse
    return value


def written(config: Any) -> str:
    """A config as YAML that is read again as the same values.

    Raises:
        UserError: A value cannot be written; the message names its key.
    """
    return yaml.safe_dump(_plain(config, ""), default_flow_style=False, allow_unicode=True, sort_keys=False)


def _plain(value: Any, key: str) -> Any:
    """The value in types that YAML has."""
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(inner, f"{key}.{name}".strip(".")) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        inner = [_plain(item, f"{key}[{place}]") for place, item in enumerate(value)]
        return sorted(inner, key=repr) if isinstance(value, set | frozenset) else inner
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath | timedelta):
        return str(value)
    if value is None or type(value) in _PLAIN:
        return value
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind(value)
    raise UserError(
        f"{key} cannot be written to the run's config: it is an object of the class {type(value).__name__}."
    )
