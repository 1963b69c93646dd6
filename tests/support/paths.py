"""Where the tests find what the project ships."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
POLICY = str(REPOSITORY / "data/countdown_base")
QUICKSTART = [f"--config={REPOSITORY / 'configs/quickstart.yaml'}", f"--model.policy={POLICY}"]
"""The quick start's config and policy, from any working directory."""
