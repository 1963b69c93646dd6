"""Data module: prompts for training and evaluation."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from math import inf
from typing import Any, Literal, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.prompts.base import EncodedPrompt, PromptSource
from asymgrpo_app.prompts.inspection import BEFORE_A_RUN, Depth, Inspection, fingerprint, inspect
from asymgrpo_app.prompts.screening import Encoder, Reason, Rejected, Tally, screen
from asymgrpo_app.prompts.templates import PlainTemplate, Template
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.rollout.types import PromptBatch
from asymgrpo_app.seeds import derive_seed

_EVALUATION_SLICE = 512  # problems sampled in one call, so that a set of any size needs bounded memory
_WRITTEN_TOGETHER = 256  # completions of a prediction that are sampled in one call: what an interruption may lose
_ATTEMPTS = 50  # prompts tried for one slot of a step before the source is called unusable

_SET_NAME = re.compile(r"[\w.+-]+")

Place = tuple[int, int]
"""A slot of a step: the index of its prompt over all ranks, and the update it belongs to."""


@dataclass
class EvaluationSet:
    """A named set of problems and how it is sampled.

    Args:
        source: Source of the problems.
        limit: Number of problems, from the first on; null: all (of a finite source).
        samples: Completions per problem: the k of avg@k.
        pass_at: The k of each pass@k to report, at most `samples`; null: `samples`.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus size in (0, 1].
        template: Template that renders the problems; null: `data.template`.
        majority_at: The k of each maj@k to report, at most `samples`; null: `samples`, from three samples on.
        max_completion_tokens: Longest completion in tokens; null: `rollout.max_completion_tokens`.
    """

    source: PromptSource
    limit: int | None = None
    samples: int = 8
    pass_at: list[int] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    template: Template | None = None
    majority_at: list[int] | None = None
    max_completion_tokens: int | None = None

    def __post_init__(self) -> None:
        at_least_1("samples of an evaluation set", self.samples)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit of an evaluation set must be at least 1 or null, got {self.limit}.")
        if not 0 <= self.temperature < inf or not 0 < self.top_p <= 1:
            raise UserError(
                "an evaluation set needs a finite temperature >= 0 and top_p in (0, 1], got "
                f"{self.temperature}, {self.top_p}."
            )
        for name, ks in {"pass_at": self.ks, "majority_at": self.majority_ks}.items():
            if too_large := [k for k in ks if not 1 <= k <= self.samples]:
                raise UserError(
                    f"{name} of an evaluation set must lie between 1 and samples ({self.samples}), got {too_large}."
                )
        if self.max_completion_tokens is not None and self.max_completion_tokens < 1:
            raise UserError(
                f"max_completion_tokens of an evaluation set must be at least 1 or null, got "
                f"{self.max_completion_tokens}."
            )

    @property
    def ks(self) -> list[int]:
        """The k of each pass@k."""
        return [self.samples] if self.pass_at is None else self.pass_at

    @property
    def majority_ks(self) -> list[int]:
        """The k of each maj@k."""
        if self.majority_at is not None:
            return self.majority_at
        return [self.samples] if self.samples > 2 else []  # the majority of two is either of them

    def metrics(self) -> SetMetrics:
        """An empty accumulator of this set's metrics."""
        return SetMetrics(self.ks, self.majority_ks, greedy=self.temperature == 0 and self.samples == 1)


class PromptDataModule(LightningDataModule):
    """Streams the prompts of each RL step, and the problems of each evaluation set.

    The prompts of a step are a pure function of (seed, step), whatever the number of ranks; a resumed run goes on with
    exactly the next ones. A prompt that cannot be used is replaced by another one of the source, and counted.

    Args:
        train: Source of training prompts; not needed to validate or test.
        prompts_per_step: Prompts of one RL step over all ranks; each is completed `rollout.group_size` times.
        validation: Evaluation sets by name; the name becomes part of the metrics' names.
        repeat_steps: Train on the prompts of the first n steps again and again (for debugging); null: always new ones.
        template: Template that renders problems, by `class_path`; plain text if left out.
        max_prompt_tokens: Longest prompt in tokens, after the template. Longer ones are left out and counted.
        bad_rows: Handling of a broken row of the training data, e.g. one without an answer: `stop` the run with a
            sentence that names it, or `skip` it and count it. In an evaluation set it always stops.
        verifiers: The processes that judge completions.
        tokenizer: Folder or hub id of the tokenizer; follows `model.policy`.
        updates_per_step: Optimizer updates (mini-batches) that a step's prompts are split into; follows
            `model.updates_per_step`.
        seed: Seed of the prompt order; follows `seed_everything`.
    """

    def __init__(
        self,
        tokenizer: str,
        train: PromptSource | None = None,
        prompts_per_step: int = 64,
        validation: dict[str, EvaluationSet] | None = None,
        repeat_steps: int | None = None,
        template: Template | None = None,
        max_prompt_tokens: int = 1024,
        bad_rows: Literal["stop", "skip"] = "stop",
        verifiers: VerifierPoolConfig = VerifierPoolConfig(),  # noqa: B008 (frozen)
        updates_per_step: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least_1("data.prompts_per_step", prompts_per_step)
        if repeat_steps is not None and repeat_steps < 1:
            raise UserError(f"data.repeat_steps must be at least 1 or null, got {repeat_steps}.")
        at_least_1("data.max_prompt_tokens", max_prompt_tokens)
        if prompts_per_step % updates_per_step:
            raise UserError(
                f"data.prompts_per_step ({prompts_per_step}) must be a multiple of model.updates_per_step "
                f"({updates_per_step}), so that every update gets an equal share."
            )
        for name in validation or {}:
            if not _SET_NAME.fullmatch(name):
                raise UserError(
                    f"data.validation: {name!r} cannot be the name of a set, which becomes part of the metrics' names: "
                    "use letters, digits, and . _ - +"
                )
        self.tokenizer_path = tokenizer
        self.train_source = train
        self.prompts_per_step = prompts_per_step
        self.repeat_steps = repeat_steps
        self.evaluation_sets = validation or {}
        self.template = template or PlainTemplate()
        self.max_prompt_tokens = max_prompt_tokens
        self.bad_rows = bad_rows
        self.pool = VerifierPool(verifiers)
        self.updates_per_step = updates_per_step
        self.seed = seed
        self._problems: dict[str, tuple[list[EncodedPrompt], Tally]] = {}
        self._left_out: dict[str, set[int]] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded on first use."""
        return load_tokenizer(self.tokenizer_path)

    # ---- training ----

    def training_batch(self, step: int, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """The prompts of RL step `step` (from 0) that `rank` works on.

        Prompts are assigned to updates over all ranks first. Then each update's share is split over the ranks, so that
        this split changes no update.

        Raises:
            UserError: A row is broken and `bad_rows` is `stop`, or hardly any prompt can be used.
        """
        share = self.prompts_per_step // self.updates_per_step
        first = (step % self.repeat_steps if self.repeat_steps else step) * self.prompts_per_step
        slots = [
            (index, index // share) for index in range(self.prompts_per_step) if index % share % world_size == rank
        ]

        def draw(index: int, attempt: int) -> tuple[int, int]:
            return first + index, derive_seed("spare", self.seed, attempt) if attempt else self.seed

        batch = PromptBatch("train", step, [])
        batch.prompts = self._fill(batch, slots, draw)
        return batch

    def replacements(
        self, batch: PromptBatch, round_number: int, replaced: Sequence[EncodedPrompt]
    ) -> list[EncodedPrompt]:
        """Replacement prompts for dynamic sampling: a function of seed, step, round and slot.

        They come from the beginning of a stream of their own, so they may repeat prompts that other steps have.
        """

        def draw(index: int, attempt: int) -> tuple[int, int]:
            spare = ("spare", attempt) if attempt else ()
            return index, derive_seed("replacement", self.seed, batch.step, round_number, *spare)

        return self._fill(batch, [(prompt.index, prompt.update) for prompt in replaced], draw)

    def _fill(
        self, batch: PromptBatch, places: Sequence[Place], draw: Callable[[int, int], tuple[int, int]]
    ) -> list[EncodedPrompt]:
        """A usable prompt for each slot; counts of rejected ones are added to the batch's `data/*`.

        Args:
            batch: The batch whose metrics are added to.
            places: Slots of the step.
            draw: (position, seed) in the source, from (index of the slot, attempt).
        """
        if self.train_source is None:
            raise UserError("data.train is not set: training needs a source of prompts.")
        filled: dict[Place, EncodedPrompt] = {}
        tally = Tally()
        for attempt in range(_ATTEMPTS):
            empty = [slot for slot in places if slot not in filled]
            if not empty:
                break
            reads = [partial(self.train_source.at, *draw(index, attempt)) for index, _ in empty]
            outcomes = screen(reads, self._encoder(), self.pool)
            tally.count(outcomes)
            for slot, outcome in zip(empty, outcomes, strict=True):
                if not isinstance(outcome, Rejected):
                    filled[slot] = replace(outcome, index=slot[0], update=slot[1])
                elif outcome.reason is Reason.BAD_ROW and self.bad_rows == "stop":
                    raise UserError(outcome.message)
        else:
            reason, message = next(iter(tally.first.items()))
            raise UserError(
                f"{_ATTEMPTS} prompts in a row of data.train cannot be used ({reason}), the first: {message}"
            )
        marks = self._validation_marks
        tally.in_validation = sum(fingerprint(p.prompt.text) in marks for p in filled.values()) if marks else 0
        _add_shares(batch, tally)
        return [filled[slot] for slot in places]

    # ---- evaluation ----

    def evaluation_problems(self, name: str) -> list[EncodedPrompt]:
        """The problems of one evaluation set, in their fixed order, without those that are too long.

        Raises:
            UserError: A row is broken, or no problem is left.
        """
        return self._screened_problems(name)[0]

    def _screened_problems(self, name: str) -> tuple[list[EncodedPrompt], Tally]:
        if name not in self._problems:
            chosen = self.evaluation_sets[name]
            prompts = chosen.source.fixed(chosen.limit)
            outcomes = screen(
                [partial(prompts.__getitem__, i) for i in range(len(prompts))], self._encoder(name), self.pool
            )
            tally = Tally()
            tally.count(outcomes)
            if Reason.BAD_ROW in tally.first:
                raise UserError(f"data.validation.{name}: {tally.first[Reason.BAD_ROW]}")
            # The index of a problem, and with it the seeds of its completions, does not depend on what is left out.
            problems = [replace(o, index=i) for i, o in enumerate(outcomes) if not isinstance(o, Rejected)]
            if not problems:
                raise UserError(f"data.validation.{name} has no problem left: {tally.first[Reason.TOO_LONG]}")
            self._problems[name] = problems, tally
        return self._problems[name]

    def evaluation_batches(
        self, name: str, rank: int = 0, world_size: int = 1, size: int = _EVALUATION_SLICE
    ) -> list[PromptBatch]:
        """One evaluation set in slices; every rank has the same number of slices, some of which may be empty."""
        left_out = self._left_out.get(name, set())
        problems = [problem for problem in self.evaluation_problems(name) if problem.index not in left_out]
        return [
            PromptBatch(name, number, problems[start : start + size][rank::world_size])
            for number, start in enumerate(range(0, len(problems), size))
        ]

    def leave_out(self, problems: Mapping[str, Iterable[int]]) -> None:
        """Exclude problems of the evaluation sets, given by index, from sampling: they are done."""
        self._left_out = {name: set(indices) for name, indices in problems.items()}

    @cached_property
    def _validation_marks(self) -> dict[int, str]:
        """Names of evaluation sets by the fingerprints of their problems."""
        return {
            fingerprint(problem.prompt.text): name
            for name in self.evaluation_sets
            for problem in self.evaluation_problems(name)
        }

    # ---- before a run ----

    def _encoder(self, name: str | None = None) -> Encoder:
        """Encoder of the training prompts, or of those of an evaluation set."""
        template = (self.evaluation_sets[name].template if name else None) or self.template
        return Encoder(self.tokenizer, template, self.max_prompt_tokens)

    def check(self, *, training: bool = True) -> list[str]:
        """Quick check before a run: all evaluation sets, the first training rows, the first step.

        Returns:
            Notes for the user, one sentence each.

        Raises:
            UserError: A template does not suit the tokenizer, or a row cannot be used.
        """
        for name in (None, *self.evaluation_sets):
            self._encoder(name).template.check(self.tokenizer)
        notes = []
        for name in self.evaluation_sets:
            problems, tally = self._screened_problems(name)
            if dropped := tally.rejected[Reason.TOO_LONG]:
                notes.append(
                    f"data.validation.{name}: {dropped:,} of {dropped + len(problems):,} problems have too many tokens "
                    f"and are left out, the first: {tally.first[Reason.TOO_LONG]}"
                )
        if training and self.train_source is not None:
            for found in self.inspections(BEFORE_A_RUN):
                notes += [f"data.train: {line}" for line in found.notes()]
            self.training_batch(0)
        return notes

    def inspections(self, depth: Depth, progress: Callable[[int], object] = id) -> list[Inspection]:
        """Inspect the finite parts of the training data.

        Args:
            depth: How much of them to inspect.
            progress: Called with the number of rows seen since the last call.

        Raises:
            UserError: A row cannot be used and `bad_rows` is `stop` (unless everything is inspected: then the findings
                name it).
        """
        assert self.train_source is not None
        findings = []
        for part in self.train_source.finite_parts():
            found, seen = Inspection(), 0
            for found in inspect(part, self._encoder(), self.pool, self._validation_marks, depth):
                progress(found.seen - seen)
                seen = found.seen
                if depth.read is not None and self.bad_rows == "stop" and found.faults[Reason.BAD_ROW]:
                    raise UserError(found.faults[Reason.BAD_ROW][0])
            findings.append(found)
        return findings

    def preview(self, number: int) -> list[EncodedPrompt]:
        """The first prompts of the run, as the policy sees them; of the first evaluation set without `train`."""
        if self.train_source is not None:
            return self.training_batch(0).prompts[:number]
        return next((self.evaluation_problems(name)[:number] for name in self.evaluation_sets), [])

    # ---- Lightning ----

    def state_dict(self) -> dict[str, Any]:
        """Digest of the vocabulary and number of training rows, compared on resume; the step is the data position."""
        rows = self.train_source.size if self.train_source is not None else None
        return {"vocabulary": _vocabulary_digest(self.tokenizer), "rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint has the same vocabulary and number of training rows.

        Raises:
            UserError: The policy's tokenizer is another one, or the training data have another number of rows.
        """
        if state_dict["vocabulary"] != _vocabulary_digest(self.tokenizer):
            raise UserError(
                f"The tokenizer of {self.tokenizer_path} has another vocabulary than that of the checkpoint: set "
                "model.policy to the model that the checkpoint was trained from."
            )
        mine, theirs = self.state_dict()["rows"], state_dict["rows"]
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and mine != theirs:
            raise UserError(
                f"data.train has {_rows(mine)}, but the checkpoint counts its place in {_rows(theirs)}: give the same "
                "data, or start a new run from the exported policy (asymgrpo export)."
            )

    def close(self) -> None:
        """End the verifiers' processes. Safe to call twice."""
        self.pool.close()

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(_TrainingSteps(self), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[PromptBatch]]:
        rank, world_size = self._place()
        return [
            DataLoader(_Batches(self.evaluation_batches(name, rank, world_size)), batch_size=None)
            for name in self.evaluation_sets
        ]

    def test_dataloader(self) -> list[DataLoader[PromptBatch]]:
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[PromptBatch]]:
        rank, world_size = self._place()
        return [
            DataLoader(
                _Batches(self.evaluation_batches(name, rank, world_size, max(1, _WRITTEN_TOGETHER // chosen.samples))),
                batch_size=None,
            )
            for name, chosen in self.evaluation_sets.items()
        ]

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def data_of(trainer: Trainer) -> PromptDataModule:
    """The data module of a run."""
    return cast(PromptDataModule, trainer.datamodule)  # type: ignore[attr-defined]


class _Batches(Dataset[PromptBatch]):
    """Dataset of prepared batches."""

    def __init__(self, batches: Sequence[PromptBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PromptBatch:
        # A new object each time, or the rollouts that are attached to it would stay in memory.
        return replace(self.batches[index], metrics=StepMetrics())


class _TrainingSteps(IterableDataset[PromptBatch]):
    """The endless sequence of training batches, from the first step that is not completed yet."""

    def __init__(self, data: PromptDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[PromptBatch]:
        trainer: Any = self.data.trainer
        for step in count(trainer.lightning_module.completed_steps):
            yield self.data.training_batch(step, trainer.global_rank, trainer.world_size)


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of the vocabulary; equal for tokenizers that give every token the same id."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _rows(number: int | None) -> str:
    return "no end" if number is None else f"{number:,} rows"


def _add_shares(batch: PromptBatch, tally: Tally) -> None:
    """Add a tally to a batch's `data/*`: shares of the rows that were drawn."""
    numbers = {f"data/{reason}": tally.rejected[reason] for reason in Reason}
    for name, number in (numbers | {"data/in_validation": tally.in_validation}).items():
        batch.metrics.add(name, ratio(number, tally.drawn))
