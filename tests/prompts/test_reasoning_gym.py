"""Problems from reasoning-gym: the same everywhere, on one side of the split, and judged by their own verifier."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.reasoning_gym import ReasoningGym
from asymgrpo_app.rewards.base import Verdict
from asymgrpo_app.rewards.reasoning_gym.tasks import NEEDS, REFUSED, load_reasoning_gym
from tests.support.paths import REPOSITORY

# What the lock file leaves out is not installed everywhere.
USABLE = sorted(set(load_reasoning_gym()) - set(REFUSED) - set(NEEDS))

SHOW_PROBLEMS = """
import hashlib, sys
from asymgrpo_app.prompts.reasoning_gym import ReasoningGym
for task in sys.argv[1:]:
    row = ReasoningGym(task).at(2**40, seed=4).row
    print(task, hashlib.sha256(repr(row).encode()).hexdigest())
"""


@pytest.mark.parametrize("task", USABLE)
def test_a_problem_is_a_pure_function_and_draws_from_no_global_generator(task):
    load_reasoning_gym()  # what it imports may draw
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global generator is what a task must not touch)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    source = ReasoningGym(task)
    first, second = (source.at(position, seed=0) for position in (0, 1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert source.at(0, seed=0).row == first.row
    assert first.row != second.row
    assert json.loads(json.dumps(first.row)) == first.row
    assert first.text == f"{first.row['question']}\n\nGive the final answer between <answer> and </answer>."
    assert first.uid == f"{task}/train/0/0"
    assert first.verifier.verify(f"<answer>{first.row['answer']}</answer>", first.row) == Verdict(correct=True)


@pytest.mark.long
def test_every_process_makes_the_same_problems():
    """Also where strings hash differently, which orders sets differently."""
    command = [sys.executable, "-c", SHOW_PROBLEMS, *USABLE]
    outputs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        outputs.append(result.stdout.splitlines())
    assert [line.split()[0] for line in outputs[0]] == USABLE
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("task", ["gcd", "acre", "gsm_symbolic", "maze"])
def test_the_splits_share_no_question(task):
    source = ReasoningGym(task)
    train = [source.at(position, seed=0).row for position in range(100)]
    validation = [problem.row for problem in ReasoningGym(task, split="validation").fixed(15)]
    assert {source.split_of(row) for row in train} == {"train"}
    assert {source.split_of(row) for row in validation} == {"validation"}
    assert len({row["question"] for row in validation}) == 15


def test_one_question_in_ten_is_for_validation():
    source = ReasoningGym("gcd")
    sides = [source.split_of({"question": str(number)}) for number in range(10_000)]
    assert sides.count("validation") == pytest.approx(1_000, abs=120)


def test_seeds_and_positions_give_different_problems():
    source = ReasoningGym("decimal_chain_sum")
    questions = [source.at(position, seed).row["question"] for seed in range(3) for position in range(100)]
    assert len(set(questions)) == 300


def test_the_fixed_problems_do_not_change():
    problems = ReasoningGym("chain_sum", {"max_terms": 2, "max_digits": 2}, split="validation").fixed(3)
    assert [problem.row["question"] for problem in problems] == [
        "State the final answer to the following arithmetic problem: 91 - 40 =",
        "State the final answer to the following arithmetic problem: 11 - 55 =",
        "State the final answer to the following arithmetic problem: 99 + 40 =",
    ]
    assert [problem.row["answer"] for problem in problems] == ["51", "-44", "139"]
    assert [problem.uid for problem in problems] == [f"chain_sum/validation/0/{position}" for position in range(3)]


def test_the_config_and_the_instruction():
    problem = ReasoningGym("countdown", {"operators": ["+"], "min_numbers": 2, "max_numbers": 2}, instruction="").at(
        0, 0
    )
    assert len(problem.row["metadata"]["numbers"]) == 2
    assert sum(problem.row["metadata"]["numbers"]) == problem.row["metadata"]["target"]
    assert problem.text == problem.row["question"]
    boxed = ReasoningGym("gcd", answer="boxed").at(0, 0)
    assert boxed.text.endswith("\n\nGive the final answer in \\boxed{}.")
    assert boxed.verifier.verify(rf"\boxed{{{boxed.row['answer']}}}", boxed.row) == Verdict(correct=True)
    own = ReasoningGym("gcd", answer="last_line", instruction="Only the number.").at(0, 0)
    assert own.text == f"{own.row['question']}\n\nOnly the number."
    assert own.verifier.verify(f"so\n{own.row['answer']}", own.row) == Verdict(correct=True)


def test_a_task_that_has_too_few_problems():
    empty_boards = {"n": 4, "min_remove": 4, "max_remove": 4}  # one question
    with pytest.raises(UserError) as error:
        ReasoningGym("n_queens", empty_boards, split="validation").fixed(1)
    assert str(error.value) == (
        "reasoning-gym's task 'n_queens' gave no problem for the validation split in 500 tries: its settings leave too "
        "few different ones, or none whose own answer is right."
    )
    with pytest.raises(UserError) as error:
        ReasoningGym("n_queens", empty_boards).fixed(2)
    assert str(error.value) == (
        "The train split of reasoning-gym's task 'n_queens' is too small for a limit of 2 distinct problems: 1 were "
        "found, ask for fewer."
    )


def test_a_limit_is_needed():
    with pytest.raises(UserError) as error:
        ReasoningGym("gcd").fixed(None)
    assert str(error.value) == "reasoning-gym's task 'gcd' is endless and needs a limit for evaluation, not None."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "gcd", "split": "test"}, "ReasoningGym has no split 'test': use 'train' or 'validation'."),
        (
            {"task": "word_ladder"},
            "reasoning-gym's task 'word_ladder' cannot be used: its problems differ from process to process: it "
            "iterates over sets of strings.",
        ),
        (
            {"task": "acre", "config": {"difficulty": 2}},
            "reasoning-gym's task 'acre' has no config key 'difficulty'; its keys are: train.",
        ),
        (
            {"task": "bf", "config": {"difficulty": "x"}},
            "reasoning-gym's task 'bf' refuses the config {\"difficulty\": \"x\"}: '>' not supported between "
            "instances of 'str' and 'int'.",
        ),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(UserError) as error:
        ReasoningGym(**arguments)
    assert str(error.value) == message


def test_the_library_is_imported_on_use():
    code = """
import sys
import asymgrpo_app.prompts, asymgrpo_app.rewards
import asymgrpo_app.prompts.reasoning_gym
print("reasoning_gym" in sys.modules)
"""
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    assert output == "False\n"
