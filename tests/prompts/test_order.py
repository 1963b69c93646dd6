from itertools import pairwise

import pytest

from asymgrpo_app.prompts.order import shuffled, sorted_order


def order(count: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return [shuffled(index, count, seed, epoch) for index in range(count)]


@pytest.mark.parametrize("counts", [range(1, 270), range(300, 2_001, 61), [2_000, 255, 256, 257, 10_007]])
def test_every_row_comes_exactly_once(counts: range) -> None:
    for count in counts:
        assert sorted(order(count, seed=count % 3, epoch=count % 5)) == list(range(count))


@pytest.mark.parametrize("count", [10_000_000, 2**32 + 1, 10**15])
def test_large_counts_have_no_repeats_and_stay_in_range(count: int) -> None:
    places = [*range(2_000), *range(count - 2_000, count)]
    rows = [shuffled(place, count, seed=1, epoch=2) for place in places]
    assert len(set(rows)) == 4_000
    assert all(0 <= row < count for row in rows)


def test_the_order_does_not_change_between_versions() -> None:
    assert order(8) == [5, 2, 6, 4, 3, 7, 0, 1]
    assert order(1_000)[:6] == [573, 128, 912, 284, 635, 770]
    assert [shuffled(index, 10**7, 5, 6) for index in (0, 1, 10**7 - 1)] == [412076, 420793, 1181535]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    for count in (50, 1_000):
        orders = {tuple(order(count, seed, epoch)) for seed in (-1, 0, 1, 2**70) for epoch in range(5)}
        assert len(orders) == 20
    first, second = order(1_000, 0, 0), order(1_000, 0, 1)
    # in two independent orders, one row on average keeps its place
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 8


@pytest.mark.parametrize("count", [250, 300, 1_024, 5_000])
def test_no_structure_is_visible(count: int) -> None:
    orders = [order(count, seed=0, epoch=epoch) for epoch in range(10_000 // count + 2)]
    total = count * len(orders)
    displacement = sum(abs(place - row) for rows in orders for place, row in enumerate(rows)) / total
    # a third of the count; one displacement deviates by 0.24 of the count, and they are nearly independent
    assert displacement == pytest.approx(count / 3, abs=5 * 0.24 * count / total**0.5)
    followers = sum(second == first + 1 for rows in orders for first, second in pairwise(rows))
    assert followers < 1 + len(orders) + 5 * len(orders) ** 0.5  # one per order on average
    rising = sum(second > first for rows in orders for first, second in pairwise(rows))
    assert rising == pytest.approx(total / 2, abs=5 * (total / 12) ** 0.5 + len(orders))


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_every_row_is_equally_likely_at_every_place(count: int) -> None:
    epochs = 3_000
    counts = [[0] * count for _ in range(count)]
    for epoch in range(epochs):
        for place, row in enumerate(sorted_order(count, 0, epoch)):
            counts[place][row] += 1
    expected = epochs / count
    chi_square = sum((seen - expected) ** 2 / expected for rows in counts for seen in rows)
    freedom = (count - 1) ** 2
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_all_orders_of_four_are_equally_likely() -> None:
    drawn = [tuple(order(4, seed=0, epoch=epoch)) for epoch in range(4_800)]
    # 200 expected each, standard deviation 14
    assert len(set(drawn)) == 24
    assert all(130 < drawn.count(each) < 270 for each in set(drawn))


def test_places_of_a_network_are_equally_likely() -> None:
    """Above 256 rows: over many epochs, in which tenth of the file the rows at some places are."""
    epochs, count = 1_000, 1_000
    for place in (0, 1, 499, 999):
        tenths = [shuffled(place, count, 7, epoch) // 100 for epoch in range(epochs)]
        chi_square = sum((tenths.count(tenth) - 100) ** 2 / 100 for tenth in range(10))
        assert chi_square < 33.7  # 9 degrees of freedom, probability 0.0001
