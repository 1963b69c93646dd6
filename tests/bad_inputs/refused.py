"""What must hold of every case: one sentence and code 2, before anything is written or a model's weights are read."""

import json
import subprocess
import sys
from typing import Any

from tests.bad_inputs.case import BadInput
from tests.support.paths import REPOSITORY


def run_tables(*tables: str) -> dict[str, dict[str, Any]]:
    """What every case of some tables did, from a process of their own: in this one a test may have imported vLLM."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bad_inputs.run_all", *tables],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


def assert_refused(case: BadInput, did: dict[str, Any]) -> None:
    """One sentence names key and value, and nothing is touched."""
    assert did["crash"] == ""
    assert did["code"] == 2
    assert did["out"] == ""
    (line,) = did["error"].splitlines()
    assert line.startswith("asymgrpo: error: ")
    for told in case.told:
        assert told in line
    assert "typing." not in line
    assert "<class" not in line
    assert not did["written"]
    assert case.opens or did["weights"] == []
    assert not did["vllm"]


def assert_check_says_what_fit_says(results: dict[str, dict[str, Any]]) -> None:
    """`check` looks at every row, and counts the broken ones before it names them."""
    sentences = {name: did["error"].removeprefix("asymgrpo: error: ").strip() for name, did in results.items()}
    pairs = [(f"check:{name.removeprefix('fit:')}", name) for name in results if name.startswith("fit:")]
    pairs = [(check, fit) for check, fit in pairs if check in results]
    assert len(pairs) > 40
    assert [name for name, fit in pairs if sentences[fit] not in sentences[name]] == []
