"""Puts each fault of faults.yaml into a copy of the tree, and says whether the tests named beside it notice.

python -m tests.faults.run [NAME ...] runs all of them, or those whose name or area is given. A fault that goes
unnoticed, or whose text is no longer in its file, makes the exit code 1.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FAULTS = Path(__file__).with_name("faults.yaml")
_TIME_LIMIT_S = 1800  # a run that hangs has noticed the fault, too
_TESTS_FAILED = 1  # pytest's exit code
_BY_SIGNAL = 128  # a command's exit code after a signal is 128 and its number


@dataclass(frozen=True)
class Fault:
    """A small mistake, and where it is noticed.

    Attributes:
        name: What goes wrong.
        area: What it belongs to.
        file: The file it is in.
        old: The text in it that is replaced; it occurs once.
        new: The mistake.
        tests: What pytest is given to notice it: `-m`, a mark, and names of tests.
    """

    name: str
    area: str
    file: str
    old: str
    new: str
    tests: list[str]


def faults() -> list[Fault]:
    """All faults, in order."""
    return [Fault(**entry) for entry in yaml.safe_load(FAULTS.read_text())]


def fits(fault: Fault) -> bool:
    """Whether its text is in its file, once."""
    return (REPOSITORY / fault.file).read_text().count(fault.old) == 1


def run_tests(tests: Sequence[str], tree: Path, core: int) -> tuple[int | None, str]:
    """pytest in `tree` on one core, up to the first failure; its exit code, None if it hangs, and what it printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: _on_core(core),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=_TIME_LIMIT_S)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started would write into the next fault's tree
            return None, ""


def verdict(fault: Fault, tree: Path, core: int) -> str:
    """Run its tests with the fault in `tree`, a copy of the repository, on one core; what came of it, in a line."""
    path = tree / fault.file
    sound = path.read_text()
    path.write_text(sound.replace(fault.old, fault.new))
    started = time.monotonic()
    try:
        code, output = run_tests(fault.tests, tree, core)
    finally:
        path.write_text(sound)
    seconds = f"{time.monotonic() - started:.0f} s"
    if code is None:
        return f"noticed: the tests hang ({seconds})"
    if code == _TESTS_FAILED:
        first = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        return f"noticed: {first.split(' - ')[0].partition(' ')[2]} ({seconds})"
    if code < 0 or code > _BY_SIGNAL:
        return f"noticed: the tests' process is ended by a signal ({seconds})"
    return f"UNNOTICED ({seconds})" if code == 0 else f"NO VERDICT, pytest's code {code}: {output[-500:]}"


def _on_core(core: int) -> None:
    os.sched_setaffinity(0, {core})
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would the tests' runs


def sound(chosen: Sequence[Fault], trees: Sequence[tuple[Path, int]]) -> bool:
    """Whether all tests that are to notice something pass without any fault: else their failure says nothing."""
    names: dict[tuple[str, str], dict[str, None]] = {}  # by mark and file
    for fault in chosen:
        for name in fault.tests[2:]:
            names.setdefault((fault.tests[1], name.partition("::")[0]), {})[name] = None

    def passes(share: int) -> bool:
        tree, core = trees[share]
        for mark, file in list(names)[share :: len(trees)]:
            code, output = run_tests(["-m", mark, *names[mark, file]], tree, core)
            if code != 0:
                print(f"Without a fault pytest ends with {code} in {file}:\n{output[-2000:]}", flush=True)
                return False
        return True

    with ThreadPoolExecutor(len(trees)) as pool:
        return all(pool.map(passes, range(len(trees))))


def copy_of_tree(folder: Path) -> Path:
    """The files of the working tree that git knows or would take."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (source := REPOSITORY / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return folder


def main(chosen: Sequence[str]) -> int:
    """Run the faults that are named, or all; the number of those that were not noticed decides the exit code."""
    selected = [fault for fault in faults() if not chosen or fault.name in chosen or fault.area in chosen]
    failures = [f"{fault.name}: its text is not in {fault.file} (once)" for fault in selected if not fits(fault)]
    selected = [fault for fault in selected if fits(fault)]
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(cores)) as pool:
        trees = [(copy_of_tree(Path(folder) / str(core)), core) for core in cores]
        if not sound(selected, trees):
            return 1
        free: Queue[tuple[Path, int]] = Queue()
        for tree in trees:
            free.put(tree)

        def judge(fault: Fault) -> str:
            tree, core = free.get()
            try:
                return verdict(fault, tree, core)
            finally:
                free.put((tree, core))

        for fault, said in zip(selected, pool.map(judge, selected), strict=True):
            print(f"{fault.area}: {fault.name}: {said}", flush=True)
            if not said.startswith("noticed"):
                failures.append(f"{fault.name}: {said}")
    print(f"\n{len(selected)} faults, {len(failures)} not noticed")
    print("\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
