"""What a check found, and the page that is made of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        passed: None if it could not be run here.
        says: One line: the figures that decided, or why it was not run.
        table: Lines of a Markdown table with further figures.
    """

    passed: bool | None
    says: str
    table: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The result in a word."""
        return {True: "pass", False: "FAIL", None: "not run"}[self.passed]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Check:
    """A check, run in a process of its own.

    Attributes:
        title: What is claimed.
        run: Checks it on a kind of device, `cuda` or, as a rehearsal, `cpu`.
        seconds: Its time limit.
    """

    title: str
    run: Callable[[str], Outcome]
    seconds: float = 120.0


def page(found: dict[str, tuple[Check, Outcome, float]], machine: Sequence[str]) -> str:
    """Markdown of all that was found: one row per check, then the tables."""
    lines = [*machine, "", "| check | result | seconds | what was found |", "| --- | --- | --- | --- |"]
    for name, (check, outcome, seconds) in found.items():
        says = outcome.says.replace("|", "\\|")
        lines.append(f"| {name}: {check.title} | {outcome.word} | {seconds:.0f} | {says} |")
    for name, (_, outcome, _) in found.items():
        if outcome.table:
            lines += ["", f"**{name}**", "", *outcome.table]
    return "\n".join(lines) + "\n"
