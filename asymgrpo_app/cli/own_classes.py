"""Where a user's own classes are found: in the working directory, and only if the config names one that is there."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_DOTTED = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w/])")
_BETWEEN = re.compile(r"[\s'\"=,]+")
_SUFFIX = re.compile(r"\.ya?ml\b")
_LONGEST_CONFIG = 1 << 20  # bytes


def find_own_classes(arguments: Sequence[str]) -> None:
    """Append the working directory to `sys.path` if arguments or config files name a module in it.

    At the end, so that it shadows no package. Never without need: libraries look for optional packages, and would run
    whatever has the name of one in a folder that only holds data.
    """
    here = Path.cwd()
    words = (word for text in _texts(arguments) for word in _DOTTED.findall(text))
    if str(here) not in sys.path and any(_is_module(here, word) for word in set(words)):
        sys.path.append(str(here))


def _is_module(folder: Path, word: str) -> bool:
    """Whether a dotted word begins with a module of the folder."""
    *modules, _ = word.split(".")
    paths = [folder.joinpath(*modules[: depth + 1]) for depth in range(len(modules))]
    return any(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in paths)


def _texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, those of the config files that they name, and so on."""
    pending, seen = list(texts), set[str]()
    while pending:
        yield (text := pending.pop())
        for name in set(_config_names(text)) - seen:
            seen.add(name)
            path = Path(name)
            with contextlib.suppress(OSError, ValueError):  # the parser says what is wrong with it
                if path.is_file() and path.stat().st_size <= _LONGEST_CONFIG:
                    pending.append(path.read_text(encoding="utf-8"))


def _config_names(text: str) -> Iterator[str]:
    """Words that are names of config files; with what follows the suffix left out, as in `[a.yaml]`."""
    for word in _BETWEEN.split(text):
        if ends := [found.end() for found in _SUFFIX.finditer(word)]:
            yield word[: ends[-1]]
