"""The argument parser of the commands that are not LightningCLI's."""

from typing import Any

from jsonargparse import ArgumentParser

from asymgrpo_app.cli.parser_messages import known_keys, plain
from asymgrpo_app.cli.parser_yaml import read_yaml_as_meant
from asymgrpo_app.cli.paths import expand_paths
from asymgrpo_app.errors import UserError

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
        raise UserError(plain(message, known_keys(self))) from ex
