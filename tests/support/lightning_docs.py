"""The tables of docs/lightning.md from the table of the checks.

python -m tests.support.lightning_docs writes them into the page.
"""

import re

from asymgrpo_app.checks import lightning_support as support
from asymgrpo_app.checks.hooks import NEVER
from asymgrpo_app.checks.options import shown
from tests.support.paths import REPOSITORY

PAGE = REPOSITORY / "docs/lightning.md"
SECTIONS = {
    "Arguments of the trainer": support.ARGUMENTS,
    "Callbacks": support.CALLBACKS,
    "Loggers": support.LOGGERS,
    "Profilers": support.PROFILERS,
    "Strategies by name": support.STRATEGIES,
    "Strategies by class": support.STRATEGY_CLASSES,
    "Plugins": support.PLUGINS,
    "Accelerators": support.ACCELERATORS,
}
"""Tables by their heading in the page."""


def table(entries) -> str:
    """A table of the page in Markdown."""
    rows = [f"| `{name}` | {_verdict(entry)} | {_text(entry)} |" for name, entry in sorted(entries.items(), key=_order)]
    return "\n".join(["| name | | |", "| --- | --- | --- |", *rows])


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for heading, entries in SECTIONS.items():
        pattern = re.compile(rf"(^#+ {heading}$.*?)^\|.*?(?=^[^|]|\Z)", re.MULTILINE | re.DOTALL)
        text, number = pattern.subn(lambda found, entries=entries: f"{found[1]}{table(entries)}\n", text, count=1)
        assert number == 1, f"no table under {heading}"
    hooks = "\n".join(["| hook | |", "| --- | --- |", *(f"| `{name}` | {said} |" for name, said in NEVER.items())])
    return re.sub(r"^\| hook .*?(?=^[^|])", f"{hooks}\n", text, count=1, flags=re.MULTILINE | re.DOTALL)


def _order(item) -> str:
    return item[0].lower()


def _verdict(entry) -> str:
    if isinstance(entry, support.Fixed) and entry.stays:
        return f"only `{shown(entry.values[0])}`"
    return "**supported**" if isinstance(entry, support.Supported) else "refused"


def _text(entry) -> str:
    if isinstance(entry, support.Fixed):
        text = entry.instead if entry.stays else f"set {entry.instead}"
        return _sentence(text)
    return _sentence(entry.text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].removesuffix('.')}." if text[0].isalpha() else f"{text.removesuffix('.')}."


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
