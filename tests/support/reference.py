"""What the scalars of a run should be, calculated again from its recorded rollouts: plainly, slowly, and apart.

One completion at a time goes through transformers' own forward pass, with whole logits and float64 weights; sums are
Python loops over tokens. Nothing here comes from the package, so what both agree on is right or misunderstood alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Settings:
    """The options of the run that its scalars depend on, named as in the config; lists have a value per RL step."""

    beta_pos: list[float]
    beta_neg: float
    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    overlong_buffer: int
    entropy_target: float
    entropy_coef: float
    entropy_delta: float
    correction_threshold: float
    updates_per_step: int
    passes_per_step: int
    max_grad_norm: float
    lr: list[float]
    weight_decay: float
    eps: float
    max_completion_tokens: int
    temperature: float
    change_completions: int


@dataclass
class Completion:
    """One recorded completion; left out if the limit cut it."""

    prompt: list[int]
    tokens: list[int]
    sampler: list[float]
    verdict: bool
    status: str
    text: str
    cut: bool
    A: float = 0.0
    before_penalty: float = 0.0
    start: Tensor = field(default_factory=lambda: torch.zeros(0))
    start_entropy: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def right(self) -> bool:
        return self.verdict and not self.cut

    @property
    def counts(self) -> bool:
        return not self.cut


@dataclass
class Token:
    """What one token was in one update."""

    rho: float
    log_ratio: float
    A: float
    H: float
    right: bool
    loss: float
    k3: float
    raw_weight: float
    weight: float


def groups_of(line: dict[str, Any]) -> list[list[Completion]]:
    """The completions of a recorded batch by prompt."""
    columns = (line[name] for name in ("prompts", "groups", "statuses", "texts", "truncated"))
    return [
        [
            Completion(prompt, tokens, logprobs, verdict, *others)
            for (tokens, verdict, logprobs), *others in zip(group, *more, strict=True)
        ]
        for prompt, group, *more in zip(*columns, strict=True)
    ]


def means(values: dict[str, Iterable[float]]) -> dict[str, float]:
    """The mean of each list; of nothing, none."""
    lists = {name: [float(value) for value in each] for name, each in values.items()}
    return {name: sum(each) / len(each) for name, each in lists.items() if each}


def evaluation(line: dict[str, Any], ks: list[int]) -> dict[str, float]:
    """avg@n, pass@k by trying every choice of k of the n completions, and maj@n."""
    groups = groups_of(line)
    right = [[completion.right for completion in group] for group in groups]
    n = len(right[0])
    values = means({f"avg@{n}": (sum(group) / n for group in right), f"maj@{n}": map(majority, groups)})
    for k in ks:
        values |= means({f"pass@{k}": (any(choice) for group in right for choice in combinations(group, k))})
    return values


def majority(group: list[Completion]) -> float:
    """The chance that the most frequent answer is right, if chance decides between equally frequent ones."""
    answers: dict[str, list[bool]] = {}
    for completion in group:
        if completion.status == "ok":
            answers.setdefault(completion.text, []).append(completion.right)
    most = max(map(len, answers.values()), default=0)
    first = [sum(right) / most for right in answers.values() if len(right) == most]
    return sum(first) / len(first) if first else 0.0


class Reference:
    """The run, step by step: `step` takes the recorded rollouts and returns the step's scalars."""

    def __init__(self, policy: str, settings: Settings) -> None:
        self.settings = settings
        self.policy, self.initial = (
            AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64) for _ in range(2)
        )
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=settings.lr[0], weight_decay=settings.weight_decay, eps=settings.eps
        )
        self.completed = 0
        self.entropy_coef, self.entropy_is_low = settings.entropy_coef, False

    def step(self, line: dict[str, Any]) -> dict[str, float]:
        """All scalars of one RL step but timings, `perf/*`, `data/*` and those of epochs."""
        groups = groups_of(line)
        every = [completion for group in groups for completion in group]
        values = self._rewards(groups) | self._advantages(groups) | self._lengths(every)
        for completion in every:
            with torch.no_grad():
                completion.start, completion.start_entropy = self._score(self.policy, completion)
                completion.reference, _ = self._score(self.initial, completion)
        values |= self._by_accuracy(groups) | self._sampler([c for c in every if c.counts])
        values |= self._updates(groups) | self._change([c for c in every if c.counts])
        self.completed += 1
        return values

    def _score(self, model: Any, completion: Completion) -> tuple[Tensor, Tensor]:
        """Log-probability of each token, and the entropy of its distribution, at the sampling temperature."""
        logits = model(torch.tensor([completion.prompt + completion.tokens])).logits[0]
        logits = logits[len(completion.prompt) - 1 : -1].double() / self.settings.temperature
        logp = logits - logits.exp().sum(-1, keepdim=True).log()
        chosen = torch.stack([row[token] for row, token in zip(logp, completion.tokens, strict=True)])
        return chosen, -(logp.exp() * logp).sum(-1)

    # ---- from verdicts alone ----

    def _rewards(self, groups: list[list[Completion]]) -> dict[str, float]:
        every = [completion for group in groups for completion in group]
        accuracies = [p for group in groups if (p := accuracy(group)) is not None]
        of_status = {name: [c.status == name for c in every] for name in ("timeout", "error", "no_answer")}
        return means(
            {
                "reward/mean": (c.right for c in every if c.counts),
                "reward/solved_all": (p == 1 for p in accuracies),
                "reward/solved_none": (p == 0 for p in accuracies),
                "reward/mixed": (0 < p < 1 for p in accuracies),
                **{f"reward/{name}": each for name, each in of_status.items()},
            }
        )

    def _advantages(self, groups: list[list[Completion]]) -> dict[str, float]:
        of = self.settings
        beta_pos = of.beta_pos[self.completed]
        penalties, mass = [], {True: [], False: []}
        for group in groups:
            p, counted = accuracy(group), [c for c in group if c.counts]
            for c in counted:
                if p not in (0, 1, None):
                    c.A = ((1 - p) / p) ** beta_pos if c.right else -((p / (1 - p)) ** of.beta_neg)
                c.before_penalty = c.A
                over = len(c.tokens) - (of.max_completion_tokens - of.overlong_buffer)
                penalties.append(-min(max(over / of.overlong_buffer, 0.0), 1.0))
                c.A += penalties[-1] if c.A else 0.0
            for side in mass if counted else ():
                mass[side].append(sum(abs(c.before_penalty) for c in counted if c.right is side) / len(counted))
        every = [c for group in groups for c in group if c.counts]
        return means(
            {
                "advantages/mean": (c.before_penalty for c in every),
                "advantages/mass_pos": mass[True],
                "advantages/mass_neg": mass[False],
                "advantages/overlong_penalty": penalties,
                "advantages/abs_max": [max(abs(c.before_penalty) for c in every)],
                "advantages/beta_pos": [beta_pos],
                "advantages/beta_neg": [of.beta_neg],
            }
        )

    def _lengths(self, every: list[Completion]) -> dict[str, float]:
        lengths = [len(c.tokens) for c in every]
        return means(
            {
                "response_length/mean": lengths,
                "response_length/pos": (len(c.tokens) for c in every if c.right),
                "response_length/neg": (len(c.tokens) for c in every if not c.right),
                "response_length/min": [min(lengths)],
                "response_length/max": [max(lengths)],
                "response_length/clip_ratio": (c.cut for c in every),
            }
        )

    # ---- from the policy at the start of the step ----

    def _by_accuracy(self, groups: list[list[Completion]]) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for group in groups:
            p, counted = accuracy(group), [c for c in group if c.counts]
            if p in (0, 1, None):
                continue
            name = ("p00-25", "p25-50", "p50-75", "p75-100")[int(4 * p)]
            entropies = torch.cat([c.start_entropy for c in counted])
            logprobs = [float(c.start.mean()) for c in counted]
            mean_advantage, mean_lp = (sum(each) / len(each) for each in ([c.A for c in counted], logprobs))
            products = [(c.A - mean_advantage) * (lp - mean_lp) for c, lp in zip(counted, logprobs, strict=True)]
            values.setdefault(f"method/entropy_{name}", []).append(float(entropies.mean()))
            values.setdefault(f"method/cov_{name}", []).append(sum(products) / len(products))
        return means(values)

    def _sampler(self, counted: list[Completion]) -> dict[str, float]:
        gaps = [s - float(t) for c in counted for s, t in zip(c.sampler, c.start, strict=True)]
        return means(
            {
                "rollout_corr/kl": gaps,
                "rollout_corr/logprob_abs_diff_mean": (abs(gap) for gap in gaps),
                "rollout_corr/logprob_abs_diff_max": [max(abs(gap) for gap in gaps)],
            }
        )

    # ---- the updates ----

    def _updates(self, groups: list[list[Completion]]) -> dict[str, float]:
        of = self.settings
        coefficient = self.entropy_coef if self.entropy_is_low else 0.0
        share = len(groups) // of.updates_per_step
        tokens: list[Token] = []
        norms, divisors = [], []
        for number in range(of.passes_per_step * of.updates_per_step):
            first = number % of.updates_per_step * share
            counted = [c for group in groups[first : first + share] for c in group if c.counts]
            divisors.append(sum(len(c.tokens) for c in counted))
            self.optimizer.zero_grad()
            for c in counted:
                loss, of_tokens = self._losses(c, coefficient)
                (loss / divisors[-1]).backward()
                tokens += of_tokens
            norms.append(self._optimize(of.lr[self.completed]))
        values = self._of_tokens(tokens) | means({"actor/grad_norm": norms, "actor/loss_divisor": divisors})
        values |= {"actor/lr": of.lr[self.completed], "actor/entropy_coef": coefficient, "actor/skipped_updates": 0.0}
        self.entropy_is_low = values["actor/entropy"] < of.entropy_target
        self.entropy_coef += of.entropy_delta if self.entropy_is_low else -of.entropy_delta
        return values

    def _losses(self, c: Completion, entropy_coef: float) -> tuple[Tensor, list[Token]]:
        of, total, tokens = self.settings, torch.zeros((), dtype=torch.float64), []
        logprobs, entropies = self._score(self.policy, c)
        for lp, entropy, old, reference, sampler in zip(
            logprobs, entropies, c.start, c.reference, c.sampler, strict=True
        ):
            rho = (lp - old).exp()
            clipped = rho.clamp(1 - of.clip_low, 1 + of.clip_high)
            loss = -torch.minimum(rho * c.A, clipped * c.A)
            if c.A < 0:
                loss = loss.clamp(max=-of.dual_clip * c.A)
            raw_weight = float((old - sampler).exp())
            weight = min(raw_weight, of.correction_threshold)
            k3 = (reference - lp).exp() - (reference - lp) - 1
            total = total + weight * loss + of.kl_coef * k3 - entropy_coef * entropy
            numbers = (rho.item(), (lp - old).item(), c.A, entropy.item(), c.right, weight * loss.item(), k3.item())
            tokens.append(Token(*numbers, raw_weight, weight))
        return total, tokens

    def _optimize(self, lr: float) -> float:
        """One step of AdamW; returns the norm of the gradient before it is scaled down."""
        gradients = [p.grad for p in self.policy.parameters()]
        norm = sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        for gradient in gradients:
            gradient *= min(1.0, self.settings.max_grad_norm / norm)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        return norm

    def _of_tokens(self, tokens: list[Token]) -> dict[str, float]:
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        return means(
            {
                "actor/entropy": (t.H for t in tokens),
                "actor/entropy_pos": (t.H for t in tokens if t.right),
                "actor/entropy_neg": (t.H for t in tokens if not t.right),
                "actor/pg_loss": (t.loss for t in tokens),
                "actor/ppo_kl": (-t.log_ratio for t in tokens),
                "actor/ratio_pos": (t.rho for t in tokens if t.A > 0),
                "actor/ratio_neg": (t.rho for t in tokens if t.A < 0),
                "actor/ratio_max": [max(t.rho for t in tokens)],
                "actor/pg_clipfrac": ((t.A > 0 and t.rho > high) or (t.A < 0 and t.rho < low) for t in tokens),
                "actor/pg_clipfrac_pos": (t.A > 0 and t.rho > high for t in tokens),
                "actor/pg_clipfrac_neg": (t.A < 0 and t.rho < low for t in tokens),
                "actor/pg_clipfrac_dual": (t.A < 0 and t.rho > self.settings.dual_clip for t in tokens),
                "actor/kl_loss": (t.k3 for t in tokens),
                "rollout_corr/ratio_raw_mean": (t.raw_weight for t in tokens),
                "rollout_corr/ratio_raw_max": [max(t.raw_weight for t in tokens)],
                "rollout_corr/ratio_mean": (t.weight for t in tokens),
                "rollout_corr/ratio_max": [max(t.weight for t in tokens)],
                "rollout_corr/masked": (t.weight == 0 for t in tokens),
            }
        )

    def _change(self, counted: list[Completion]) -> dict[str, float]:
        """Every n-th completion once more, after all updates."""
        stride = -(-len(counted) // self.settings.change_completions)
        changes = []
        for c in counted[::stride]:
            with torch.no_grad():
                changes.append((c.right, float((self._score(self.policy, c)[0] - c.start).mean())))
        return means(
            {
                "method/logprob_change_pos": (change for right, change in changes if right),
                "method/logprob_change_neg": (change for right, change in changes if not right),
            }
        )


def accuracy(group: list[Completion]) -> float | None:
    """Share of right completions among those that count; None for a group without any."""
    counted = [completion.right for completion in group if completion.counts]
    return sum(counted) / len(counted) if counted else None
