"""The tasks of reasoning-gym as a verifier."""

from asymgrpo_app.rewards.reasoning_gym.verifier import ReasoningGymVerifier

__all__ = ["ReasoningGymVerifier"]
