"""Killed thirty times at random moments, a run becomes the run that nobody disturbed (minutes)."""

import pytest

from tests.support.kill_loop import KillLoop


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again(tmp_path):
    loop = KillLoop(tmp_path, kills=30, terms=5, seed=0)
    loop.run()
    assert sum(loop.seen.values()) == 35
    assert min(loop.seen.values()) >= 3
