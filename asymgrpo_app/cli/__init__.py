"""The `asymgrpo` command: parse, check, run."""

from asymgrpo_app.cli.command import entry_point, main

__all__ = ["entry_point", "main"]
