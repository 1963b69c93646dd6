"""The page of the audit: every rewrite, every shipped verifier, and the script that writes their table."""

import re

import asymgrpo_app.rewards
from asymgrpo_app.audit.audit import BUILT_IN, REFERENCE
from asymgrpo_app.rewards import Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool
from benchmarks import verifier_audit
from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs/audit.md").read_text()
SHIPPED = {
    name
    for name in asymgrpo_app.rewards.__all__
    if isinstance(kind := getattr(asymgrpo_app.rewards, name), type) and issubclass(kind, Verifier)
} - {"Verifier"}


def _first_cells(text):
    return [cell.strip() for cell in re.findall(r"^\| (.*?) \|", text, re.MULTILINE)]


def test_every_rewrite_is_on_the_page():
    part = PAGE.split("## The rewrites")[1].split("\n## ")[0]
    named = {name for cell in _first_cells(part) for name in cell.split(", ")}
    heads = {"equal answers", "near misses", "reward hacks", "---"}
    assert named - heads == {REFERENCE, *(rewrite.name for rewrite in BUILT_IN)}


def test_the_table_has_every_shipped_verifier():
    table = PAGE.split(verifier_audit.BEGIN)[1].split(verifier_audit.END)[0]
    assert {cell.split("`")[1] for cell in _first_cells(table) if "`" in cell} == SHIPPED
    assert [case.shown.split()[0] for case in verifier_audit.CASES] == [
        cell.split("`")[1] for cell in _first_cells(table) if "`" in cell
    ]
    assert len(SHIPPED) >= 8


def test_the_script_writes_the_table(tmp_path, monkeypatch, capsys):
    page = tmp_path / "audit.md"
    page.write_text(f"before\n{verifier_audit.BEGIN}old\n{verifier_audit.END}after\n")
    cases = [case for case in verifier_audit.CASES if case.shown in ("CountdownVerifier", "ExactMatch")]
    monkeypatch.setattr(verifier_audit, "CASES", cases)
    monkeypatch.setattr(verifier_audit, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["verifier_audit.py", "--rows=8"])
    verifier_audit.main()
    assert page.read_text() == (
        f"before\n{verifier_audit.BEGIN}{verifier_audit.HEAD}"
        "| `ExactMatch` | 8 of words.jsonl | `{answer}` | 100%: full stop after, in \\text, other case | none of 3 "
        "| none of 16 |\n"
        "| `CountdownVerifier` | 8 of Countdown | `{answer}` | none of 4 | none of 5 | none of 16 |\n"
        f"\n{verifier_audit.END}after\n"
    )


def test_the_data_of_the_table_can_be_judged():
    with VerifierPool() as pool:
        for case in verifier_audit.CASES:
            if case.data in ("choices.jsonl", "words.jsonl") and not case.verifier().isolated:
                report = case.audited(50, pool)
                assert (report.rows, report.left_out) == (16, 0)
