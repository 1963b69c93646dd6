"""Every overlay of configs/methods: the objects it builds, and the numbers that a step with it logs.

The numbers belong to one recorded batch: four prompts with eight completions, of which 2, 6, 8 and 0 are right, and in
each group completions of the same lengths with the same ratios. What is expected of them is worked out below, token by
token and in plain Python, without the package's code.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, AsymGRPO
from asymgrpo_app.algorithm.baselines import RLOO, DrGRPO, GroupNormalized, PassAtK
from asymgrpo_app.algorithm.cispo import CISPO
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.correction import SamplerCorrection
from asymgrpo_app.algorithm.covariance import ClipCov, KLCov
from asymgrpo_app.algorithm.gspo import GSPO
from asymgrpo_app.algorithm.objective import Objective
from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.cli.build import Run
from asymgrpo_app.cli.run import check_fit, prepared
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.rollout.dynamic import DynamicSampling
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.update.loss_config import AdaptiveEntropyConfig, EntropyAdvantageConfig, LossConfig
from tests.support.paths import REPOSITORY
from tests.support.table_policy import UPDATES_PER_STEP, Step, Table, judged, rollout_batch, run_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),  # these steps are not validated
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning's use of torch
]

OVERLAYS = REPOSITORY / "configs/methods"

# ---- the recorded batch ----

RIGHT = (2, 6, 8, 0)
"""How many completions of each group are right: the first ones."""

RATIOS = ((1.0, 1.25, 1.6), (0.75, 0.9), (1.5,), (0.5, 1.1), (1.3,), (0.5, 1.22), (1.0,), (0.7, 1.6))
"""pi_theta / pi_old of the tokens of a group's eight completions: 14 tokens, 56 in the batch."""

MAX_TOKENS = 3
SAMPLER_RATIOS = (0.5, 1.0, 1.5, 3.0)
"""Trainer / sampler at the start of the step, in turn: their mean is 1.5, and 1.25 truncated at 2."""


@dataclass(frozen=True)
class Token:
    """One token of the batch; `place` counts through all of them."""

    place: int
    group: int
    number: int
    length: int
    ratio: float

    @property
    def right(self) -> bool:
        return self.number < RIGHT[self.group]

    @property
    def start_logprob(self) -> float:
        # One token stands out. Its completion is right in a group of two right ones, so it alone has a covariance
        # (A - mean A)(lp - mean lp) above 1: with GRPO's advantages (1.732 - 0.082)(1.5 - 1.5 / 56) = 2.43.
        return -0.5 if self.stands_out else -2.0

    @property
    def stands_out(self) -> bool:
        return self.group == 0 and self.number == 1 and self.ratio == 0.75

    @property
    def logprob(self) -> float:
        return self.start_logprob + math.log(self.ratio)

    @property
    def sampler_ratio(self) -> float:
        return SAMPLER_RATIOS[self.place % 4]

    @property
    def start_entropy(self) -> float:
        return (0.5, 1.0)[self.place % 2]

    @property
    def reference_logprob(self) -> float:
        return self.logprob + (0.3, -0.2)[self.place % 2]


def _tokens() -> Iterator[Token]:
    place = 0
    for group in range(len(RIGHT)):
        for number, ratios in enumerate(RATIOS):
            for ratio in ratios:
                yield Token(place, group, number, len(ratios), ratio)
                place += 1


TOKENS = tuple(_tokens())


def table(entropies: tuple[float, float] = (0.1, 0.2)) -> Table:
    """The policy that gives these tokens their ratios; its entropies now are 0.15 in the mean."""
    return Table(
        start_logprobs=[token.start_logprob for token in TOKENS],
        logprobs=[token.logprob for token in TOKENS],
        start_entropy=[token.start_entropy for token in TOKENS],
        entropy=[entropies[token.place % 2] for token in TOKENS],
        reference_logprobs=[token.reference_logprob for token in TOKENS],
    )


def recorded(cut: tuple[tuple[int, int], ...] = (), **treatment: bool) -> RolloutBatch:
    """The batch; `cut` names completions (group, number) that the length limit cut."""
    groups = []
    for group in range(len(RIGHT)):
        completions = []
        for number in range(len(RATIOS)):
            tokens = [token for token in TOKENS if (token.group, token.number) == (group, number)]
            places = [token.place for token in tokens]
            sampler = [token.start_logprob - math.log(token.sampler_ratio) for token in tokens]
            truncated = (group, number) in cut
            completions.append(judged(places, sampler, correct=tokens[0].right, truncated=truncated))
        groups.append(completions)
    return rollout_batch(groups, MAX_TOKENS, **treatment)


# ---- per-token losses by hand: (value, derivative by the log-probability) ----

TokenLoss = Callable[[Token, float], tuple[float, float]]


def clipped_at(low: float, high: float) -> TokenLoss:
    """-min(rho A, clip(rho) A); flat where the clipped side is the smaller one."""

    def loss(token: Token, advantage: float) -> tuple[float, float]:
        bounded = min(max(token.ratio, 1 - low), 1 + high)
        flat = bounded * advantage < token.ratio * advantage
        return -min(token.ratio * advantage, bounded * advantage), 0.0 if flat else -token.ratio * advantage

    return loss


CLIPPED = clipped_at(0.2, 0.2)


def by_completion(token: Token, advantage: float) -> tuple[float, float]:
    """GSPO's, with the geometric mean of the completion's ratios and its paper's bounds."""
    ratio = math.prod(RATIOS[token.number]) ** (1 / token.length)
    bounded = min(max(ratio, 1 - 3e-4), 1 + 4e-4)
    flat = bounded * advantage < ratio * advantage
    return -min(ratio * advantage, bounded * advantage), 0.0 if flat else -ratio * advantage


def weighted(token: Token, advantage: float) -> tuple[float, float]:
    """CISPO's: no ratio here reaches its bound of 5."""
    return -token.ratio * advantage * token.logprob, -token.ratio * advantage


def without_the_outstanding(token: Token, advantage: float) -> tuple[float, float]:
    """Clip-Cov's: 2e-4 of 56 tokens is rounded up to one, and there is one candidate."""
    return (0.0, 0.0) if token.stands_out else CLIPPED(token, advantage)


def penalized_where_outstanding(token: Token, advantage: float) -> tuple[float, float]:
    """KL-Cov's: the same token is the one of highest covariance; its ratio is below 1."""
    value, slope = -token.ratio * advantage, -token.ratio * advantage
    return (value - math.log(token.ratio), slope - 1.0) if token.stands_out else (value, slope)


def corrected(token: Token, advantage: float) -> tuple[float, float]:
    """The clipped loss times the sampler's ratio, truncated at 2."""
    value, slope = CLIPPED(token, advantage)
    weight = min(token.sampler_ratio, 2.0)
    return value * weight, slope * weight


# ---- the table ----


@dataclass(frozen=True)
class Overlay:
    """What one overlay promises.

    Attributes:
        advantage: The estimator it builds.
        by_group: Advantage of a right and of a wrong completion, with 2, 6, 8 and 0 of eight right.
        clip_counts: How many of the 56 tokens are clipped, with A > 0 and with A < 0; None: none are counted.
        objective: The objective it builds.
        token_loss: The same by hand.
        loss: The loss settings it builds.
        dynamic_sampling: The dynamic sampling it builds.
        shaped: What becomes of a token's advantage after groups were compared.
        logged: Scalars that only some overlays have.
    """

    advantage: AdvantageEstimator
    by_group: tuple[tuple[float, float], ...]
    clip_counts: tuple[int, int] | None = (7, 4)
    objective: Objective = field(default_factory=ClippedObjective)
    token_loss: TokenLoss = CLIPPED
    loss: LossConfig = LossConfig()  # noqa: RUF009 (frozen)
    dynamic_sampling: DynamicSampling | None = None
    shaped: Callable[[Token, float], float] = lambda token, advantage: advantage
    logged: dict[str, float] = field(default_factory=dict)


def both(beta_pos: float, beta_neg: float) -> tuple[tuple[float, float], ...]:
    """AsymGRPO on mixed groups: (1-p)/p is 3 with two of eight right and 1/3 with six."""
    return (3**beta_pos, -((1 / 3) ** beta_neg)), ((1 / 3) ** beta_pos, -(3**beta_neg)), (0.0, 0.0), (0.0, 0.0)


def centered(factor: float) -> tuple[tuple[float, float], ...]:
    """r - p, times a factor."""
    return (0.75 * factor, -0.25 * factor), (0.25 * factor, -0.75 * factor), (0.0, 0.0), (0.0, 0.0)


def signs(right: float, wrong: float) -> tuple[tuple[float, float], ...]:
    """The same in every group, solved or not."""
    return ((right, wrong),) * 4


GRPO, ROOT3 = AsymGRPO(beta_pos=0.5, beta_neg=0.5), math.sqrt(3)
HIGHER = {"objective": ClippedObjective(clip_high=0.28), "token_loss": clipped_at(0.2, 0.28)}
END = 2 * math.sqrt(7) - ROOT3
"""A flipped curve at its pole, continued linearly from 7 and 6 of eight, where it is 7^0.5 and 3^0.5: 3.5595."""

STD = math.sqrt(1.5 / 7)
"""Standard deviation with n-1 of two or of six ones among eight: 8 * 0.25 * 0.75 = 1.5."""

PENALTIES = {1: 0.0, 2: -0.5, 3: -1.0}
"""DAPO's by length: the ramp is two tokens below the limit of three."""

EXPECTED = {
    "adaptive_entropy": Overlay(
        GRPO,
        both(0.5, 0.5),
        loss=LossConfig(adaptive_entropy=AdaptiveEntropyConfig(coef=0.0, target=0.2, delta=1e-4, max_coef=0.005)),
        logged={"actor/entropy_coef": 0.0},
    ),
    "asymgrpo": Overlay(AsymGRPO(beta_pos=0.9, beta_neg=0.4), both(0.9, 0.4)),
    "asymgrpo_clip_higher": Overlay(AsymGRPO(beta_pos=0.9, beta_neg=0.3), both(0.9, 0.3), (4, 4), **HIGHER),
    "cispo": Overlay(GRPO, both(0.5, 0.5), (0, 0), objective=CISPO(ratio_max=5.0, ratio_min=0.0), token_loss=weighted),
    "clip_cov": Overlay(
        GRPO,
        both(0.5, 0.5),
        objective=ClipCov(clip_low=0.2, clip_high=0.2, share=2e-4, cov_low=1.0, cov_high=5.0),
        token_loss=without_the_outstanding,
        logged={"actor/pg_clipfrac_cov": 1 / 56},
    ),
    "dapo": Overlay(
        GRPO,
        both(0.5, 0.5),
        # The penalty of 1 turns the longest right completion of six: it has 1 / 3^0.5 - 1 < 0.
        (3, 4),
        loss=LossConfig(overlong_buffer=2),
        dynamic_sampling=DynamicSampling(max_rounds=4),
        shaped=lambda token, advantage: advantage + PENALTIES[token.length] if advantage else 0.0,
        logged={"advantages/overlong_penalty": -3 / 8},
        **HIGHER,
    ),
    "dr_grpo": Overlay(DrGRPO(), centered(1)),
    "dr_grpo_original": Overlay(DrGRPO(), centered(1), loss=LossConfig(aggregation="constant")),
    # A flipped curve gives completely solved (failed) groups an advantage, so their tokens are clipped, too.
    "ent_decrease": Overlay(
        AsymGRPO(beta_pos=0.5, beta_neg=0.5, flip="ent_decrease"),
        ((1 / ROOT3, -1 / ROOT3), (ROOT3, -ROOT3), (END, 0.0), (0.0, 0.0)),
        (13, 4),
    ),
    "ent_increase": Overlay(
        AsymGRPO(beta_pos=0.5, beta_neg=0.5, flip="ent_increase"),
        ((ROOT3, -ROOT3), (1 / ROOT3, -1 / ROOT3), (0.0, 0.0), (0.0, -END)),
        (7, 8),
    ),
    "grpo": Overlay(GRPO, ((ROOT3, -1 / ROOT3), (1 / ROOT3, -ROOT3), (0.0, 0.0), (0.0, 0.0))),
    "grpo_clip_higher": Overlay(GRPO, both(0.5, 0.5), (4, 4), **HIGHER),
    "grpo_entropy_advantage": Overlay(
        GRPO,
        both(0.5, 0.5),
        loss=LossConfig(entropy_advantage=EntropyAdvantageConfig(alpha=0.4, kappa=2.0)),
        shaped=lambda token, advantage: advantage + min(0.4 * token.start_entropy, abs(advantage) / 2),
    ),
    "grpo_entropy_bonus": Overlay(GRPO, both(0.5, 0.5), loss=LossConfig(entropy_coef=0.001)),
    "grpo_trl": Overlay(GroupNormalized(eps=1e-4), centered(1 / (STD + 1e-4)), loss=LossConfig(aggregation="sequence")),
    "grpo_verl": Overlay(
        GroupNormalized(eps=1e-6),
        centered(1 / (STD + 1e-6)),
        objective=ClippedObjective(dual_clip=3.0),  # never reached by ratios up to 1.6
        logged={"actor/pg_clipfrac_dual": 0.0},
    ),
    "gspo": Overlay(
        GRPO,
        both(0.5, 0.5),
        # Completions 0, 2, 4 and 7 rose, 1, 3 and 5 fell: with two right 3 and 2 + 2 tokens, with six 3 + 1 + 1 and 0.
        (8, 4),
        objective=GSPO(clip_low=3e-4, clip_high=4e-4),
        token_loss=by_completion,
        loss=LossConfig(aggregation="sequence"),
    ),
    "kl_cov": Overlay(
        GRPO,
        both(0.5, 0.5),
        None,
        objective=KLCov(share=2e-3, kl_coef=1.0),
        token_loss=penalized_where_outstanding,
        logged={"actor/kl_cov_frac": 1 / 56},
    ),
    "maxrl": Overlay(AsymGRPO(beta_pos=1.0, beta_neg=0.0), ((3.0, -1.0), (1 / 3, -1.0), (0.0, 0.0), (0.0, 0.0))),
    "neg_only": Overlay(
        AsymGRPO(beta_pos=0.0, beta_neg=0.5, degenerate_groups="keep"),
        ((1.0, -1 / ROOT3), (1.0, -ROOT3), (1.0, 0.0), (0.0, 0.0)),
        (13, 4),
    ),
    "nsr": Overlay(
        AsymGRPO(beta_pos=0.0, beta_neg=0.0, degenerate_groups="keep", scale_pos=0.0), signs(0.0, -1.0), (0, 8)
    ),
    # C(6,5) / C(8,5) = 3/28 is the chance of no right one, s^2 = 3/28 * 25/28, and C(5,4) / C(7,4) = 1/7. With six
    # right every choice of five has one.
    "pass_at_k": Overlay(PassAtK(k=5), ((ROOT3 / 5, -1 / (5 * ROOT3)), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), (2, 3)),
    "pos_only": Overlay(
        AsymGRPO(beta_pos=0.5, beta_neg=0.0, degenerate_groups="keep"),
        ((ROOT3, -1.0), (1 / ROOT3, -1.0), (0.0, 0.0), (0.0, -1.0)),
        (7, 8),
    ),
    "psr": Overlay(
        AsymGRPO(beta_pos=0.0, beta_neg=0.0, degenerate_groups="keep", scale_neg=0.0), signs(1.0, 0.0), (13, 0)
    ),
    "reinforce": Overlay(AsymGRPO(beta_pos=0.0, beta_neg=0.0, degenerate_groups="keep"), signs(1.0, -1.0), (13, 8)),
    "rloo": Overlay(RLOO(), centered(8 / 7)),
    "sampler_correction": Overlay(
        GRPO,
        both(0.5, 0.5),
        token_loss=corrected,
        loss=LossConfig(correction=SamplerCorrection(mode="truncate", level="token", threshold=2.0)),
        logged={
            "rollout_corr/ratio_raw_mean": 1.5,
            "rollout_corr/ratio_mean": 1.25,
            "rollout_corr/ratio_raw_max": 3.0,
            "rollout_corr/ratio_max": 2.0,
            "rollout_corr/masked": 0.0,
        },
    ),
    "symmetric": Overlay(AsymGRPO(beta_pos=0.7, beta_neg=0.7), both(0.7, 0.7)),
    "w_reinforce": Overlay(
        AsymGRPO(beta_pos=0.0, beta_neg=0.0, degenerate_groups="keep", scale_pos=0.1), signs(0.1, -1.0), (13, 8)
    ),
}

ONLY_SOME_HAVE = {name for overlay in EXPECTED.values() for name in overlay.logged} | {"actor/kl_loss"}


# ---- what an overlay builds ----


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[[str], Run]:
    """The quick start with one overlay on top, built once and looked at as before training."""
    built: dict[str, Run] = {}
    folder = tmp_path_factory.mktemp("runs")

    def made(name: str) -> Run:
        if name not in built:
            built[name] = prepared(
                [
                    "fit",
                    f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
                    f"--config={OVERLAYS / name}.yaml",
                    f"--model.policy={REPOSITORY / 'data/countdown_base'}",
                    f"--run_dir={folder / name}",
                ]
            )
            check_fit(built[name], dry_run=False)
        return built[name]

    return made


def test_every_overlay_is_in_the_table():
    assert sorted(path.name for path in OVERLAYS.iterdir()) == sorted(f"{name}.yaml" for name in EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_overlay_names_its_source_and_its_use(name):
    head = (OVERLAYS / f"{name}.yaml").read_text().split("model:")[0]
    assert re.search(r"^# Source: .*(arXiv \d{4}\.\d{5}|TRL and verl)", head, re.MULTILINE)
    command = (
        f"asymgrpo fit --config configs/quickstart.yaml --config configs/methods/{name}.yaml --run_dir runs/{name}"
    )
    assert f"# Overlay: {command}\n" in head


def test_the_users_page_names_every_overlay():
    page = (REPOSITORY / "docs/method.md").read_text()
    assert [name for name in EXPECTED if f"`{name}`" not in page] == []


def same(built: object, expected: object) -> bool:
    return type(built) is type(expected) and vars(built) == vars(expected)


@pytest.mark.parametrize("name", EXPECTED)
def test_overlay_builds_what_it_says(name, build):
    made, expected = build(name), EXPECTED[name]
    assert same(made.module.advantage, expected.advantage), vars(made.module.advantage)
    assert same(made.module.objective, expected.objective), vars(made.module.objective)
    assert made.module.loss == expected.loss
    (rollout,) = [callback for callback in made.trainer.callbacks if isinstance(callback, VLLMRolloutCallback)]
    assert rollout.dynamic_sampling == expected.dynamic_sampling
    # What an overlay does not speak of stays the quick start's.
    assert (rollout.group_size, rollout.settings.max_tokens, rollout.settings.temperature) == (8, 10, 1.0)
    assert (made.module.passes_per_step, made.module.max_grad_norm) == (1, 1.0)
    # The updates of the paper: the second one is off policy, or no clip range would ever act.
    assert made.module.updates_per_step == 2
    assert (made.data.prompts_per_step, made.data.seed) == (64, 0)


# ---- what a step logs ----


def module_of(model: AsymGRPOModule, loss: LossConfig | None = None) -> AsymGRPOModule:
    """The overlay's method, with a second update for the off-policy tokens and an optimizer that stands still.

    Args:
        model: What the overlay built.
        loss: Other loss settings than the overlay's.
    """
    return AsymGRPOModule(
        model.policy_path,
        advantage=model.advantage,
        objective=model.objective,
        loss=loss or model.loss,
        updates_per_step=UPDATES_PER_STEP,
        micro_batch_tokens=12,  # at most six completions at a time
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )


def advantage_of(overlay: Overlay, token: Token) -> float:
    right, wrong = overlay.by_group[token.group]
    return overlay.shaped(token, right if token.right else wrong)


def weight_of(aggregation: str, token: Token) -> float:
    """What the step's loss multiplies a token's loss by: 56 tokens, 32 completions, a limit of 3."""
    return {"token": 1 / 56, "sequence": 1 / (32 * token.length), "constant": 1 / 96}[aggregation]


@pytest.mark.parametrize("name", EXPECTED)
def test_logged_values_are_those_worked_out_by_hand(name, build, monkeypatch):
    overlay = EXPECTED[name]
    (step,) = run_steps(module_of(build(name).module), recorded(), table(), monkeypatch)

    completions = [
        advantage
        for group, (right, wrong) in enumerate(overlay.by_group)
        for advantage in [right] * RIGHT[group] + [wrong] * (8 - RIGHT[group])
    ]
    losses = [overlay.token_loss(token, advantage_of(overlay, token)) for token in TOKENS]
    weights = [weight_of(overlay.loss.aggregation, token) for token in TOKENS]
    expected = overlay.logged | {
        "reward/mean": 0.5,
        "advantages/mean": sum(completions) / 32,
        "advantages/abs_max": max(map(abs, completions)),
        "actor/loss_divisor": {"token": 56, "sequence": 32, "constant": 96}[overlay.loss.aggregation],
        "actor/pg_loss": sum(weight * value for weight, (value, _) in zip(weights, losses, strict=True)),
        "actor/ppo_kl": -sum(math.log(token.ratio) for token in TOKENS) / 56,
        "actor/entropy": 0.15,
        "rollout_corr/kl": -sum(map(math.log, SAMPLER_RATIOS)) / 4,
    }
    if overlay.clip_counts is not None:
        high, low = overlay.clip_counts
        expected |= {
            "actor/pg_clipfrac": (high + low) / 56,
            "actor/pg_clipfrac_pos": high / 56,
            "actor/pg_clipfrac_neg": low / 56,
        }
    assert {tag: step.logged.get(tag) for tag in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert ONLY_SOME_HAVE & step.logged.keys() == overlay.logged.keys()
    assert ("actor/pg_clipfrac" in step.logged) == (overlay.clip_counts is not None)

    slopes = [weight * slope for weight, (_, slope) in zip(weights, losses, strict=True)]
    assert step.logprob_gradient == pytest.approx(slopes, rel=1e-5, abs=1e-9)
    assert step.entropy_gradient == pytest.approx([-overlay.loss.entropy_coef / 56] * 56, rel=1e-5)


def test_the_tables_golden_numbers():
    """The closed forms above against the numbers of the paper's setting, to four decimals."""
    rounded = {name: [round(a, 4) for pair in EXPECTED[name].by_group[:2] for a in pair] for name in EXPECTED}
    assert rounded["asymgrpo"] == [2.6879, -0.6444, 0.3720, -1.5518]
    assert rounded["asymgrpo_clip_higher"] == [2.6879, -0.7192, 0.3720, -1.3904]
    assert rounded["symmetric"] == [2.1577, -0.4635, 0.4635, -2.1577]
    assert rounded["grpo"] == [1.7321, -0.5774, 0.5774, -1.7321]
    assert rounded["grpo_verl"] == [1.6202, -0.5401, 0.5401, -1.6202]  # sqrt(7/8) times those of grpo
    assert rounded["pass_at_k"] == [0.3464, -0.1155, 0.0, 0.0]
    assert round(END, 4) == 3.5595


def test_adaptive_coefficient_rises_below_the_target_from_the_second_step_on(build, monkeypatch):
    module = module_of(build("adaptive_entropy").module)
    steps = run_steps(module, recorded(), table(), monkeypatch, steps=3)
    # 0.15 nats are below the target of 0.2. The first step has nothing to go by.
    assert [step.logged["actor/entropy_coef"] for step in steps] == pytest.approx([0.0, 1e-4, 2e-4])
    for step, coefficient in zip(steps, [0.0, 1e-4, 2e-4], strict=True):
        assert step.entropy_gradient == pytest.approx([-coefficient / 56] * 56, rel=1e-5)


def test_adaptive_coefficient_is_not_applied_above_the_target(build, monkeypatch):
    loss = LossConfig(adaptive_entropy=AdaptiveEntropyConfig(coef=0.003))
    module = module_of(build("adaptive_entropy").module, loss)
    steps = run_steps(module, recorded(), table(entropies=(0.2, 0.4)), monkeypatch, steps=3)
    assert [step.logged["actor/entropy_coef"] for step in steps] == [0.0, 0.0, 0.0]
    assert [step.entropy_gradient for step in steps] == [[0.0] * 56] * 3


def test_divergence_from_the_reference_acts_on_every_token(build, monkeypatch):
    module = module_of(build("grpo").module, LossConfig(kl_coef=0.05))
    (step,) = run_steps(module, recorded(), table(), monkeypatch)
    # The reference is 0.3 nats above the policy on every other token and 0.2 below it on the others.
    up, down = math.exp(0.3) - 0.3 - 1, math.exp(-0.2) + 0.2 - 1
    assert step.logged["actor/kl_loss"] == pytest.approx((up + down) / 2, rel=1e-4)
    policy_losses = [CLIPPED(token, advantage_of(EXPECTED["grpo"], token)) for token in TOKENS]
    assert step.logged["actor/pg_loss"] == pytest.approx(sum(value for value, _ in policy_losses) / 56, rel=1e-5)
    slopes = [
        (slope + 0.05 * (1 - math.exp(token.reference_logprob - token.logprob))) / 56
        for token, (_, slope) in zip(TOKENS, policy_losses, strict=True)
    ]
    assert step.logprob_gradient == pytest.approx(slopes, rel=1e-4, abs=1e-8)
    assert module.state_dict().keys() == {"policy.logprobs", "policy.entropy"}  # none of the reference


CUT = ((0, 0),)
"""The first completion of the first group, right and three tokens long, was cut: one right one is left."""


def gradient_of_cut(step: Step) -> list[Any]:
    return [step.logprob_gradient[token.place] for token in TOKENS if (token.group, token.number) == CUT[0]]


def test_a_truncated_completion_counts_as_wrong(build, monkeypatch):
    (step,) = run_steps(module_of(build("grpo").module), recorded(cut=CUT), table(), monkeypatch)
    right, wrong = math.sqrt(7), -1 / math.sqrt(7)  # one of eight
    assert step.logged["reward/mean"] == 15 / 32
    assert step.logged["advantages/abs_max"] == pytest.approx(right)
    assert step.logged["advantages/mean"] == pytest.approx(0.0, abs=1e-7)  # GRPO's, as in every group
    assert step.logged["actor/loss_divisor"] == 56
    assert step.logged["response_length/clip_ratio"] == 1 / 32
    # Its ratios are 1, 1.25 and 1.6; a negative advantage is not clipped above.
    assert gradient_of_cut(step) == pytest.approx([-ratio * wrong / 56 for ratio in (1.0, 1.25, 1.6)], rel=1e-5)


def test_a_truncated_completion_is_left_out_where_the_config_says_so(build, monkeypatch):
    rollouts = recorded(cut=CUT, truncated_are_wrong=False)
    (step,) = run_steps(module_of(build("asymgrpo").module), rollouts, table(), monkeypatch)
    right, wrong = 6**0.9, -((1 / 6) ** 0.4)  # one of seven
    solved_six = 6 * (1 / 3) ** 0.9 - 2 * 3**0.4
    assert step.logged["reward/mean"] == pytest.approx(15 / 31)
    assert step.logged["advantages/abs_max"] == pytest.approx(right)
    assert step.logged["advantages/mean"] == pytest.approx((right + 6 * wrong + solved_six) / 31, rel=1e-5)
    assert step.logged["actor/loss_divisor"] == 53
    assert gradient_of_cut(step) == [0.0, 0.0, 0.0]
