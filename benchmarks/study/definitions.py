"""What is compared, on what, and which claims of the paper it speaks to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asymgrpo_app.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent

# Method (the name of its overlay in configs/methods/) and what tables and figures call it.
LABELS = {
    "grpo": "GRPO",
    "asymgrpo": "AsymGRPO (0.9, 0.4)",
    "symmetric": "symmetric (0.7, 0.7)",
    "reinforce": "REINFORCE (0, 0)",
    "pos_only": "Pos-Only (0.5, 0)",
    "neg_only": "Neg-Only (0, 0.5)",
    "ent_increase": "EntIncrease",
    "ent_decrease": "EntDecrease",
    "grpo_clip_higher": "GRPO, clip-higher",
    "asymgrpo_clip_higher": "AsymGRPO (0.9, 0.3), clip-higher",
    "grpo_entropy_bonus": "GRPO, entropy bonus",
    "dr_grpo": "Dr.GRPO",
}

BASELINE = "grpo"

Quantity = Literal["accuracy", "pass", "entropy", "entropy_right", "entropy_wrong", "none_solved", "all_solved"]


@dataclass(frozen=True)
class Claim:
    """One method has more of something than another.

    Attributes:
        more: The method that is claimed to have more.
        less: The method that is claimed to have less.
        quantity: Of what.
        source: Where the claim is from.
    """

    more: str
    less: str
    quantity: Quantity
    source: str


@dataclass(frozen=True)
class Study:
    """Methods and seeds on one kind of work.

    Attributes:
        name: On the command line and in folders.
        configs: Before and after the method's overlay, from the repository's root.
        set: The validation set that counts.
        metrics: Names of its accuracy and its pass@k.
        methods: Names of overlays in configs/methods/; GRPO, the baseline, first.
        seeds: The same for each method, so that differences are paired.
        steps: RL steps of a run.
        window: Quantities of training are means over so many last steps.
        claims: What is looked at.
    """

    name: str
    configs: tuple[str, str]
    set: str
    metrics: tuple[str, str]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    window: int
    claims: tuple[Claim, ...]


_ENTROPY = "paper, entropy of the methods"
_TABLE = "paper, main table"
_NONE = "paper, share of unsolved prompts"

_COUNTDOWN_CLAIMS = (
    Claim("pos_only", "reinforce", "entropy", _ENTROPY),
    Claim("reinforce", "neg_only", "entropy", _ENTROPY),
    Claim("pos_only", "neg_only", "entropy", _ENTROPY),
    Claim("ent_increase", "grpo", "entropy", _ENTROPY),
    Claim("grpo", "ent_decrease", "entropy", _ENTROPY),
    Claim("asymgrpo", "grpo", "entropy", _ENTROPY),
    Claim("asymgrpo", "grpo", "accuracy", _TABLE),
    Claim("asymgrpo", "grpo", "pass", _TABLE),
    Claim("asymgrpo", "symmetric", "accuracy", _TABLE),
    Claim("asymgrpo_clip_higher", "grpo_clip_higher", "accuracy", _TABLE),
    Claim("asymgrpo_clip_higher", "grpo_clip_higher", "pass", _TABLE),
    Claim("grpo", "ent_increase", "accuracy", _TABLE),
    Claim("grpo", "ent_decrease", "accuracy", _TABLE),
    Claim("grpo", "asymgrpo", "none_solved", _NONE),
    Claim("grpo", "symmetric", "none_solved", _NONE),
    Claim("reinforce", "pos_only", "none_solved", _NONE),
    Claim("neg_only", "grpo", "none_solved", _NONE),
)

STUDIES = {
    "countdown": Study(
        name="countdown",
        configs=("configs/quickstart.yaml", "benchmarks/study/countdown.yaml"),
        set="countdown",
        metrics=("avg@8", "pass@8"),
        methods=tuple(LABELS),
        seeds=(0, 1, 2, 3, 4),
        steps=100,
        window=20,
        claims=_COUNTDOWN_CLAIMS,
    ),
    "addition": Study(
        name="addition",
        configs=("benchmarks/study/addition_base.yaml", "benchmarks/study/addition.yaml"),
        set="addition",
        metrics=("avg@4", "pass@4"),
        methods=(BASELINE, "asymgrpo"),
        seeds=(0, 1),
        steps=12,
        window=4,
        claims=tuple(Claim("asymgrpo", BASELINE, own, _TABLE) for own in ("accuracy", "pass", "entropy")),
    ),
}


def study_named(name: str) -> Study:
    """The study of this name.

    Raises:
        UserError: There is none.
    """
    if name not in STUDIES:
        raise UserError(f"there is no study {name!r}: the studies are {', '.join(STUDIES)}.")
    return STUDIES[name]
