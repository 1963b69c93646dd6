"""Prompt sources, which hand out problems together with the verifier that knows their answers."""

from asymgrpo_app.prompts.addition import Addition
from asymgrpo_app.prompts.base import BadRow, Prompt, PromptSource
from asymgrpo_app.prompts.countdown import Countdown
from asymgrpo_app.prompts.csv_files import CsvFiles
from asymgrpo_app.prompts.hub import HubDataset
from asymgrpo_app.prompts.json_files import JsonFiles
from asymgrpo_app.prompts.jsonl import JsonLines
from asymgrpo_app.prompts.mixture import Mixture, WeightedSource
from asymgrpo_app.prompts.parquet import ParquetFiles
from asymgrpo_app.prompts.reading import Reading
from asymgrpo_app.prompts.reasoning_gym import ReasoningGym

__all__ = [
    "Addition",
    "BadRow",
    "Countdown",
    "CsvFiles",
    "HubDataset",
    "JsonFiles",
    "JsonLines",
    "Mixture",
    "ParquetFiles",
    "Prompt",
    "PromptSource",
    "Reading",
    "ReasoningGym",
    "WeightedSource",
]
