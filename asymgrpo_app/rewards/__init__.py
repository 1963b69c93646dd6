"""Verifiers, which judge completions."""

from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.countdown import CountdownVerifier
from asymgrpo_app.rewards.exact import ExactMatch

__all__ = ["CountdownVerifier", "ExactMatch", "Status", "Verdict", "Verifier"]
