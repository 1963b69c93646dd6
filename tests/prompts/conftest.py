"""Fixtures of the prompt sources."""

from collections.abc import Callable
from pathlib import Path

import pytest

from asymgrpo_app.errors import UserError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone; it does not exist yet."""
    folder = tmp_path / "cache of this test"
    monkeypatch.setenv("ASYMGRPO_CACHE", str(folder))
    return folder


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Call something that must raise a `UserError`; returns its message, which is one short line."""

    def call(function: Callable[..., object], *arguments: object, **keywords: object) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments, **keywords)
        message = str(caught.value)
        assert message.isprintable()
        assert message.endswith(".")
        return message

    return call
