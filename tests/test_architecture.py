"""The layers of the package, and the page that says what they are."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "asymgrpo_app"


def layers() -> list[str]:
    (contract,) = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [name for layer in contract["layers"] for name in layer.split(" | ")]


def test_no_package_imports_one_above_it():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "1 kept, 0 broken" in found.stdout


def test_the_page_names_every_package_in_the_order_of_the_layers():
    text = (REPOSITORY / "docs/architecture.md").read_text().split("## The packages")[1].split("\n## ")[0]
    named = [
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w.]+)/?`", row)
    ]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(named)
    order = layers()
    places = [order.index(name.removesuffix(".py")) for name in named]
    assert sorted(places) == places


def test_files_stay_readable():
    def lines(name: str) -> int:
        return len((PACKAGE / name).read_text().splitlines())

    assert lines("module.py") <= 250
    assert max(lines(f"cli/{path.name}") for path in (PACKAGE / "cli").iterdir() if path.suffix == ".py") <= 250


def test_every_link_to_a_file_of_the_page_is_there():
    page = REPOSITORY / "docs/architecture.md"
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
