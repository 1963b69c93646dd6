"""`make first-gpu`, as far as it can be tried without a GPU: the runner, and the checks in their rehearsal."""

import pytest

from benchmarks.first_gpu.__main__ import CHECKS, main, run_alone
from benchmarks.first_gpu.outcome import Check, Outcome, page


@pytest.mark.parametrize("name", ["head", "attention", "passes"])
def test_a_check_passes_in_its_rehearsal(name):
    outcome = CHECKS[name].run("cpu")
    assert outcome.passed, outcome.says


def test_a_check_that_takes_too_long_is_ended_and_has_failed():
    assert run_alone("compilers", "cpu", 0.2) == Outcome(False, "not done within 0 s")


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["first-gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main() == 2
    assert capsys.readouterr().err == "first-gpu: torch sees no GPU here; a rehearsal without one: --device cpu.\n"


def test_the_page_has_a_row_per_check_and_then_the_tables(monkeypatch):
    check = Check("the claim", lambda device: Outcome(True, ""))
    found = {
        "one": (check, Outcome(True, "|a| is 1"), 2.4),
        "two": (check, Outcome(False, "it is not", ["| x |", "|---|", "| 1 |"]), 3.0),
        "three": (check, Outcome(None, "there is one GPU"), 0.0),
    }
    assert page(found, ["A machine."]).splitlines() == [
        "A machine.",
        "",
        "| check | result | seconds | what was found |",
        "| --- | --- | --- | --- |",
        "| one: the claim | pass | 2 | \\|a\\| is 1 |",
        "| two: the claim | FAIL | 3 | it is not |",
        "| three: the claim | not run | 0 | there is one GPU |",
        "",
        "**two**",
        "",
        "| x |",
        "|---|",
        "| 1 |",
    ]


def test_a_check_that_raises_has_failed_with_its_sentence(monkeypatch, tmp_path):
    def broken(device: str) -> Outcome:
        raise ValueError("no such kernel")

    from benchmarks.first_gpu import __main__ as runner

    monkeypatch.setitem(runner.CHECKS, "broken", Check("", broken))
    runner.run_here("broken", "cpu", tmp_path / "result")
    assert Outcome.read(tmp_path / "result") == Outcome(False, "ValueError: no such kernel")
