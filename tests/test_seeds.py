"""Seeds depend on what they are for and on nothing else."""

from itertools import product

from asymgrpo_app.seeds import derive_seed, evaluation_seed, training_seed


def test_seeds_are_fixed_numbers():
    # Recorded: a change of these would make old runs irreproducible.
    assert derive_seed("train", 0, 0, 0, 0, 0) == training_seed(0, 0, 0, 0)
    assert training_seed(0, 0, 0, 0) == 5328952650015642073
    assert evaluation_seed(0, "countdown", 0, 0) == 6903195601198699000


def test_every_part_matters_and_parts_do_not_run_together():
    seeds = {training_seed(*parts) for parts in product(range(3), range(5), range(8), range(8), range(2))}
    assert len(seeds) == 3 * 5 * 8 * 8 * 2
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
    assert all(0 <= seed < 2**63 for seed in seeds)
