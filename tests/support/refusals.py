"""Commands that must be refused."""

from collections.abc import Sequence
from typing import Any

from asymgrpo_app.cli import main


def refusal(arguments: Sequence[str], capsys: Any) -> str:
    """The one sentence that a command is refused with; its exit code must be 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asymgrpo: error: ")
    return line
