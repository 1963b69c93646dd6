"""Measure what the tests of the algorithm and of the output head notice: change the code, and see whether tests fail.

mutmut makes the mutants, each a copy of one function with another operator, number, name or argument, and runs on each
the tests that reach it. A mutant that survives names a gap in the tests, or cannot matter; survivors.toml lists those,
with the reason. Fails if less than `LEAST_KILLED` of all mutants are killed or one survives that is not listed.

    python tests/algorithm/mutants.py [PROCESSES]
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import libcst

REPOSITORY = Path(__file__).resolve().parents[2]
STAGE = REPOSITORY / "build/mutation"
MUTATED = (Path("asymgrpo_app/algorithm"), Path("asymgrpo_app/policy/head.py"))
SURVIVORS = Path(__file__).with_name("survivors.toml")
LEAST_KILLED = 0.95

# What the exit code of a mutant's tests says; SIGXCPU ends those that take many times as long as without the mutant.
OUTCOMES = {0: "survived", 1: "killed", 3: "killed", -24: "timed out", 33: "not tested"}

# Stands in for tests/conftest.py, which these tests do without: quick tests go first, as one that fails is enough.
CONFTEST = """
import json
from pathlib import Path


def pytest_collection_modifyitems(items):
    if (stats := Path("mutmut-stats.json")).exists():
        durations = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: durations.get(item.nodeid, 0))
"""


class Mutant(NamedTuple):
    """A function, as `module.function` or `module.Class.method`, and its changed lines before and after."""

    function: str
    before: str
    after: str


class Undecorated(libcst.CSTTransformer):
    """Writes `@property def p(self)` as `def p(self)` and `p = property(p)`, and so for all decorators of functions.

    It is the same to Python, but mutmut passes over decorated functions, and the counts that every advantage is made of
    are properties.
    """

    def leave_FunctionDef(self, original_node, updated_node):  # noqa: N802
        decorators = [libcst.Module([]).code_for_node(decorator.decorator) for decorator in updated_node.decorators]
        if not decorators or "abstractmethod" in decorators:
            return updated_node
        name = updated_node.name.value
        wrapped = "".join(f"{decorator}(" for decorator in decorators) + name + ")" * len(decorators)
        plain = updated_node.with_changes(decorators=[])
        return libcst.FlattenSentinel([plain, libcst.parse_statement(f"{name} = {wrapped}")])


def mutated_files(root: Path) -> list[Path]:
    """The files that are mutated, in a copy of the repository."""
    paths = [root / path for path in MUTATED]
    return sorted(file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path]))


def stage() -> None:
    """Make a copy of what the tests need, for mutmut to work in."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for folder in ("asymgrpo_app", "tests/algorithm"):
        shutil.copytree(REPOSITORY / folder, STAGE / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (STAGE / "tests/policy").mkdir()
    for file in ("pyproject.toml", "tests/policy/test_head.py"):
        shutil.copy(REPOSITORY / file, STAGE / file)
    (STAGE / "tests/conftest.py").write_text(CONFTEST)
    for path in mutated_files(STAGE):
        path.write_text(libcst.parse_module(path.read_text()).visit(Undecorated()).code)


def run_mutmut(processes: str) -> None:
    """Let mutmut work; what comes of it stands in files beside its mutants."""
    # Children of a process whose OpenMP threads have worked hang. Other plugins of pytest take time, once per mutant.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", processes]
    subprocess.run(command, cwd=STAGE, env=environment, check=True)


def outcomes() -> Iterator[tuple[str, str, Path]]:
    """mutmut's name, outcome and file of every mutant."""
    for path in mutated_files(STAGE):
        file = path.relative_to(STAGE)
        results = STAGE / "mutants" / file.with_name(f"{file.name}.meta")
        if not results.exists():
            continue  # nothing in it to mutate
        for name, code in json.loads(results.read_text())["exit_code_by_key"].items():
            yield name, OUTCOMES.get(code, f"ended with code {code}"), file


def described(name: str, path: Path) -> Mutant:
    """What a mutant changed, in words that do not depend on the order of mutants."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    function, owner = orig_function_and_class_names_from_key(name)
    where = ".".join(part for part in (path.stem, owner, function) if part)
    lines = get_diff_for_mutant(name, path=path).splitlines()[3:]
    before, after = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return Mutant(where, before, after)


def known_survivors() -> set[Mutant]:
    """What survivors.toml lists."""
    groups = tomllib.loads(SURVIVORS.read_text())["survivors"]
    return {Mutant(*mutant) for group in groups for mutant in group["mutants"]}


def main() -> int:
    """Print the score and what is to be done; 0 if nothing is."""
    stage()
    run_mutmut(sys.argv[1] if len(sys.argv) > 1 else str(len(os.sched_getaffinity(0))))
    os.chdir(STAGE)  # where mutmut reads its files
    found = list(outcomes())
    counts = Counter(outcome for _, outcome, _ in found)
    share = (counts["killed"] + counts["timed out"]) / len(found)
    survivors = {described(name, path) for name, outcome, path in found if outcome not in ("killed", "timed out")}
    known = known_survivors()
    for title, mutants in {
        "Not killed, and not in survivors.toml": survivors - known,
        "In survivors.toml, but killed or gone": known - survivors,
    }.items():
        for mutant in sorted(mutants):
            print(f"{title}: {mutant.function}\n  - {mutant.before}\n  + {mutant.after}")
    print(f"{share:.1%} of {len(found)} mutants killed: {', '.join(f'{n} {what}' for what, n in counts.most_common())}")
    return int(share < LEAST_KILLED or bool(survivors - known))


if __name__ == "__main__":
    sys.exit(main())
