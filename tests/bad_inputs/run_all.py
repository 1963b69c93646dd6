"""Runs a table of cases in this one process, which must never import vLLM, and prints what each did as JSON.

python -m tests.bad_inputs.run_all TABLE... with the tables options, files, checked_files and commands
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

from asymgrpo_app.cli import main
from tests.bad_inputs import commands, files, options
from tests.bad_inputs.case import BadInput
from tests.support.once import once_per_process
from tests.support.paths import QUICKSTART, REPOSITORY

HERE = [*QUICKSTART, "--data.validation={}"]
SOUND = "a sound config"
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_opened: list[str] = []


def cases(table: str) -> dict[str, tuple[list[str], BadInput]]:
    """Arguments and case by name; some cases for both `fit` and `check`, which must refuse the same."""
    found = {}
    if table == "commands":
        for name, case in commands.CASES.items():
            given = [part for own in case.arguments for part in (HERE if own == commands.QUICKSTART else [own])]
            found[name] = given, case
        return found
    fitted, checked = {
        "files": (files.CASES, {}),
        "checked_files": ({}, files.CASES),
        # Those that are not checked end in the parser, which is the same.
        "options": (options.CASES, options.CONFLICTS | options.OTHER_CLASSES),
    }[table]
    for verb, chosen in (("fit", fitted), ("check", checked)):
        for name, case in chosen.items():
            found[f"{verb}: {name}"] = [verb, *HERE, *case.arguments], case
    return found


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(_WEIGHTS):
        _opened.append(str(arguments[0]))


def _set_up(case: BadInput) -> None:
    for name, content in case.files.items():
        path = Path(name)
        if name.endswith("/"):
            shutil.copytree(REPOSITORY / str(content), path) if content else path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _snapshot() -> dict[str, bytes | None]:
    found = (path for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


def run(arguments: list[str], case: BadInput) -> dict[str, Any]:
    """One case in an empty working directory: code, output, and what it touched."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _set_up(case)
        before = _snapshot()
        _opened.clear()
        out, error, crash = io.StringIO(), io.StringIO(), ""
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                code: int | None = int(main(arguments))
            except BaseException:
                code, crash = None, traceback.format_exc()
        weights = list(_opened)  # before the files are compared
        return {
            "code": code,
            "out": out.getvalue(),
            "error": error.getvalue().replace(str(Path.cwd()), "HERE"),  # the folder's name is another each time
            "crash": crash,
            "written": _snapshot() != before,
            "weights": weights,
            "vllm": "vllm" in sys.modules,
        }


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.addaudithook(_watch)
    done = {SOUND: run(["check", *HERE], BadInput((), ()))}
    with pytest.MonkeyPatch.context() as patch:
        once_per_process(patch)
        for table in sys.argv[1:]:
            done |= {name: run(*own) for name, own in cases(table).items()}
    print(json.dumps(done))
