"""Where a user's own classes are found: in the working directory, and only if the config names one that is there."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import all_suffixes
from pathlib import Path

from asymgrpo_app.cli.config_files import config_paths

_DOTTED = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w/])")
_BETWEEN = re.compile(r"[\s'\"=,:]+")
_SUFFIX = re.compile(r"\.ya?ml\b", re.IGNORECASE)
_LONGEST_CONFIG = 1 << 20  # bytes


def find_own_classes(arguments: Sequence[str]) -> None:
    """Append the working directory to `sys.path` if arguments or config files name a module in it.

    At the end, so that it shadows no package. Never without need: libraries look for optional packages, and would run
    whatever has the name of one in a folder that only holds data.
    """
    here = Path.cwd()
    texts = [*arguments, *_files(arguments)]
    words = (word for text in texts for word in _DOTTED.findall(text))
    if str(here) not in sys.path and any(_is_module(here, word) for word in set(words)):
        sys.path.append(str(here))


def _is_module(folder: Path, word: str) -> bool:
    """Whether a dotted word begins with a module of the folder."""
    *modules, _ = word.split(".")
    paths = [folder.joinpath(*modules[: depth + 1]) for depth in range(len(modules))]
    return any((path / "__init__.py").is_file() or any(map(Path.is_file, _files_of(path))) for path in paths)


def _files_of(module: Path) -> Iterator[Path]:
    return (module.with_name(module.name + suffix) for suffix in all_suffixes())


def _files(arguments: Sequence[str]) -> Iterator[str]:
    """The texts of the config files that the arguments name, of those that these name, and so on."""
    pending = [*config_paths(arguments), *(Path.cwd() / name for text in arguments for name in _config_names(text))]
    seen = set[Path]()
    while pending:
        path = pending.pop()
        with contextlib.suppress(OSError, ValueError):  # the parser says what is wrong with it
            if path not in seen and path.is_file() and path.stat().st_size <= _LONGEST_CONFIG:
                yield (text := path.read_text(encoding="utf-8"))
                # A file that another one names is searched beside it, or where the program was started.
                pending += [folder / name for name in _config_names(text) for folder in (path.parent, Path.cwd())]
        seen.add(path)


def _config_names(text: str) -> set[str]:
    """What may be the name of a config file: lines, their values, and words up to the suffix, as in `[a.yaml]`."""
    found = set[str]()
    for line in filter(_SUFFIX.search, text.splitlines()):
        value = line.partition(": ")[2] or line.partition("=")[2]
        for whole in (line, value, *_BETWEEN.split(line)):
            if ends := [match.end() for match in _SUFFIX.finditer(whole)]:
                found.add(whole[: ends[-1]].strip(" \t'\"[{-"))
    return found
