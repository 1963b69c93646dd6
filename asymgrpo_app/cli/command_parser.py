"""The argument parser of the commands that are not LightningCLI's."""

import re
from typing import Any

from jsonargparse import ArgumentParser

from asymgrpo_app.cli.parser_messages import known_keys, plain
from asymgrpo_app.cli.parser_yaml import read_yaml_as_meant
from asymgrpo_app.cli.paths import expand_paths
from asymgrpo_app.errors import UserError

_REQUIRED = re.compile(r"the following arguments are required: ([\w, ]+)$")

read_yaml_as_meant()


class CommandParser(ArgumentParser):
    """An argument parser that takes whole option names alone, expands paths, and raises one-line `UserError`s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))

    def parse_args(self, *arguments: Any, **settings: Any) -> Any:
        config = super().parse_args(*arguments, **settings)
        expand_paths(config, prefix="--")
        return config

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if found := _REQUIRED.match(message):
            if not self.prog.startswith("asymgrpo "):  # the parser of the settings of a class that an option names
                raise UserError(f"the class lacks {' and '.join(found[1].split(', '))}.") from ex
            options = self.format_usage()
            names = [f"--{name}" if f"--{name} " in options else name for name in found[1].split(", ")]
            raise UserError(f"{self.prog} needs {' and '.join(names)} (see {self.prog} --help).") from ex
        raise UserError(plain(message, known_keys(self))) from ex
