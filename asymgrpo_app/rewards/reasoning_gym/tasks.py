"""The tasks of reasoning-gym that may be used, the scorers of their answers, and the loading of the library.

Answers are written by a model that is rewarded for a score of 1, so a task is only used after its scorer was read. Its
problems are made in the training process, so making them must end, and give the same in every process. This was done
for every task of `AUDITED_RELEASE`, and every other release is refused. docs/reasoning_gym.md shows all as a table.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.reasoning_gym import scorers as ours

AUDITED_RELEASE = "0.1.25"

MAX_ANSWER_CHARS = 20_000
"""Longer answers are wrong, unless the row's own is that long. This bounds the work of scorers of linear time."""

_SOURCE_ONLY = ("cellpylib", "pycosat", "zss")
"""Packages that reasoning-gym imports for three of its tasks, and that exist as sources alone."""


@dataclass(frozen=True)
class Task:
    """The judging of answers to a task.

    Attributes:
        scorer: A scorer of this package; None: the library's own.
        reason: The reason why the library's scorer is not used.
        max_chars: Longer answers are wrong.
        digit_runs: Whether an answer may hold numbers of more than one digit.
    """

    scorer: ours.Scorer | None = None
    reason: str = ""
    max_chars: int = MAX_ANSWER_CHARS
    digit_runs: bool = True


_EVALUATES = "its scorer evaluates the answer's text"
_NO_REFERENCE = "its problems come without an answer, so nothing shows that they can be judged"
_HASH_ORDER = "its problems differ from process to process: it iterates over sets of strings"

TASKS: Mapping[str, Task] = {
    # The library's own with a bound: it repeats a move as often as the number after it says ...
    "rubiks_cube": Task(max_chars=2_000, digit_runs=False),
    # ... and parses by cutting the text at every operator, which is cubic in its length.
    "propositional_logic": Task(max_chars=500),
    "binary_matrix": Task(ours.same_text, _EVALUATES),
    "bitwise_arithmetic": Task(ours.same_integer, "its scorer evaluates the text of the problem"),
    "coin_flip": Task(ours.same_probability, "its scorer gives 1 to any beginning of the right number: 0 for 0.8125"),
    "complex_arithmetic": Task(ours.same_complex_number, 'its scorer gives 1 to "nan"'),
    "countdown": Task(ours.reaches_target, _EVALUATES),
    "figlet_font": Task(ours.same_letters, "its scorer gives 1 to ten right letters, whatever else is written"),
    "gsm_symbolic": Task(ours.same_first_number, "its scorer does not see the sign: -5 is right for 5"),
    "letter_jumble": Task(ours.same_words, "its scorer gives 1 to the right words with others behind them"),
    "n_queens": Task(ours.completed_board, _EVALUATES),
    "number_sorting": Task(ours.same_list_of_numbers, "its scorer gives 1 to NaN, and to numbers that are wrong by 1"),
    "polynomial_equations": Task(
        ours.same_solutions, "its scorer passes over what is no number, and gives 1 to any text if there is no solution"
    ),
    "puzzle24": Task(ours.reaches_target, f"{_EVALUATES}, and accepts other numbers than the problem's"),
    "spiral_matrix": Task(ours.same_text, _EVALUATES),
    "string_insertion": Task(ours.same_text, _EVALUATES),
    "word_sorting": Task(ours.same_list_of_words, "its scorer gives 1 to the right words with others behind them"),
}
"""The tasks that are not judged by the library's scorer alone; its other tasks are, but those that are refused."""

NEEDS: Mapping[str, str] = {"game_of_life": "cellpylib", "zebra_puzzles": "pycosat"}
"""The packages that exist as sources alone and that a task cannot do without."""

REFUSED: Mapping[str, str] = {
    "basic_arithmetic": "one in thousands of its problems takes hours to make: it tries all divisors of a product",
    "boxnet": _NO_REFERENCE,
    "codeio": "it runs the programs of a data file to make problems, and they differ from process to process",
    "composite": "it mixes other tasks: use a mixture of sources instead",
    "game_of_life_halting": "its scorer gives 1 to every answer if the right one is False or True",
    "intermediate_integration": f"{_EVALUATES} (sympy.parse_expr)",
    "isomorphic_strings": _HASH_ORDER,
    "knight_swap": _HASH_ORDER,
    "list_functions": "its problems differ from call to call: it draws from Python's global generator",
    "number_sequence": "one in a thousand of its problems takes a minute to make: it squares numbers over and over",
    "polynomial_multiplication": f"{_EVALUATES} (sympy.parse_expr), and {_HASH_ORDER}",
    "pool_matrix": "it seeds numpy's global generator, which other parts of a run draw from",
    "ransom_note": _HASH_ORDER,
    "rush_hour": f"{_NO_REFERENCE}, and its scorer makes as many moves as a number in the answer says",
    "simple_integration": f"{_EVALUATES} (sympy.parse_expr)",
    "word_ladder": _HASH_ORDER,
}
"""The tasks that may not be used, and why."""


@cache
def task_of(name: str) -> Task:
    """The judging of answers to the task `name`.

    Raises:
        UserError: reasoning-gym is not installed or of another release; the task is refused, or there is none of this
            name; or the task needs a package that is not installed.
    """
    library = load_reasoning_gym()
    reason, package = REFUSED.get(name), NEEDS.get(name)
    if package and not _is_installed(package):
        reason = f"it needs the package {package}: pip install {package} (a C compiler may be needed)"
    if reason:
        raise UserError(f"reasoning-gym's task {name!r} cannot be used: {reason}.")
    if name not in library or not library[name][0].__module__.startswith("reasoning_gym."):  # registered by a program
        raise UserError(f"reasoning-gym {AUDITED_RELEASE} has no task {name!r}: see docs/reasoning_gym.md.")
    return TASKS.get(name, Task())


def shared_dataset(name: str, config: Mapping[str, Any]) -> Any:
    """The data set of seed 0 and size 1 of a task, built once per process; it makes problems and scores answers.

    Raises:
        UserError: The task does not take the keys or the values of `config`.
    """
    return _shared_dataset(name, json.dumps(dict(config), default=repr))


def make_dataset(name: str, config: Mapping[str, Any], seed: int, size: int) -> Any:
    """Build the library's data set of a task (a `ProceduralDataset`).

    Raises:
        UserError: The task does not take the keys or the values of `config`.
    """
    dataset_class, config_class = load_reasoning_gym()[name]
    defaults = {field.name: field.default for field in fields(config_class) if field.name not in ("seed", "size")}
    for key in config:
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise UserError(f"reasoning-gym's task {name!r} has no config key {key!r}; its keys are: {known}.")
    settings = {key: tuple(value) if isinstance(defaults[key], tuple) else value for key, value in config.items()}
    try:
        built = config_class(**settings, seed=seed, size=size)
        if hasattr(built, "validate"):
            built.validate()  # some data sets forget to
        return dataset_class(built)
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        shown = json.dumps(dict(config), default=repr)
        reason = str(error) or type(error).__name__
        raise UserError(f"reasoning-gym's task {name!r} refuses the config {shown}: {reason}.") from error


@cache
def load_reasoning_gym() -> Mapping[str, tuple[type[Any], type[Any]]]:
    """Import reasoning-gym, with or without the packages that only three of its tasks need.

    It imports all of them at once, and three exist as sources alone. While it is imported a missing one is replaced by
    an empty module; nothing of it stays behind for others to import.

    Returns:
        The classes of the data set and of its config, by the name of the task.

    Raises:
        UserError: reasoning-gym is not installed, of a release that was not audited, or cannot be imported.
    """
    try:
        installed = version("reasoning-gym")
    except PackageNotFoundError:
        raise UserError("reasoning-gym is not installed: pip install asymgrpo[reasoning]") from None
    if installed != AUDITED_RELEASE:
        raise UserError(
            f"The scorers of reasoning-gym {installed} have not been audited: "
            f"pip install reasoning-gym=={AUDITED_RELEASE}"
        )
    missing = [name for name in _SOURCE_ONLY if not _is_installed(name)]
    sys.modules.update({name: ModuleType(name) for name in missing})
    try:
        datasets: Mapping[str, tuple[type[Any], type[Any]]] = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise UserError(f"reasoning-gym cannot be imported ({error}): pip install asymgrpo[reasoning]") from error
    finally:
        for name in missing:
            del sys.modules[name]
    return datasets


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


@lru_cache(maxsize=128)
def _shared_dataset(name: str, config: str) -> Any:
    return make_dataset(name, json.loads(config), seed=0, size=1)
