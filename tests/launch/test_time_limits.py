"""The time limits that the documentation names, read from the code that keeps them."""

import re

from lightning.pytorch.strategies import DDPStrategy

from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.runtime import processes
from tests.support.paths import REPOSITORY


def said(page: str, pattern: str) -> int:
    text = " ".join((REPOSITORY / page).read_text().split())
    (found,) = re.findall(pattern, text)
    return int(found)


def test_an_exchange_ends_when_the_pages_say():
    for strategy in (DDPStrategy(), FSDP2Strategy()):
        minutes = strategy._timeout.total_seconds() / 60
        assert said("docs/operations.md", r"time limit for an exchange \((\d+) minutes") == minutes
        assert said("docs/strategies.md", r"gives up after (\d+) minutes") == minutes


def test_processes_that_wait_are_ended_when_the_pages_say():
    grace = re.findall(r"--shutdown-timeout \"\$\{GRACE:-(\d+)\}\"", (REPOSITORY / "launch/torchrun.sh").read_text())
    assert [str(said("docs/strategies.md", r"after (\d+) by `launch/torchrun\.sh`"))] == grace
    assert said("docs/operations.md", r"seconds \((\d+)\), and lets processes that stop") == int(grace[0])
    assert said("docs/strategies.md", r"ended after (\d+) seconds if Lightning started") == processes._GRACE_S
