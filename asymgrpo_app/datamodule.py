"""Prompts for training and evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy import load_tokenizer
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.rollout.seeds import derive_seed
from asymgrpo_app.rollout.types import EncodedPrompt, PromptBatch

_EVALUATION_SLICE = 512  # problems sampled in one call, so that a set of any size needs bounded memory


@dataclass
class EvaluationSet:
    """A named set of problems and how it is sampled.

    Args:
        source: Where the problems come from.
        limit: How many of them, from the first on; null takes all (of a source that ends).
        samples: Completions per problem: the k of avg@k.
        pass_at: The k of each pass@k to report, at most `samples`; null: `samples`.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus size in (0, 1].
    """

    source: PromptSource
    limit: int | None = None
    samples: int = 8
    pass_at: list[int] | None = None
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples of an evaluation set must be at least 1, got {self.samples}.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit of an evaluation set must be at least 1 or null, got {self.limit}.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"an evaluation set needs temperature >= 0 and top_p in (0, 1], got {self.temperature}, {self.top_p}."
            )
        if too_large := [k for k in self.ks if not 1 <= k <= self.samples]:
            raise UserError(
                f"pass_at of an evaluation set must lie between 1 and samples ({self.samples}), got {too_large}."
            )

    @property
    def ks(self) -> list[int]:
        """The k of each pass@k."""
        return [self.samples] if self.pass_at is None else self.pass_at


class PromptDataModule(LightningDataModule):
    """Streams the prompts of each RL step, and the problems of each evaluation set.

    The prompts of a step are a pure function of (seed, step), whatever the number of ranks; a resumed run goes on with
    exactly the next ones.

    Args:
        train: Source of training prompts; not needed to validate or test.
        prompts_per_step: Prompts of one RL step over all ranks; each is completed `rollout.group_size` times.
        validation: Evaluation sets by name; the name becomes part of the metrics' names.
        repeat_steps: Train on the prompts of the first n steps again and again (for debugging); null: always new ones.
        max_prompt_tokens: Longest prompt in tokens, after the template.
        use_chat_template: Whether prompts go through the tokenizer's chat template as a user's message.
        tokenizer: Folder or hub id of the tokenizer; follows `model.policy`.
        updates_per_step: Optimizer updates a step is shared out to; follows `model.updates_per_step`.
        seed: Seed of the prompt order; follows `seed_everything`.
    """

    def __init__(
        self,
        tokenizer: str,
        train: PromptSource | None = None,
        prompts_per_step: int = 64,
        validation: dict[str, EvaluationSet] | None = None,
        repeat_steps: int | None = None,
        max_prompt_tokens: int = 1024,
        use_chat_template: bool = False,
        updates_per_step: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if prompts_per_step < 1:
            raise UserError(f"data.prompts_per_step must be at least 1, got {prompts_per_step}.")
        if repeat_steps is not None and repeat_steps < 1:
            raise UserError(f"data.repeat_steps must be at least 1 or null, got {repeat_steps}.")
        if max_prompt_tokens < 1:
            raise UserError(f"data.max_prompt_tokens must be at least 1, got {max_prompt_tokens}.")
        if prompts_per_step % updates_per_step:
            raise UserError(
                f"data.prompts_per_step ({prompts_per_step}) must be a multiple of model.updates_per_step "
                f"({updates_per_step}), so that every update gets an equal share."
            )
        self.tokenizer_path = tokenizer
        self.train_source = train
        self.prompts_per_step = prompts_per_step
        self.repeat_steps = repeat_steps
        self.evaluation_sets = validation or {}
        self.max_prompt_tokens = max_prompt_tokens
        self.use_chat_template = use_chat_template
        self.updates_per_step = updates_per_step
        self.seed = seed
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._problems: dict[str, Sequence[Prompt]] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_path)
            if self.use_chat_template and self._tokenizer.chat_template is None:
                raise UserError(
                    f"data.use_chat_template is true, but the tokenizer of {self.tokenizer_path} has no chat template."
                )
        return self._tokenizer

    def evaluation_problems(self, name: str) -> Sequence[Prompt]:
        """The problems of one evaluation set, in their fixed order."""
        if name not in self._problems:
            chosen = self.evaluation_sets[name]
            self._problems[name] = chosen.source.fixed(chosen.limit)
        return self._problems[name]

    def training_batch(self, step: int, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """The prompts of RL step `step` (from 0) that `rank` works on.

        Which update a prompt belongs to is decided over all ranks first, and then each update's share is dealt out, so
        the split over ranks changes no update.
        """
        if self.train_source is None:
            raise UserError("data.train is not set: training needs a source of prompts.")
        share = self.prompts_per_step // self.updates_per_step
        first = (step % self.repeat_steps if self.repeat_steps else step) * self.prompts_per_step
        prompts = []
        for index in range(self.prompts_per_step):
            update, place = divmod(index, share)
            if place % world_size == rank:
                prompt = self.train_source.at(first + index, self.seed)
                prompts.append(self.encode(prompt, self.train_source, index, update))
        return PromptBatch("train", step, prompts)

    def replacement(self, step: int, round_number: int, replaced: EncodedPrompt) -> EncodedPrompt:
        """A fresh prompt in the place of another (dynamic sampling): a function of seed, step, round and place.

        It comes from the beginning of a stream of its own, so it may repeat a prompt that another step has.
        """
        assert self.train_source is not None
        seed = derive_seed("replacement", self.seed, step, round_number)
        prompt = self.train_source.at(replaced.index, seed)
        return self.encode(prompt, self.train_source, replaced.index, replaced.update)

    def evaluation_batches(self, name: str, rank: int = 0, world_size: int = 1) -> list[PromptBatch]:
        """One evaluation set in slices; every rank has the same number of slices, some of which may be empty."""
        source = self.evaluation_sets[name].source
        problems = self.evaluation_problems(name)
        batches = []
        for number, start in enumerate(range(0, len(problems), _EVALUATION_SLICE)):
            places = range(start, min(start + _EVALUATION_SLICE, len(problems)))
            mine = [self.encode(problems[i], source, i) for i in places if i % world_size == rank]
            batches.append(PromptBatch(name, number, mine))
        return batches

    def encode(self, prompt: Prompt, source: PromptSource, index: int, update: int = 0) -> EncodedPrompt:
        """Render and tokenize a prompt.

        Raises:
            UserError: It has no token, or more than `max_prompt_tokens`.
        """
        rendered = self._render(prompt.text)
        # A chat template writes its own special tokens; a base model's tokenizer may add one at the front.
        try:
            token_ids = self.tokenizer.encode(rendered, add_special_tokens=not self.use_chat_template)
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise UserError(f"prompt {prompt.uid} cannot be tokenized by {self.tokenizer_path}: {error}.") from error
        if not 1 <= len(token_ids) <= self.max_prompt_tokens:
            raise UserError(
                f"prompt {prompt.uid} has {len(token_ids)} tokens, "
                f"but data.max_prompt_tokens allows 1 to {self.max_prompt_tokens}."
            )
        return EncodedPrompt(prompt, rendered, token_ids, index, source.verifier, update)

    def _render(self, text: str) -> str:
        if not self.use_chat_template:
            return text
        message = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def check(self) -> None:
        """Render and tokenize what can be known before a run: the first step, all of a source that ends, all sets.

        Raises:
            UserError: A prompt that cannot be used, by its name.
        """
        for name in self.evaluation_sets:
            self.evaluation_batches(name)
        if self.train_source is None:
            return
        self.training_batch(0)
        if self.train_source.size is not None:
            for prompt in self.train_source.fixed(None):
                self.encode(prompt, self.train_source, 0)

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

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class _Batches(Dataset[PromptBatch]):
    """Batches that are ready."""

    def __init__(self, batches: Sequence[PromptBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PromptBatch:
        # A new object each time, or the rollouts that are attached to it would stay in memory.
        return replace(self.batches[index], metrics={}, means={})


class _TrainingSteps(IterableDataset[PromptBatch]):
    """The endless sequence of training batches, from the first step that is not completed yet."""

    def __init__(self, data: PromptDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[PromptBatch]:
        trainer: Any = self.data.trainer
        for step in count(trainer.lightning_module.completed_steps):
            yield self.data.training_batch(step, trainer.global_rank, trainer.world_size)
