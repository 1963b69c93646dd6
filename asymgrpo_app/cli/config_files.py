"""Checks of config files that the parser does not make."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from asymgrpo_app.cli.commands import KEYS, SECTIONS, nearest
from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.runtime.bounded_yaml import load_yaml


def config_paths(arguments: Sequence[str]) -> list[Path]:
    """The files given with `--config` or `-c`, in order."""
    paths = []
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c") and index + 1 < len(arguments):
            paths.append(Path(arguments[index + 1]))
        elif argument.startswith("--config="):
            paths.append(Path(argument.removeprefix("--config=")))
    return paths


def check_config_file(path: Path) -> None:
    """Refuse a config file that is missing, is no YAML mapping, or sets a key twice (YAML itself keeps the last).

    Raises:
        UserError: With the file, and the line where there is one.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not a text file in UTF-8.") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected keys and values, got {type(content).__name__}.")
    for key in content:
        if key not in KEYS and (near := nearest(key, KEYS)):
            raise UserError(f"--config {path}: {key} is no key; did you mean {near}?")
    for section in SECTIONS:
        if not isinstance(content.get(section, {}), dict | str):  # the parser would drop what other files set there
            raise UserError(
                f"--config {path}: {section} must be keys with values, got {content[section]}: leave it out for its "
                "defaults."
            )
