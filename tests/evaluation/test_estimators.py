"""pass@k and maj@k against enumeration of all draws."""

from fractions import Fraction
from itertools import combinations, product
from math import comb

import pytest

from asymgrpo_app.evaluation import maj_at_k, pass_at_k
from asymgrpo_app.rewards.answers import answer_classes


def majority_by_enumeration(answers, correct, k):
    """Mean over all draws of k; in each, mean over its largest classes of their share of right samples (of all n)."""
    total = Fraction(0)
    for draw in combinations(range(len(answers)), k):
        votes = {}
        for place in draw:
            if answers[place] is not None:
                votes[answers[place]] = votes.get(answers[place], 0) + 1
        largest = [name for name, number in votes.items() if number == max(votes.values())]
        for name in largest:
            members = [place for place, answer in enumerate(answers) if answer == name]
            total += Fraction(sum(correct[place] for place in members), len(members) * len(largest))
    return float(total / comb(len(answers), k))


@pytest.mark.parametrize("n", range(1, 7))
def test_majority_is_the_mean_over_all_draws(n):
    # Class 0 is right; None has no answer. Every multiset of answers up to 4 classes, every k.
    for answers in product([0, 1, 2, None], repeat=n):
        if list(answers) != sorted(answers, key=str):
            continue
        correct = [answer == 0 for answer in answers]
        for k in range(1, n + 1):
            expected = majority_by_enumeration(answers, correct, k)
            assert maj_at_k(answers, correct, k) == pytest.approx(expected, abs=1e-14), (answers, k)


@pytest.mark.parametrize(
    "answers", [[0, 0, 1, 1, 2, 2, 3, None], [5, 5, 5, 1, 1, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7], [None] * 8]
)
@pytest.mark.parametrize("right", [{0}, {1, 5}, set()])
def test_majority_with_many_ties_and_several_right_classes(answers, right):
    correct = [answer in right for answer in answers]
    for k in range(1, 9):
        assert maj_at_k(answers, correct, k) == pytest.approx(majority_by_enumeration(answers, correct, k), abs=1e-14)


def test_a_class_counts_with_its_share_of_right_samples():
    answers, correct = [0, 0, 0, 1, 1, None], [True, True, False, False, True, False]
    for k in range(1, 7):
        assert maj_at_k(answers, correct, k) == pytest.approx(majority_by_enumeration(answers, correct, k), abs=1e-14)


def test_the_order_of_samples_and_the_names_of_classes_do_not_matter():
    assert maj_at_k([3, 3, 9, None], [True, True, False, False], 3) == maj_at_k(
        [None, 1, 0, 0], [False, False, True, True], 3
    )


def test_samples_without_an_answer_have_no_vote():
    # One answer among nine that gave none wins every draw it is in; as a class of their own the nine would outvote it.
    assert maj_at_k([0] + [None] * 9, [True] + [False] * 9, 5) == pytest.approx(5 / 10)
    assert maj_at_k([None] * 4, [False] * 4, 4) == 0.0


def test_ties_are_worth_the_chance_to_be_chosen():
    assert maj_at_k([0, 1], [True, False], 2) == 0.5
    assert maj_at_k([0, 1, 2, 3], [True, False, False, False], 4) == 0.25
    assert maj_at_k([0, 0, 1, 1, 2], [True, True, False, False, False], 5) == 0.5


def test_a_majority_of_one_is_the_accuracy():
    answers, correct = [0, 0, 1, None, 0, 2, 1], [True, True, False, False, True, False, False]
    assert maj_at_k(answers, correct, 1) == pytest.approx(3 / 7)


def test_large_numbers_of_samples():
    # 512 samples, 300 of them right: all of them vote, and the larger class wins for certain.
    answers = [0] * 300 + [1] * 212
    correct = [answer == 0 for answer in answers]
    assert maj_at_k(answers, correct, 512) == 1.0
    # Of 3 votes two must be right: a hypergeometric probability in closed form.
    expected = (comb(300, 3) + comb(300, 2) * 212) / comb(512, 3)
    assert maj_at_k(answers, correct, 3) == pytest.approx(expected, rel=1e-14)


def test_pass_at_k_is_exact_for_large_numbers_of_samples():
    # C(9999, 5000) has 3,008 digits, beyond any float; the ratio is 1 - k / n.
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(10_000, 3, 1) == pytest.approx(3e-4, rel=1e-12)
    assert pass_at_k(2_000, 1_500, 1_000) == 1.0
    product_form = 1.0
    for i in range(4_000 - 7 + 1, 4_001):
        product_form *= 1 - 1_000 / i
    assert pass_at_k(4_000, 7, 1_000) == pytest.approx(1 - product_form, rel=1e-12)


@pytest.mark.parametrize(
    ("answers", "correct", "k"), [([0, 1], [True], 1), ([0, 1], [True, False], 3), ([0], [True], 0), ([], [], 1)]
)
def test_majority_refuses_what_makes_no_sense(answers, correct, k):
    with pytest.raises(ValueError, match="maj@k needs one verdict per answer"):
        maj_at_k(answers, correct, k)


def test_classes_by_an_equality():
    def same_number(first, second):
        return float(first) == float(second)

    assert answer_classes(["1.0", None, "2", "1", "2.00", "3"], same_number) == [0, None, 1, 0, 1, 2]
    assert answer_classes([None, None], same_number) == [None, None]
    # Not transitive: each answer is compared with the first of a class.
    assert answer_classes([0, 1, 2, 3], lambda a, b: abs(a - b) <= 1) == [0, 0, 1, 1]
