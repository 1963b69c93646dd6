"""Scorers of ours for tasks whose own scorer in reasoning-gym evaluates the answer or accepts wrong ones.

A scorer returns whether `answer`, the text without white space around it, is right for `row`. No scorer evaluates text,
and all are linear in its length. An exception means that the text is no answer, which is judged wrong.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from asymgrpo_app.rewards.arithmetic import parse_arithmetic

Scorer = Callable[[str, Mapping[str, Any]], bool]

_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")
_FRACTION = re.compile(r"([0-9]{1,40})\s?/\s?([0-9]{1,40})")
_COIN_FLIP_TOLERANCE = 1e-4  # reasoning-gym's own


def same_text(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the reference, letter by letter."""
    return bool(answer == row["answer"].strip())


def same_words(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer has the reference's words in the same order, upper or lower case."""
    return bool(answer.lower().split() == row["answer"].lower().split())


def same_letters(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the reference, spaces and case aside."""
    return bool(answer.replace(" ", "").lower() == row["answer"].replace(" ", "").strip().lower())


def same_list_of_words(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the list of words, with commas between."""
    return [word.strip() for word in answer.split(",")] == list(row["metadata"]["sorted_words"])


def same_list_of_numbers(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is a list of numbers, quoted or not, that equals the reference number by number."""
    given = json.loads(answer.replace("'", '"'))
    return isinstance(given, list) and list(map(float, given)) == list(map(float, row["metadata"]["sorted_numbers"]))


def same_solutions(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer has all solutions, with commas between, in any order."""
    given = [float(part) for part in answer.split(",")]
    return sorted(given) == sorted(row["metadata"]["real_solutions"])


def same_complex_number(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the complex number, written with i or j, perhaps in brackets."""
    text = "".join(answer.split()).lower().replace("i", "j")
    return complex(text) == complex(*row["metadata"]["result"])


def same_integer(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the whole number, written as in Python: hexadecimal, octal, binary or decimal."""
    return int(answer, 0) == int(row["answer"], 0)


def same_first_number(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer's first number, with its sign, with or without thousands separators, is the reference."""
    number = _NUMBER.search(answer)
    return number is not None and float(number[0].replace(",", "")) == float(row["answer"])


def same_probability(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is the probability as a decimal number or a fraction, to the library's own tolerance."""
    fraction = _FRACTION.fullmatch(answer)
    given = int(fraction[1]) / int(fraction[2]) if fraction else float(answer)
    return abs(given - float(row["answer"])) <= _COIN_FLIP_TOLERANCE


def completed_board(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is one of the boards that solve the problem."""
    return answer in row["metadata"]["valid_answers"]


def reaches_target(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer is an expression that uses each number once and equals the target, 24 if none is given."""
    numbers, target = row["metadata"]["numbers"], row["metadata"].get("target", 24)
    expression = parse_arithmetic(answer)
    return expression is not None and expression.value == target and sorted(expression.numbers) == sorted(numbers)
