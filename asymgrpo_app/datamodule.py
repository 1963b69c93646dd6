"""Data module: prompts for training and evaluation."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Never, cast

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, IterableDataset

from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.evaluation.sets import EvaluationSet
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.policy.loading import load_tokenizer, stop_token_ids
from asymgrpo_app.prompts.base import EncodedPrompt, PromptSource
from asymgrpo_app.prompts.screening import Reason, Rejected, Screening, Tally, attempt, fingerprint
from asymgrpo_app.prompts.templates import PlainTemplate, Template
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.rollout.types import PromptBatch
from asymgrpo_app.runtime.console import say
from asymgrpo_app.seeds import derive_seed

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedTokenizerBase

_EVALUATION_SLICE = 512  # problems sampled in one call, so that a set of any size needs bounded memory
_WRITTEN_TOGETHER = 256  # completions of a prediction that are sampled in one call: what an interruption may lose
_ATTEMPTS = 50  # prompts tried for one slot of a step before the source is called unusable

_SET_NAME = re.compile(r"[\w.+-]+")


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
        if repeat_steps is not None:
            at_least_1("data.repeat_steps", repeat_steps)
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
        self.pool = VerifierPool(verifiers, say)
        self.updates_per_step = updates_per_step
        self.seed = seed
        self._problems: dict[str, tuple[list[EncodedPrompt], Tally]] = {}
        self._left_out: dict[str, set[int]] = {}

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The policy's tokenizer, loaded on first use."""
        return load_tokenizer(self.tokenizer_path)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a completion, and that no prompt may end in."""
        return stop_token_ids(self.tokenizer_path, self.tokenizer)

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

        def order(tried: int) -> int:
            return derive_seed("spare", self.seed, tried) if tried else self.seed

        batch = PromptBatch("train", step, [])
        batch.prompts = self._fill(batch, slots, first, order)
        return batch

    def replacements(
        self, batch: PromptBatch, round_number: int, replaced: Sequence[EncodedPrompt]
    ) -> list[EncodedPrompt]:
        """Replacement prompts for dynamic sampling: a function of seed, step, round and slot.

        They come from the beginning of a stream of their own, so they may repeat prompts that other steps have.
        """

        def order(tried: int) -> int:
            spare = ("spare", tried) if tried else ()
            return derive_seed("replacement", self.seed, batch.step, round_number, *spare)

        return self._fill(batch, [(prompt.index, prompt.update) for prompt in replaced], 0, order)

    def _fill(
        self, batch: PromptBatch, slots: Sequence[tuple[int, int]], first: int, order: Callable[[int], int]
    ) -> list[EncodedPrompt]:
        """A usable prompt for each slot; shares of rejected ones are added to the batch's `data/*`.

        Args:
            batch: The batch whose metrics are added to.
            slots: Slots of the step: the index of each prompt over all ranks, and the update it belongs to.
            first: Position in the source of the slot with the index 0.
            order: Seed of the source's order for a slot, from the number of prompts tried for it before.
        """
        if self.train_source is None:
            raise UserError("data.train is not set: training needs a source of prompts.")
        filled: dict[tuple[int, int], EncodedPrompt] = {}
        tally = Tally()
        for tried in range(_ATTEMPTS):
            empty = [slot for slot in slots if slot not in filled]
            if not empty:
                break
            prompts = [attempt(self.train_source.at, first + index, order(tried)) for index, _ in empty]
            outcomes = self.screening().screen(prompts)
            tally.count(outcomes)
            for slot, outcome in zip(empty, outcomes, strict=True):
                if not isinstance(outcome, Rejected):
                    filled[slot] = replace(outcome, index=slot[0], update=slot[1])
                elif outcome.reason is Reason.BAD_ROW and self.bad_rows == "stop":
                    raise UserError(outcome.message)
        else:
            reason, messages = next(iter(tally.messages.items()))
            raise UserError(
                f"{_ATTEMPTS} prompts in a row of data.train cannot be used ({reason}), the first: {messages[0]}"
            )
        for kind in Reason:
            batch.metrics.add(f"data/{kind}", ratio(tally.rejected[kind], tally.drawn))
        known = sum(fingerprint(encoded.prompt.text) in self.validation_prints for encoded in filled.values())
        batch.metrics.add("data/in_validation", ratio(known, tally.drawn))
        return [filled[slot] for slot in slots]

    def screening(self, name: str | None = None) -> Screening:
        """The screening of the training prompts, or of those of an evaluation set."""
        template = (self.evaluation_sets[name].template if name else None) or self.template
        return Screening(self.tokenizer, template, self.max_prompt_tokens, self.pool, self.stop_token_ids)

    # ---- evaluation ----

    def evaluation_problems(self, name: str) -> list[EncodedPrompt]:
        """The problems of one evaluation set, in their fixed order, without those that are too long.

        Raises:
            UserError: A row is broken, or no problem is left.
        """
        return self.screened_problems(name)[0]

    def screened_problems(self, name: str) -> tuple[list[EncodedPrompt], Tally]:
        """The problems of one evaluation set, and the counts of those that were left out."""
        if name not in self._problems:
            chosen = self.evaluation_sets[name]
            outcomes = self.screening(name).screen(chosen.source.fixed(chosen.limit))
            tally = Tally()
            tally.count(outcomes)
            if tally.rejected[Reason.BAD_ROW]:
                raise UserError(f"data.validation.{name}: {tally.messages[Reason.BAD_ROW][0]}")
            # The index of a problem, and with it the seeds of its completions, does not depend on what is left out.
            problems = [replace(o, index=i) for i, o in enumerate(outcomes) if not isinstance(o, Rejected)]
            if not problems:
                raise UserError(f"data.validation.{name} has no problem left: {tally.messages[Reason.TOO_LONG][0]}")
            self._problems[name] = problems, tally
        return self._problems[name]

    def leave_out(self, problems: Mapping[str, Iterable[int]]) -> None:
        """Exclude problems of the evaluation sets, given by index, from sampling: they are done."""
        self._left_out = {name: set(indices) for name, indices in problems.items()}

    @cached_property
    def validation_prints(self) -> dict[int, str]:
        """Names of evaluation sets by the fingerprints of their problems."""
        return {
            fingerprint(problem.prompt.text): name
            for name in self.evaluation_sets
            for problem in self.evaluation_problems(name)
        }

    # ---- Lightning ----

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> Never:
        """Refused: a checkpoint holds no sources and no verifiers.

        Raises:
            UserError: Always, with what to do.
        """
        raise UserError(
            f"PromptDataModule.load_from_checkpoint cannot rebuild sources and verifiers from {checkpoint_path}: build "
            f'it as before; trainer.fit(..., ckpt_path="{checkpoint_path}") goes on with the next prompt.'
        )

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
                f"data.train has {mine or 'endless'} rows, but the checkpoint counts its place in "
                f"{theirs or 'endless'} rows: give the same data, or start a new run from the exported policy "
                "(asymgrpo export)."
            )

    def teardown(self, stage: str) -> None:
        """End the verifiers' processes."""
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        self.close()  # Lightning calls no teardown after an exception

    def close(self) -> None:
        """End the verifiers' processes. Safe to call twice."""
        self.pool.close()

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(_TrainingSteps(self), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[PromptBatch]]:
        return [self._evaluation_loader(name, _EVALUATION_SLICE) for name in self.evaluation_sets]

    def test_dataloader(self) -> list[DataLoader[PromptBatch]]:
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[PromptBatch]]:
        return [
            self._evaluation_loader(name, max(1, _WRITTEN_TOGETHER // chosen.samples))
            for name, chosen in self.evaluation_sets.items()
        ]

    def _evaluation_loader(self, name: str, size: int) -> DataLoader[PromptBatch]:
        """One evaluation set in slices; every rank has the same number of slices, some of which may be empty."""
        left_out = self._left_out.get(name, set())
        problems = [problem for problem in self.evaluation_problems(name) if problem.index not in left_out]
        trainer: Any = self.trainer
        batches: Any = [
            PromptBatch(name, number, problems[start : start + size][trainer.global_rank :: trainer.world_size])
            for number, start in enumerate(range(0, len(problems), size))
        ]
        return DataLoader(batches, batch_size=None, collate_fn=_fresh)


def data_of(trainer: Trainer) -> PromptDataModule:
    """The data module of a run."""
    return cast(PromptDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def _fresh(batch: Any) -> Any:
    """The batch as a new object, or the rollouts that are attached to it would stay in memory."""
    return replace(batch, metrics=StepMetrics())


class _TrainingSteps(IterableDataset[PromptBatch]):
    """The endless sequence of training batches, from the first step that is not completed yet."""

    def __init__(self, data: PromptDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[PromptBatch]:
        trainer: Any = self.data.trainer
        for step in count(trainer.lightning_module.completed_steps):
            yield self.data.training_batch(step, trainer.global_rank, trainer.world_size)


def _vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of the vocabulary; equal for tokenizers that give every token the same id."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
