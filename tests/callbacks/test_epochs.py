"""Shares of solved groups over whole passes through a source that ends.

In every step of 18 groups, those at the places 0 and 9 are all wrong and those at 8 and 17 all right.
"""

import pytest

from tests.support.events import scalars
from tests.support.scripted_engine import fit


def shares(run_dir) -> dict[int, tuple[float, float]]:
    """Shares of groups of which all and none are right, by step."""
    found = scalars(run_dir)
    solved_all, solved_none = (found[f"reward/epoch_solved_{name}"] for name in ("all", "none"))
    return {step: (a, n) for (step, a), (_, n) in zip(solved_all, solved_none, strict=True)}


def test_a_pass_ends_within_a_step(monkeypatch, tmp_path):
    found = shares(fit(monkeypatch, tmp_path, "--steps=4", rows=20))
    assert found.keys() == {2, 3, 4}
    assert found[2] == pytest.approx((2 / 20, 3 / 20))  # a whole step, and the places 0 and 1 of the next
    assert found[3] == pytest.approx((2 / 20, 2 / 20))  # its places 2 to 17, and the places 0 to 3 of the next
    assert found[4] == pytest.approx((2 / 20, 2 / 20))


def test_a_run_that_goes_on_in_the_middle_of_a_pass_counts_all_of_it(monkeypatch, tmp_path):
    run_dir = fit(monkeypatch, tmp_path, rows=45)
    with pytest.raises(KeyError):
        shares(run_dir)
    fit(monkeypatch, tmp_path, "--steps=5", "--ckpt_path=last", rows=45)
    found = shares(run_dir)
    assert found.keys() == {3, 5}
    assert found[3] == pytest.approx((5 / 45, 5 / 45))  # two whole steps, and the places 0 to 8 of the third
    assert found[5] == pytest.approx((5 / 45, 5 / 45))


def test_a_step_of_several_passes_has_their_mean(monkeypatch, tmp_path):
    found = shares(fit(monkeypatch, tmp_path, rows=5))
    assert found[1] == pytest.approx((1 / 15, 2 / 15))  # three passes, the places 0 to 14
    assert found[2] == pytest.approx((2 / 20, 2 / 20))  # four: the places 15 to 17, and 0 to 16 of the next


@pytest.mark.parametrize("extra", ["--data.train=asymgrpo_app.prompts.Countdown", "--data.repeat_steps=1"])
def test_prompts_that_never_end_have_no_pass(extra, monkeypatch, tmp_path):
    run_dir = fit(monkeypatch, tmp_path, extra, rows=5)
    with pytest.raises(KeyError):
        shares(run_dir)
