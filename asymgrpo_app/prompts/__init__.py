"""Prompt sources, which hand out problems together with the verifier that knows their answers."""

from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.prompts.countdown import Countdown
from asymgrpo_app.prompts.jsonl import JsonLines

__all__ = ["Countdown", "JsonLines", "Prompt", "PromptSource"]
