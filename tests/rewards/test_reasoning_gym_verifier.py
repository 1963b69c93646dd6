"""The verifier of reasoning-gym: right and wrong answers of every task, and answers that attack the scorers."""

import builtins
import os
import pickle
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.reasoning_gym import ReasoningGym
from asymgrpo_app.rewards.arithmetic import parse_arithmetic
from asymgrpo_app.rewards.base import Status, Verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.rewards.reasoning_gym.tasks import NEEDS, REFUSED, TASKS, Task, load_reasoning_gym
from asymgrpo_app.rewards.reasoning_gym.verifier import ReasoningGymVerifier
from tests.support.hostile import CANARY, CANARY_VARIABLE, attacks
from tests.support.paths import REPOSITORY

# What the lock file leaves out is not installed everywhere.
USABLE = sorted(set(load_reasoning_gym()) - set(REFUSED) - set(NEEDS))

WRONG = [
    "I do not know",
    "nan",
    "NaN + NaNi",
    "inf",
    "null",
    "[]",
    "{}",
    "[[]]",
    "[NaN]",
    "()",
    "P \u2228 \u00acP",
    "-",
    "=",
    ",",
]

REPEATED = ["(", "[", "9", "¬", "C", "1 × ", "R9 ", "0 1\n"]

MANY_RIGHT_ANSWERS = ("graph_color", "n_queens", "propositional_logic", "quantum_lock")

ATTACKS_ON_SCORERS = {
    "rubiks_cube": "R999999999999",
    "coin_flip": "1e999999999",
    "decimal_arithmetic": "1e999999999999",
    "chain_sum": "1e999999999999",
    "power_function": "1e999999",
    "prime_factorization": " × ".join(["9" * 4_000] * 5),
    "countdown": "9**9**9**9",
    "puzzle24": "9**9**9**9",
    "graph_color": "[" * 20_000,
    "jugs": str(["fill A", "empty A"] * 1_000).replace("'", '"'),
    "propositional_logic": "P∧" * 250,
    "complex_arithmetic": "(" * 10_000 + ")" * 10_000,
    "calendar_arithmetic": "9" * 4_000,
    "time_intervals": "9" * 4_000 + " days, " + "9" * 4_000 + ":0",
    "tower_of_hanoi": "Move disk 1 from Peg 99 to Peg 1\n" * 500,
}


@cache
def problem(task, position=0):
    return dict(ReasoningGym(task).at(position, seed=1).row)


@cache
def verifier(task):
    return ReasoningGymVerifier(task)


def wrong(answer):
    return Verdict(correct=False, status=Status.OK if answer.strip() else Status.NO_ANSWER)


def tagged(answer):
    return f"<answer>{answer}</answer>"


def test_our_tables_name_tasks_of_the_library():
    assert set(TASKS) | set(REFUSED) | set(NEEDS) <= set(load_reasoning_gym())
    assert not (set(TASKS) | set(NEEDS)) & set(REFUSED)


@pytest.mark.parametrize("task", USABLE)
def test_the_reference_is_right_and_wrong_answers_are_wrong(task):
    row = problem(task)
    verifier(task).check_row(row)
    assert verifier(task).verify(
        "So <answer>1</answer>, no: <answer> " + row["answer"] + "\n</answer>.", row
    ) == Verdict(correct=True)
    without_numbers = re.sub(r"[-\d.]+", "NaN", row["answer"])
    for answer in [*WRONG, without_numbers if without_numbers != row["answer"] else "?"]:
        assert verifier(task).verify(tagged(answer), row) == Verdict(correct=False), answer
    assert verifier(task).verify("nothing", row) == Verdict(correct=False, status=Status.NO_ANSWER)


def test_the_answer_of_another_problem_is_wrong():
    for task in USABLE:
        answers = {problem(task, position)["answer"]: problem(task, position) for position in range(3)}
        for answer, row in answers.items():
            verdicts = [verifier(task).verify(tagged(other), row).correct for other in answers if other != answer]
            assert sum(verdicts) == 0 or task in MANY_RIGHT_ANSWERS, task


@pytest.mark.parametrize(
    ("task", "answer", "metadata", "given", "correct"),
    [
        ("coin_flip", "0.8125", {}, "0", False),
        ("coin_flip", "0.8125", {}, "13/16", True),
        ("coin_flip", "0.8125", {}, "0.81251", True),
        ("coin_flip", "0.8125", {}, "1/0", False),
        ("complex_arithmetic", "3.0 - 2.0i", {"result": (3.0, -2.0)}, "(3-2i)", True),
        ("complex_arithmetic", "3.0 - 2.0i", {"result": (3.0, -2.0)}, "3 + 2i", False),
        ("complex_arithmetic", "1.0i", {"result": (0.0, 1.0)}, "i", True),
        ("complex_arithmetic", "3.0 - 2.0i", {"result": (3.0, -2.0)}, "nan", False),
        ("letter_jumble", "which to day", {}, "Which to day", True),
        ("letter_jumble", "which to day", {}, "which to day extra", False),
        ("word_sorting", "a, b", {"sorted_words": ["a", "b"]}, "a,b", True),
        ("word_sorting", "a, b", {"sorted_words": ["a", "b"]}, "a, b, c", False),
        ("figlet_font", "CONFIDENTIAL", {}, "confidential", True),
        ("figlet_font", "CONFIDENTIAL", {}, "confidentxyz", False),
        ("number_sorting", "['1.5', '2.0']", {"sorted_numbers": ["1.5", "2.0"]}, "[1.5, 2]", True),
        ("number_sorting", "['1.5', '2.0']", {"sorted_numbers": ["1.5", "2.0"]}, "[1.4, 2]", False),
        ("number_sorting", "['1.5', '2.0']", {"sorted_numbers": ["1.5", "2.0"]}, "[NaN, NaN]", False),
        ("number_sorting", "['1.5', '2.0']", {"sorted_numbers": ["1.5", "2.0"]}, "1.5", False),
        ("gsm_symbolic", "1344", {}, "1,344", True),
        ("gsm_symbolic", "1344", {}, "-1344", False),
        ("polynomial_equations", "-1.0, 2.5", {"real_solutions": [-1.0, 2.5]}, "2.5, -1", True),
        ("polynomial_equations", "-1.0, 2.5", {"real_solutions": [-1.0, 2.5]}, "2.5", False),
        ("polynomial_equations", "-1.0, 2.5", {"real_solutions": [-1.0, 2.5]}, "2.5, -1, nan", False),
        ("bitwise_arithmetic", "-0x1f", {}, "-31", True),
        ("bitwise_arithmetic", "-0x1f", {}, "0x1f", False),
        ("binary_matrix", "0 1\n1 0", {}, "0 1\n1 0", True),
        ("binary_matrix", "0 1\n1 0", {}, "[[0, 1], [1, 0]]", False),
        ("spiral_matrix", "1 2 3", {}, "1 2 3", True),
        ("spiral_matrix", "1 2 3", {}, "[1, 2, 3]", False),
        ("string_insertion", "ABC", {}, "ABC", True),
        ("string_insertion", "ABC", {}, "['A', 'B', 'C']", False),
        ("n_queens", "Q _\n_ Q", {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}, "_ Q\nQ _", True),
        ("n_queens", "Q _\n_ Q", {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}, "Q Q\n_ _", False),
        ("countdown", "2*(3 + 4)", {"numbers": [4, 3, 2], "target": 14}, "(4+3)*2", True),
        ("countdown", "2*(3 + 4)", {"numbers": [4, 3, 2], "target": 14}, "2*3+4", False),
        ("countdown", "2*(3 + 4)", {"numbers": [4, 3, 2], "target": 14}, "7*2", False),
        ("countdown", "2*(3 + 4)", {"numbers": [4, 3, 2], "target": 14}, "int('14')", False),
        ("puzzle24", "8/(3 - 8/3)", {"numbers": [3, 3, 8, 8]}, "8 / (3 - 8 / 3)", True),
        ("puzzle24", "8/(3 - 8/3)", {"numbers": [3, 3, 8, 8]}, "6*4*1*1", False),
        ("puzzle24", "8/(3 - 8/3)", {"numbers": [3, 3, 8, 8]}, "8*3+8/3-3", False),
    ],
)
def test_our_own_scorers(task, answer, metadata, given, correct):
    row = {"task": task, "question": "", "answer": answer, "metadata": metadata}
    verifier(task).check_row(row)
    assert verifier(task).verify(tagged(given), row) == Verdict(correct=correct)


@pytest.mark.parametrize(
    ("text", "numbers", "value"),
    [
        ("1 + 2*3", (1, 2, 3), 7),
        ("-5 + 7", (5, 7), 2),
        ("(1 - 2) - (3 - 4)", (1, 2, 3, 4), 0),
        ("8/4/2", (8, 4, 2), 1),
        ("2*-3", (2, 3), -6),
        ("((7))", (7,), 7),
    ],
)
def test_arithmetic(text, numbers, value):
    parsed = parse_arithmetic(text)
    assert parsed is not None
    assert (parsed.numbers, parsed.value) == (numbers, value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2",
        "1/0",
        "1/(2-2)",
        "(1",
        "1)",
        "()",
        "1+",
        "2**3",
        "2//3",
        "1.5",
        "a",
        "1e3",
        "٣",
        "1_0",
        "1;2",
        "(" * 32 + "1" + ")" * 32,
        "-" * 32 + "1",
        "1+" * 300 + "1",
    ],
)
def test_what_is_no_arithmetic(text):
    assert parse_arithmetic(text) is None


@pytest.mark.parametrize(
    ("answer", "completion", "found"),
    [
        ("tags", "<answer>1</answer><answer> 2 </answer>", "2"),
        ("tags", "<answer>1 <answer>2</answer>", "2"),
        ("tags", "<answer>1</answer> <answer>2", "1"),
        ("tags", "<answer> </answer>", None),
        ("tags", "</answer>1<answer>", None),
        ("tags", r"\boxed{1}", None),
        ("boxed", r"\boxed{1} and then \boxed{x^{2}}", "x^{2}"),
        ("boxed", r"<answer>1</answer> \boxed{2}", "1"),
        ("boxed", "1", None),
        ("last_line", "so\n\n 4 2 \n\n", "4 2"),
        ("last_line", " \n", None),
        ("whole", " 1\n2 ", "1\n2"),
        ("whole", "", None),
    ],
)
def test_where_the_answer_stands(answer, completion, found):
    assert ReasoningGymVerifier("gcd", answer).find_answer(completion, {}) == found


def test_tags_that_never_close_are_read_in_linear_time():
    assert verifier("gcd").find_answer("<answer>" * 500_000 + "</answer" * 500_000, {}) is None


def test_bad_rows():
    row = problem("chain_sum")
    judge = verifier("chain_sum")
    for change, message in [
        ({"task": "gcd"}, "\"task\" must be 'chain_sum', not 'gcd'"),
        ({"answer": " "}, '"answer" must be a string with at least one visible character'),
        ({"answer": None}, '"answer" must be a string with at least one visible character'),
        ({"metadata": None}, "\"metadata\" must be what the task 'chain_sum' made with the problem"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            judge.check_row(row | change)
    with pytest.raises(ValueError, match="the row's own \"answer\" is not right for 'puzzle24'"):
        verifier("puzzle24").check_row(problem("puzzle24") | {"answer": "1"})


def test_whose_fault_an_exception_is():
    row = problem("prime_factorization")
    judge = verifier("prime_factorization")
    assert judge.verify(tagged("two"), row) == Verdict(correct=False)  # the library's scorer raises on it
    assert judge.verify(tagged("two"), row | {"answer": "three"}) == Verdict(
        correct=False,
        status=Status.ERROR,
        detail="the row's own \"answer\" cannot be judged by 'prime_factorization': ValueError: invalid literal for "
        "int() with base 10: 'three'",
    )
    broken = {"task": "rectangle_count", "question": "", "answer": "x", "metadata": {}}
    assert verifier("rectangle_count").verify(tagged("3"), broken) == Verdict(correct=False)


def test_the_config_reaches_the_scorer():
    row = {"task": "decimal_arithmetic", "question": "", "answer": "1.5", "metadata": {}}
    assert verifier("decimal_arithmetic").verify(tagged("1.4995"), row).correct
    exact = ReasoningGymVerifier("decimal_arithmetic", config={"max_num_decimal_places": 5})
    assert not exact.verify(tagged("1.4995"), row).correct


def test_a_task_that_a_program_registered_is_refused(monkeypatch):
    """Its scorer was not read, and a policy would be rewarded by it."""
    own = type("OwnDataset", (), {"score_answer": lambda self, answer, entry: 1.0})
    monkeypatch.setitem(load_reasoning_gym(), "not_audited", (own, own))
    with pytest.raises(UserError, match=r"reasoning-gym 0\.1\.25 has no task 'not_audited'"):
        ReasoningGymVerifier("not_audited")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "chess"}, "reasoning-gym 0.1.25 has no task 'chess': see docs/reasoning_gym.md."),
        (
            {"task": "simple_integration"},
            "reasoning-gym's task 'simple_integration' cannot be used: its scorer evaluates the answer's text "
            "(sympy.parse_expr).",
        ),
        (
            {"task": "gcd", "config": {"max": 3}},
            "reasoning-gym's task 'gcd' has no config key 'max'; its keys are: min_numbers, max_numbers, min_value, "
            "max_value.",
        ),
        (
            {"task": "gcd", "config": {"seed": 3}},
            "reasoning-gym's task 'gcd' has no config key 'seed'; its keys are: min_numbers, max_numbers, min_value, "
            "max_value.",
        ),
        (
            {"task": "gcd", "config": {"min_value": 0}},
            "reasoning-gym's task 'gcd' refuses the config {\"min_value\": 0}: min_value must be positive.",
        ),
        ({"task": "gcd", "answer": "end"}, "answer must be one of tags, boxed, last_line, whole, not 'end'."),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(UserError) as error:
        ReasoningGymVerifier(**arguments)
    assert str(error.value) == message


class Evaluations:
    """Notes the texts that reach eval, exec and compile; sympy's parse_expr and sympify end there, too."""

    def __init__(self, monkeypatch):
        self.seen = []
        for name in ("eval", "exec", "compile"):
            monkeypatch.setattr(builtins, name, self._noting(getattr(builtins, name)))

    def _noting(self, original):
        def noting(source, *arguments, **keywords):
            self.seen.append(source)
            return original(source, *arguments, **keywords)

        return noting


def test_nothing_is_evaluated(monkeypatch):
    hostile = list(attacks().values())
    rows = {task: problem(task) for task in USABLE}
    for task, row in rows.items():
        verifier(task).verify(tagged("1"), row)  # what is imported on first use
    evaluations = Evaluations(monkeypatch)
    for number, (task, row) in enumerate(rows.items()):
        for text in hostile[number % 2 :: 2]:
            verdict = verifier(task).verify(tagged(text), row)
            assert not verdict.correct, (task, text[:80])
            assert not verdict.status.failed, (task, text[:80], verdict.detail)
    assert evaluations.seen == []
    assert not CANARY.exists()
    assert CANARY_VARIABLE not in os.environ


def test_the_library_does_evaluate_where_ours_replaces_it(monkeypatch):
    datasets = load_reasoning_gym()
    evaluations = Evaluations(monkeypatch)
    evaluating = [name for name, task in TASKS.items() if "evaluates the answer's text" in task.reason]
    assert sorted(evaluating) == [
        "binary_matrix", "countdown", "n_queens", "puzzle24", "spiral_matrix", "string_insertion"
    ]  # fmt: skip
    for name in evaluating:
        dataset_class, config_class = datasets[name]
        before = len(evaluations.seen)
        dataset_class(config_class(seed=0, size=1)).score_answer("[1, 2]", {**problem(name)})
        assert len(evaluations.seen) > before, name


def test_every_scorer_ends_in_time_in_the_pool():
    hostile = list(attacks().values())
    items = []
    for number, task in enumerate(USABLE):
        texts = [(unit * 20_000)[:20_000] for unit in REPEATED]
        texts += [text for text in hostile[number % 120 :: 120] if "answer>" not in text]
        texts += [ATTACKS_ON_SCORERS[task]] if task in ATTACKS_ON_SCORERS else []
        items += [(task, text, wrong(text)) for text in texts]
        items.append((task, problem(task)["answer"], Verdict(correct=True)))
    with VerifierPool(VerifierPoolConfig(workers=2)) as pool:
        verdicts = pool.score(
            [verifier(task) for task, _, _ in items],
            [tagged(text) for _, text, _ in items],
            [problem(task) for task, _, _ in items],
        )
    differing = [
        (task, text[:20], verdict)
        for (task, text, expected), verdict in zip(items, verdicts, strict=True)
        if verdict != expected
    ]
    assert differing == []


def test_a_verifier_is_small_when_it_travels():
    judge = ReasoningGymVerifier("figlet_font", answer="boxed")
    assert len(pickle.dumps(judge)) < 200
    assert len(pickle.dumps(ReasoningGymVerifier("arc_agi"))) < 200


def site_without(folder: Path, *left_out: str) -> Path:
    """A folder with links to everything that is installed but `left_out`."""
    installed = Path(sys.modules["numpy"].__file__).parents[1]
    folder.mkdir()
    for entry in installed.iterdir():
        if not entry.name.lower().startswith(left_out) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def run(code: str, *folders: Path) -> str:
    """What `code` prints in an interpreter that finds packages in `folders` alone."""
    path = os.pathsep.join(map(str, [*folders, REPOSITORY]))
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return result.stdout


SHOW_ERROR = """
from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.reasoning_gym.verifier import ReasoningGymVerifier
try:
    ReasoningGymVerifier({task!r})
except UserError as error:
    print(error)
"""


def test_without_the_library(tmp_path):
    site = site_without(tmp_path / "site", "reasoning_gym")
    output = run(SHOW_ERROR.format(task="gcd"), site)
    assert output == "reasoning-gym is not installed: pip install asymgrpo[reasoning]\n"


def test_another_release_of_the_library(tmp_path):
    site = site_without(tmp_path / "site", "reasoning_gym-")
    metadata = site / "reasoning_gym-0.1.26.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: reasoning-gym\nVersion: 0.1.26\n")
    output = run(SHOW_ERROR.format(task="gcd"), site)
    assert output == (
        "The scorers of reasoning-gym 0.1.26 have not been audited: pip install reasoning-gym==0.1.25\n"
    )  # fmt: skip


def test_without_the_packages_that_few_tasks_need(tmp_path):
    site = site_without(tmp_path / "site", "cellpylib", "pycosat", "zss")
    output = run(SHOW_ERROR.format(task="zebra_puzzles") + SHOW_ERROR.format(task="game_of_life"), site)
    assert output == (
        "reasoning-gym's task 'zebra_puzzles' cannot be used: it needs the package pycosat: pip install pycosat "
        "(a C compiler may be needed).\n"
        "reasoning-gym's task 'game_of_life' cannot be used: it needs the package cellpylib: pip install cellpylib "
        "(a C compiler may be needed).\n"
    )
    code = """
import importlib.util, sys
from asymgrpo_app.rewards.reasoning_gym.verifier import ReasoningGymVerifier
assert "reasoning_gym" not in sys.modules
print(ReasoningGymVerifier("gcd").verify("<answer>3</answer>", {"answer": "3", "metadata": {}}).correct)
print([name for name in ("cellpylib", "pycosat", "zss", "torch") if name in sys.modules])
import reasoning_gym
try:
    reasoning_gym.create_dataset("zebra_puzzles", seed=0)[0]
except AttributeError as error:
    print(error)
"""
    assert run(code, site) == "True\n[]\nmodule 'pycosat' has no attribute 'itersolve'\n"


def test_the_docs_list_what_the_code_does():
    text = (REPOSITORY / "docs/reasoning_gym.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (reasoning-gym|asymgrpo|refused) \| ?(.*?) ?\|$", text, re.MULTILINE)
    expected = [(name, "refused", reason) for name, reason in REFUSED.items()]
    for name in set(load_reasoning_gym()) - set(REFUSED):
        task = TASKS.get(name, Task())
        remark = task.reason or (f"needs the package {NEEDS[name]}" if name in NEEDS else "")
        expected.append((name, "asymgrpo" if task.scorer else "reasoning-gym", remark))
    assert rows == sorted(expected)
