"""The argument parser of the commands that are not LightningCLI's."""

from typing import Any

from jsonargparse import ArgumentParser

from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.cli.paths import expand_paths
from asymgrpo_app.errors import UserError


class CommandParser(ArgumentParser):
    """An argument parser that expands paths, and raises its errors as a one-line `UserError`."""

    def parse_args(self, *arguments: Any, **settings: Any) -> Any:
        config = super().parse_args(*arguments, **settings)
        expand_paths(config, prefix="--")
        return config

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(plain(message)) from ex
