"""What the tests share."""

import os
from pathlib import Path

import pytest

from asymgrpo_app.environment import quiet_environment

quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a model hub

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def quickstart() -> list[str]:
    """`fit` with the quick start's config, from any working directory."""
    return [
        "fit",
        f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
        f"--model.policy={REPOSITORY / 'data/countdown_base'}",
    ]
