"""What must hold of a single change: what `check` passes, `fit` does; all else is one sentence and code 2.

python -m tests.single_changes.promise NUMBER [SEED] tries that many changes, and prints those that break it.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.single_changes.changes import BASE, STOPPING, Change, changes, leaves
from tests.support.clean_process import Ended, run, run_afresh
from tests.support.paths import REPOSITORY
from tests.support.two_steps import DONE

_QUICKSTART = REPOSITORY / "configs/quickstart.yaml"


def keys() -> tuple[str, ...]:
    """The dotted keys of the resolved config."""
    with tempfile.TemporaryDirectory() as folder:
        ended = run(["fit", f"--config={_QUICKSTART}", "--print_config"], Path(folder), {}, Path(folder))
    return tuple(leaves(yaml.safe_load(ended.out)))


class BrokenError(AssertionError):
    """The promise is broken."""


def assert_promise(change: Change, place: Path) -> str:
    """Try a change in an empty folder; returns what became of it: `refused` or `fits`.

    Raises:
        BrokenError: With the change, and what was said.
    """
    folder, logs = place / "work", place / "logs"
    for made in (folder, logs, place / "home", place / "tmp"):
        made.mkdir()
    (folder / "base.yaml").write_text(BASE)
    arguments = [f"--config={_QUICKSTART}", "--config=base.yaml", *change.arguments]
    if change.config:
        (folder / "change.yaml").write_text(change.config)
        arguments.append("--config=change.yaml")
    for name, text in change.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text(text)
    done = place / "done"
    environment: dict[str, str | None] = {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        DONE: str(done),
        **change.environment,
    }

    def command(verb: str, *options: str) -> Ended:
        if change.environment:
            return run_afresh([verb, *options], folder, environment)
        return run([verb, *options], folder, environment, logs)

    before = _there(place)
    checked = command("check", *arguments)
    _demand("Traceback" not in checked.out + checked.error, change, "check has a traceback", checked)
    _demand(_there(place) == before, change, f"check wrote {sorted(_there(place) - before)}", checked)
    if checked.code != 0:
        _demand(checked.code == 2, change, f"check ends with {checked.code}", checked)
        _one_sentence(change, checked)
        fitted = command("fit", *arguments)
        _demand(fitted.code == 2, change, f"check refuses, and fit ends with {fitted.code}", fitted)
        _demand(_there(place) == before, change, f"a refused fit wrote {sorted(_there(place) - before)}", fitted)
        _one_sentence(change, fitted)
        return "refused"
    fitted = command("fit", *arguments)
    _demand("Traceback" not in fitted.out + fitted.error, change, "fit has a traceback", fitted)
    if change.signal in STOPPING:
        if fitted.code == 0:  # its moment came after the end, or not at all
            _demand(done.exists(), change, "no two steps", fitted)
            return "fits"
        _demand(fitted.code == STOPPING[change.signal], change, f"fit ends with {fitted.code}", fitted)
        without = [a for a in arguments if a != "--config=change.yaml"]
        fitted = command("fit", *without, "--ckpt_path=last")
    _demand(fitted.code == 0, change, f"check passes, and fit ends with {fitted.code}", fitted)
    _demand(done.exists() and int(done.read_text()) in (1, 2), change, "no two steps", fitted)
    return "fits"


def _there(place: Path) -> set[str]:
    """Paths, but for logs, and the caches in the home of libraries."""
    found = (path.relative_to(place).as_posix() for path in place.rglob("*") if "__pycache__" not in path.parts)
    return {name for name in found if not name.startswith(("logs", "home/.", "done"))}


def _one_sentence(change: Change, ended: Ended) -> None:
    lines = ended.error.splitlines()
    sentence = len(lines) == 1 and re.match(r"asymgrpo: error: .*\S", lines[0])
    _demand(bool(sentence), change, "not one sentence", ended)
    _demand(ended.out == "", change, "something on stdout beside the sentence", ended)


def _demand(holds: bool, change: Change, what: str, ended: Ended) -> None:
    if not holds:
        raise BrokenError(f"{change.says}: {what}\n{ended.out[-3_000:]}\n{ended.error[-3_000:]}")


def main(number: int, start: int | None) -> int:
    """Try changes and print those that break the promise; the same ones for the same seed."""
    counts: dict[str, int] = {}

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(change=changes(keys()))
    def try_one(change: Change) -> None:
        with tempfile.TemporaryDirectory() as place:
            try:
                outcome = assert_promise(change, Path(place))
            except BrokenError as error:
                outcome = "BROKEN"
                print(f"==== {error}", flush=True)
            else:
                print(f"{outcome}: {change.says}", flush=True)
        counts[outcome] = counts.get(outcome, 0) + 1

    (try_one if start is None else seed(start)(try_one))()
    print(counts)
    return 1 if counts.get("BROKEN") else 0


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
