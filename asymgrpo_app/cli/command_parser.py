"""The parser of the commands that stand beside LightningCLI's."""

from typing import Any

from jsonargparse import ArgumentParser

from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.errors import UserError


class CommandParser(ArgumentParser):
    """A parser whose complaints are one line and go through `UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(plain(message)) from ex
