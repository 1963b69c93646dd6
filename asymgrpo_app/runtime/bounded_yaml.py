"""YAML as people write it in configs, read only if it is of their size.

With aliases, a few lines stand for billions of values. And what YAML 1.1 takes for numbers, dates and truth values is
often meant as a text: 3:50 (230, of base 60), 010 (8), on, no, 2024-01-01, and any key.
"""

import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from asymgrpo_app.errors import one_line

_LARGEST = 2**20
_PER_VALUE = 2**6
_DEEPEST = 100
_LONGEST_NUMBER = 300  # characters
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxX_:.]*")
_INT, _FLOAT, _BOOL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")
_REAL = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORD = re.compile("true|True|TRUE|false|False|FALSE")
_ANSWER = re.compile(f"{_WORD.pattern}|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_AS_IN_YAML = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
_LIMITS = f"{_LARGEST // _PER_VALUE:,} values, {_LARGEST:,} characters or {_DEEPEST} levels, aliases written out"


class ConfigLoader(yaml.SafeLoader):
    """Reads configs: keys are texts, and each is there once; `true` and `false` alone are truth values.

    Raises:
        yaml.YAMLError: A key is no plain word, or is there a second time (YAML itself keeps the last).
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} has a key that is no plain word.")
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} sets the key {key.value!r} a second time.")
            seen.add(key.value)
        self.flatten_mapping(node)
        for key, _ in node.value:
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def resolve_as_meant(loader: Any, *, answers: bool) -> None:
    """Have a loader take plain scalars for what they look like to people: see the head of this module.

    Args:
        loader: A class of yaml's loaders, changed in place.
        answers: Whether yes, no, on and off are truth values. They are where a truth value is asked for, alone.
    """
    kept = {
        letter: [(tag, form) for tag, form in forms if tag in _AS_IN_YAML]
        for letter, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    loader.yaml_implicit_resolvers = kept
    for tag, form, letters in (
        (_INT, _INTEGER, "-+0123456789"),
        (_FLOAT, _REAL, "-+0123456789."),
        (_BOOL, _ANSWER if answers else _WORD, "yYnNtTfFoO"),
    ):
        loader.add_implicit_resolver(tag, re.compile(f"(?:{form.pattern})\\Z"), list(letters))


resolve_as_meant(ConfigLoader, answers=False)


def load_yaml(text: str) -> Any:
    """The value of a YAML text, of plain types.

    Raises:
        yaml.YAMLError: It is not YAML, sets a key twice, or is more than a config can be.
    """
    refuse_bomb(text)
    with one_kind_of_error():
        return yaml.load(text, Loader=ConfigLoader)


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
