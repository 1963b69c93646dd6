"""Test files that start engines of their own. They come last, and end the common engine before they begin."""

import pytest

from tests.support.shared_engine import SHARED


@pytest.fixture(scope="module", autouse=True)
def _no_other_engine() -> None:
    SHARED.close()
