"""YAML that is read only if it is of the size of a config: with aliases, a few lines stand for billions of values."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from asymgrpo_app.errors import one_line

_LARGEST = 2**20
_PER_VALUE = 2**6
_DEEPEST = 100
_LONGEST_NUMBER = 300  # characters
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxX_:.]*")
_LIMITS = f"{_LARGEST // _PER_VALUE:,} values, {_LARGEST:,} characters or {_DEEPEST} levels, aliases written out"


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML text, of plain types.

    Args:
        text: The text.
        loader: What reads it.

    Raises:
        yaml.YAMLError: It is not YAML, or more than a config can be.
    """
    refuse_bomb(text)
    with one_kind_of_error():
        return yaml.load(text, Loader=loader)


@contextmanager
def one_kind_of_error() -> Iterator[None]:
    """Raise `yaml.YAMLError` where a value is no date, no number, or whatever else its tag promises."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a value cannot be read ({one_line(str(error))})") from error


def refuse_bomb(text: str) -> None:
    """Refuse a text that holds more than a config can, each alias counted as all that it stands for.

    Raises:
        yaml.YAMLError: It is larger, nested deeper, or not YAML.
    """
    if len(text) > _LARGEST:
        raise yaml.YAMLError(f"it holds more than {_LIMITS}.")
    sizes: dict[str | None, int] = {}  # by anchor
    opened: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and size so far, of all that is not closed yet
    for event in _events(text):
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST_NUMBER and _is_number(event):
            raise yaml.YAMLError(f"it holds a number of more than {_LONGEST_NUMBER} digits.")
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, _PER_VALUE))
            sizes[event.anchor] = _LARGEST + 1  # an alias of it within itself has no end
        elif isinstance(event, yaml.CollectionEndEvent | yaml.NodeEvent):
            anchor, size = opened.pop() if isinstance(event, yaml.CollectionEndEvent) else _leaf(event, sizes)
            sizes[anchor] = size
            outer, so_far = opened[-1]
            opened[-1] = outer, so_far + size
        if opened[-1][1] > _LARGEST or len(opened) > _DEEPEST:
            raise yaml.YAMLError(f"it holds more than {_LIMITS}.")


def _is_number(event: yaml.ScalarEvent) -> bool:
    """Whether a scalar is read as a number. Python does not write out one of thousands of digits, in no message."""
    plain = not event.style and _NUMBER.fullmatch(event.value) is not None
    return plain or (event.tag or "").endswith((":int", ":float"))


def _leaf(event: Any, sizes: Mapping[str | None, int]) -> tuple[str | None, int]:
    if isinstance(event, yaml.AliasEvent):
        return event.anchor, sizes.get(event.anchor, 0)  # of one that is not known: the loader says so
    return event.anchor, _PER_VALUE + len(event.value)


def _events(text: str) -> Iterator[Any]:
    return yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
