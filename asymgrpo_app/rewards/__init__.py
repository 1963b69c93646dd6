"""Verifiers, which judge completions."""

from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.choice import MultipleChoice
from asymgrpo_app.rewards.countdown import CountdownVerifier
from asymgrpo_app.rewards.exact import ExactMatch
from asymgrpo_app.rewards.functions import FunctionVerifier
from asymgrpo_app.rewards.maths import MathVerifier
from asymgrpo_app.rewards.numeric import NumericMatch
from asymgrpo_app.rewards.reasoning_gym.verifier import ReasoningGymVerifier
from asymgrpo_app.rewards.regex import RegexMatch
from asymgrpo_app.rewards.scoring import score

__all__ = [
    "CountdownVerifier",
    "ExactMatch",
    "FunctionVerifier",
    "MathVerifier",
    "MultipleChoice",
    "NumericMatch",
    "ReasoningGymVerifier",
    "RegexMatch",
    "Status",
    "Verdict",
    "Verifier",
    "score",
]
