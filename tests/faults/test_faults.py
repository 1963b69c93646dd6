"""The mistakes of faults.yaml can still be put in."""

from tests.faults.run import faults, fits


def test_the_text_of_every_mistake_is_in_its_file_once():
    assert [fault.name for fault in faults() if not fits(fault)] == []
