"""The argument parser of the commands that are not LightningCLI's."""

from typing import Any

from jsonargparse import ArgumentParser

from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.errors import UserError


class CommandParser(ArgumentParser):
    """An argument parser that raises its errors as a one-line `UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(plain(message)) from ex
