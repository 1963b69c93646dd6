"""LightningCLI, set up for RL steps: run folder, derived trainer options, checks across sections."""

import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from traceback import walk_tb
from types import NoneType
from typing import Any, get_args

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tqdm import tqdm

from asymgrpo_app.algorithm.advantages import GroupRewards, checked_advantages
from asymgrpo_app.callbacks.checkpoint import RunCheckpoint, run_checkpoint
from asymgrpo_app.callbacks.epochs import EpochShares
from asymgrpo_app.callbacks.evaluation import RESULTS_NAME, EvaluationReport, FinalResults
from asymgrpo_app.callbacks.export import ExportCallback
from asymgrpo_app.callbacks.progress import RunProgress
from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.callbacks.safe_stop import SafeStop
from asymgrpo_app.callbacks.summary import RunSummary
from asymgrpo_app.callbacks.tensorboard import TensorBoardDetails
from asymgrpo_app.checkpoints.config_changes import accept_changes, config_changes
from asymgrpo_app.checkpoints.files import read_checkpoint, read_state
from asymgrpo_app.checkpoints.folder import check_whole, checkpoint_folder, newest_whole
from asymgrpo_app.checkpoints.run_folder import (
    DISK_TROUBLE,
    is_used,
    record_config,
    refuse_unusable,
    refuse_used,
    tensorboard_folder,
)
from asymgrpo_app.checks.memory import MemorySettings, device_memory, memory_lines, optimizer_copies, works_on_all
from asymgrpo_app.checks.optimization import check_optimization
from asymgrpo_app.checks.precision import bfloat16_lines
from asymgrpo_app.cli.config_files import check_config_file, config_paths
from asymgrpo_app.cli.parser_messages import plain
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import ExitCode, RunError, UserError, one_line
from asymgrpo_app.evaluation.files import refuse_existing
from asymgrpo_app.evaluation.outcomes import ACCURACIES
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.requirements import check_optimizer, check_sampler
from asymgrpo_app.parallel.strategy import NAME as FSDP2
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.policy.compilation import check_compiler
from asymgrpo_app.policy.loading import check_attention, empty_policy, load_config
from asymgrpo_app.policy.lora import summary
from asymgrpo_app.policy.lora_files import check_settings
from asymgrpo_app.prompts.inspection import EVERYTHING
from asymgrpo_app.prompts.screening import Reason
from asymgrpo_app.rollout.samplers import installed_sampler
from asymgrpo_app.rollout.vllm_engine import check_in_process, require_vllm, resolve_dtype
from asymgrpo_app.runtime.console import printable, quiet_libraries, say
from asymgrpo_app.runtime.processes import lost_exchange, observe_processes
from asymgrpo_app.runtime.stopping import seconds_of

# Trainer options that mean something else here, with the key to use instead.
_REPLACED = {
    "max_steps": "steps, which counts RL steps",
    "min_steps": "steps",
    "max_epochs": "steps, which counts RL steps",
    "min_epochs": "steps",
    "max_time": "time_limit",
    "gradient_clip_val": "model.max_grad_norm",
    "gradient_clip_algorithm": "model.max_grad_norm",
    "default_root_dir": "run_dir",
    "enable_checkpointing": "checkpoint.every_n_steps",
}
_CUTS_NOTHING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
_PREVIEWED = 2
_PREVIEW_CHARS = 1_000
_PRECISIONS = ("32-true", "bf16-mixed")
_SAME_PRECISIONS = (None, 32, "32", "bf16")  # other names of them
# FSDP's first version fails in manual optimization; model_parallel alone would leave each process its own gradients.
_OTHER_STRATEGIES = ("fsdp", "deepspeed", "model_parallel")
_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)
_DERIVED = {
    "overfit_batches": (0.0, "set data.repeat_steps"),
    "accumulate_grad_batches": (1, "set model.micro_batch_tokens"),
    "use_distributed_sampler": (False, "leave it out"),
    "fast_dev_run": (False, "set steps"),
    "limit_train_batches": (None, "set steps"),
    "check_val_every_n_epoch": (None, "set trainer.val_check_interval"),
    "num_sanity_val_steps": (0, "a run validates before its first step by itself"),
    "reload_dataloaders_every_n_epochs": (0, "leave it out"),
    "barebones": (False, "leave it out"),
}


def run(arguments: Sequence[str]) -> int:
    """Parse, check and run one subcommand; returns the exit code."""
    quiet_libraries()
    find_own_classes()
    observe_processes()
    return AsymGRPOCLI(arguments).exit_code


def check(arguments: Sequence[str]) -> int:
    """`asymgrpo check`: everything `fit` does before it loads a model, and a look at every row of the training data."""
    quiet_libraries()
    find_own_classes()
    return AsymGRPOCLI(["fit", *arguments], dry_run=True).exit_code


def find_own_classes() -> None:
    """Let `class_path` name a user's own classes in the working directory; at the end, so they shadow no package."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


class _Parser(LightningArgumentParser):
    """A parser whose complaints are one line and go through `UserError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(plain(message)) from ex


def flat_settings(config: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as `section.key: value`, without those that are not set."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
    return flat


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config of a `fit` into the run folder, never over another, and into TensorBoard."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a run that fails while its model loads leaves no config behind."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            record_config(trainer.default_root_dir, pl_module.config_text)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                # As a code block in Markdown.
                indented = "".join(f"    {line}\n" for line in pl_module.config_text.splitlines())
                # A resumed run's is that of its next step: if it dies and resumes there once more, its text goes, too.
                first = pl_module.completed_steps + 1 if trainer.ckpt_path else 0
                logger.experiment.add_text("config", indented, first)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The run's numbers and choices beside its final validation, for the tab HParams."""
        settings = flat_settings(yaml.safe_load(pl_module.config_text)) if trainer.is_global_zero else {}
        final = {f"hparam/{tag}": float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("val/")}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and final:
                logger.log_hyperparams(settings, metrics=final, step=pl_module.completed_steps)


class AsymGRPOCLI(LightningCLI):
    """`asymgrpo fit | validate | test | predict`, with the sections model, data, rollout, checkpoint and trainer."""

    exit_code = ExitCode.OK

    def __init__(self, arguments: Sequence[str], dry_run: bool = False) -> None:
        self.arguments = list(arguments)
        self.dry_run = dry_run
        for path in config_paths(self.arguments):
            check_config_file(path)
        super().__init__(
            AsymGRPOModule,
            PromptDataModule,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "asymgrpo",
                "description": "Train and evaluate language models with AsymGRPO. Beside the subcommands below there "
                "are `asymgrpo check`, the dry run of a fit; `asymgrpo serve`, a sampler server for one; `asymgrpo "
                "score`, which judges a file of completions; `asymgrpo compare`, which compares evaluations; and "
                "`asymgrpo export`, which turns a checkpoint into a model.",
            },
            save_config_callback=SaveRunConfig,
            trainer_defaults={
                "check_val_every_n_epoch": None,  # validation goes by RL steps
                "val_check_interval": 20,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,  # the data module deals prompts out to ranks itself
                "log_every_n_steps": 1,
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves no hyperparameters: a checkpoint holds the config
            args=self.arguments,
        )

    # ---- parser ----

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        hidden = {"model", "datamodule", "weights_only"}  # checkpoints always load with weights_only
        return {
            "fit": hidden | {"train_dataloaders", "val_dataloaders"},
            "validate": hidden | {"dataloaders"},
            "test": hidden | {"dataloaders"},
            "predict": hidden | {"dataloaders", "return_predictions"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self.arguments and self.arguments[0] in self.subcommands() and subcommand != self.arguments[0]:
            # Known by its name alone: the options of the three others take most of the time of parsing.
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="Folder for results.json (and predictions.jsonl). Default: <run_dir>/evaluations/<what is "
                "evaluated>.",
            )
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of the prompt order, of sampling and of the libraries."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=100, help="Length of the run in RL steps.")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run: config, checkpoints, TensorBoard events, export. Default: runs/<config name>.",
        )
        parser.add_argument(
            "--time_limit",
            type=str | int | None,
            default=None,
            help="Wall time of this process, HH:MM:SS or D-HH:MM:SS or in seconds; then the run saves its state and "
            "ends with exit code 75, to be continued with --ckpt_path last. Null: no limit.",
        )
        parser.add_lightning_class_args(VLLMRolloutCallback, "rollout")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(TensorBoardDetails, "tensorboard")
        parser.set_defaults(
            {
                "model.advantage": {"class_path": "asymgrpo_app.algorithm.advantages.AsymGRPO"},
                "model.objective": {"class_path": "asymgrpo_app.algorithm.clipped.ClippedObjective"},
            }
        )
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "rollout.seed")
        parser.link_arguments("steps", "model.total_steps")
        parser.link_arguments("model.policy", "data.tokenizer")
        parser.link_arguments("model.updates_per_step", "data.updates_per_step")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    # ---- between parsing and running ----

    @property
    def _section(self) -> Any:
        return self.config[self.config["subcommand"]]

    def _parse_ckpt_path(self) -> None:
        """Resolve `last`, and look at the checkpoint before anything expensive; its settings are not the config's."""
        section, fitting = self._section, self.config["subcommand"] == "fit"
        names = config_paths(self.arguments)
        if section.run_dir == "":
            raise UserError("run_dir is empty: name a folder, or leave the key out.")
        section.run_dir = section.run_dir or f"runs/{names[0].stem if names else 'asymgrpo'}"
        if fitting:
            refuse_unusable(section.run_dir)
        continued = section.ckpt_path == "last"
        if continued:
            newest, skipped = newest_whole(section.run_dir)
            for line in skipped:
                say(f"Skipped: {line}.")
            section.ckpt_path = str(newest) if newest else None
            if newest is None and not fitting:
                raise UserError(f"--ckpt_path last: there is no checkpoint in {section.run_dir}.")
            if newest is None and is_used(section.run_dir):
                say(f"There is no checkpoint in {section.run_dir} yet: starting from the beginning.")
        elif section.ckpt_path is not None:
            check_whole(section.ckpt_path)
            folder = checkpoint_folder(section.run_dir).resolve()
            continued = Path(section.ckpt_path).resolve().is_relative_to(folder)
        if fitting and not continued:
            refuse_used(section.run_dir)
        if fitting and section.ckpt_path is not None:
            self._compare_with_checkpoint()

    def _compare_with_checkpoint(self) -> None:
        """Say what the config changes in the run that goes on, or refuse it."""
        section = self._section
        state = read_checkpoint(Path(section.ckpt_path), mapped=True)["asymgrpo"]
        done = int(state["completed_steps"])
        if section.steps < done:
            raise UserError(
                f"steps is {section.steps}, but {section.ckpt_path} has completed {done} RL steps already: raise it, "
                "or name an earlier checkpoint."
            )
        if lines := accept_changes(config_changes(state["config"], self._config_text()), section.ckpt_path):
            say("\n".join(["Changed since the checkpoint was written:", *(f"  {line}" for line in lines)]))

    def _config_text(self) -> str:
        """The resolved config as YAML."""
        return str(self._parser(self.config["subcommand"]).dump(self._section, skip_none=False))

    def _set_seed(self) -> None:
        seed = self._section.seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything must be in [0, 2**32), got {seed}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        self._refuse_nulls()
        section = self._section
        self._check_trainer_options()
        if section.steps < 1:
            raise UserError(f"steps must be at least 1, got {section.steps}.")
        scheduler = section.model.lr_scheduler
        if scheduler is not None and "ReduceLROnPlateau" in scheduler.class_path:
            raise UserError(f"model.lr_scheduler may not be {scheduler.class_path}: use one that goes by steps.")
        if section.rollout.sampler == "vllm":
            require_vllm()

    def _check_trainer_options(self) -> None:
        options = self._section.trainer
        for name, instead in _REPLACED.items():
            if options.get(name) not in (None, -1):
                raise UserError(f"trainer.{name} is not used here: set {instead}.")
        for name, (value, instead) in _DERIVED.items():
            if options.get(name) != value:
                raise UserError(f"trainer.{name} must stay {value}, got {options.get(name)}: {instead}.")
        if (precision := options.precision) == "bf16-true":
            raise UserError(
                "trainer.precision bf16-true is not supported, as weights in bfloat16 lose most updates of a usual "
                "learning rate: use bf16-mixed, which computes in bfloat16 and holds weights in float32."
            )
        if precision not in (*_PRECISIONS, *_SAME_PRECISIONS):
            raise UserError(f"trainer.precision must be one of {', '.join(_PRECISIONS)}, got {precision}.")
        strategy = str(options.strategy).lower()
        if strategy.startswith(_OTHER_STRATEGIES) and strategy != FSDP2:  # before Lightning misses their packages
            raise _other_strategy(options.strategy)
        if (every := options.log_every_n_steps) is None or every < 1:
            raise UserError(f"trainer.log_every_n_steps must be at least 1, got {every}.")
        interval = options.val_check_interval
        if not isinstance(interval, int) or interval < 1:
            raise UserError(f"trainer.val_check_interval must be a whole number of RL steps >= 1, got {interval}.")

    def instantiate_classes(self) -> None:
        """Build the objects of the config; what a constructor refuses is the user's input."""
        try:
            super().instantiate_classes()
        except (UserError, ValueError, TypeError, MisconfigurationException) as error:
            # The parser wraps a constructor's complaint about an optional or nested class in one of its own.
            raise UserError(_with_key(str(_user_error_in(error) or plain(str(error))), _key_of(error))) from error
        self.model.config_text = self._config_text()

    def _refuse_nulls(self) -> None:
        """The parser takes null for every key; only optional ones may have it."""
        for action in self._parser(self.config["subcommand"])._actions:
            kind = getattr(action, "_typehint", None) or action.type
            takes_null = kind is None or kind is Any or NoneType in get_args(kind) or action.default is None
            if not takes_null and action.dest in self._section and self._section[action.dest] is None:
                raise UserError(f"{action.dest} must not be null: leave the key out for its default, {action.default}.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        fitting = self.config["subcommand"] == "fit"
        derived: dict[str, Any] = {"default_root_dir": self._section.run_dir, "max_epochs": -1 if fitting else None}
        configured = self.config_init[self.config["subcommand"]].trainer
        if configured.logger in (None, True):
            # Only a training run writes events: an evaluation must not touch those of the run it evaluates.
            derived["logger"] = self._tensorboard() if fitting else False
        try:
            trainer = super().instantiate_trainer(**derived, **kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
            options = {name: configured.get(name) for name in ("accelerator", "devices", "strategy", "profiler")}
            shown = ", ".join(f"trainer.{name}: {value}" for name, value in options.items() if value is not None)
            raise UserError(f"The trainer cannot be set up with {shown}: {one_line(str(error))}") from error
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = _ordered([*callbacks])
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        limit = self._section.time_limit
        own: list[Callback] = [SafeStop(None if limit is None else seconds_of(limit))]
        own += [EpochShares(), ExportCallback(), FinalResults(), RunSummary()]
        if (verb := self.config["subcommand"]) != "fit":
            own.append(
                EvaluationReport(self._output_folder(), self._section.ckpt_path, predict=verb == "predict"),
            )
        if config.get("enable_progress_bar") is not False:
            own.insert(0, RunProgress())  # so that the bar is closed before the summary is printed
        return super()._instantiate_trainer(config, [*callbacks, *own])

    def _output_folder(self) -> Path:
        """Where an evaluation writes; nothing that is there is written over."""
        section = self._section
        checkpoint = Path(section.ckpt_path).stem if section.ckpt_path else "base"
        folder = Path(section.output or Path(section.run_dir) / "evaluations" / checkpoint)
        if self.config["subcommand"] == "predict":
            return folder  # a prediction goes on with its own file, and refuses another's
        if section.output:
            refuse_existing(folder / RESULTS_NAME, option="--output")
            return folder
        return next(own for own in _numbered(folder) if not (own / RESULTS_NAME).exists())

    def _tensorboard(self) -> TensorBoardLogger:
        folder = tensorboard_folder(self._section.run_dir)
        return TensorBoardLogger(folder.parent, name="", version=folder.name)

    # ---- running ----

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what a weight file does not fit is the user's input."""
        try:
            if self.dry_run:
                self.before_fit()
            else:
                super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if (lost := lost_exchange(error)) is not None:
                raise RunError(lost) from error
            if "loading state_dict" not in str(error):
                raise
            raise UserError(
                f"--ckpt_path {self._section.ckpt_path} does not fit model.policy {self.model.policy_path}: "
                f"{one_line(str(error))}"
            ) from error
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            raise RunError(
                f"A file of the run in {self._section.run_dir} cannot be written: {one_line(str(error))}; make room or "
                "repair the folder, and continue with --ckpt_path last."
            ) from error
        finally:
            self.datamodule.close()

    def before_fit(self) -> None:
        data = self.datamodule
        if data.train_source is None:
            raise UserError("data.train is not set: fit needs a source of prompts.")
        self._check_processes()
        self._check_method()
        check_optimization(self.model.make_optimizer, self.model.make_lr_scheduler, self._section.model)
        device = self.trainer.strategy.root_device.type
        check_attention(self.model.attention, device=device, precision=str(self.trainer.precision))
        if self.model.compile_blocks:
            check_compiler(device)
        self._check_lengths()
        self._check_best()
        adapters = self._check_lora()
        notes = self._check_all_data() if self.dry_run else data.check()
        say("\n".join([self._arithmetic(), *adapters, *self._memory(), *notes, "", *_preview(data)]))
        if self.dry_run:
            say("Nothing stands in the way of this run.")
        else:
            run_checkpoint(self.trainer).claim(self._section.run_dir)  # loggers write before any hook of a callback

    def before_validate(self) -> None:
        if not self.datamodule.evaluation_sets:
            raise UserError("data.validation is empty: name at least one set to evaluate.")
        self._check_lengths()
        self._check_lora()
        notes = self.datamodule.check(training=False)
        say("\n".join(notes) if notes else "All problems of the evaluation sets can be used.")

    before_test = before_predict = before_validate

    def _check_all_data(self) -> list[str]:
        """Every row of the training data.

        Raises:
            UserError: Some cannot be used, and the config says that this stops a run.
        """
        data: PromptDataModule = self.datamodule
        parts = data.train_source.finite_parts() if data.train_source else []
        notes = data.check(training=False)
        with tqdm(total=sum(part.size or 0 for part in parts), unit="row", disable=not sys.stderr.isatty()) as bar:
            findings = data.inspections(EVERYTHING, progress=bar.update)
        for part, found in zip(parts, findings, strict=True):
            notes.append(f"data.train: {found.seen:,} rows of {part}, {found.usable:,} of them can be used.")
            notes += [f"data.train: {line}" for line in found.notes()]
        faults = [fault for found in findings for fault in found.faults[Reason.BAD_ROW]]
        if faults and data.bad_rows == "stop":
            count = sum(found.tally.rejected[Reason.BAD_ROW] for found in findings)
            shown = " ".join(faults)
            raise UserError(
                f"{count:,} row{'s' * (count > 1)} of data.train cannot be used (repair them, or set data.bad_rows: "
                f"skip){', the first' * (count > len(faults))}: {shown}"
            )
        data.training_batch(0)
        return notes

    def _check_processes(self) -> None:
        if not isinstance(self.trainer.strategy, _STRATEGIES):
            raise _other_strategy(type(self.trainer.strategy).__name__)
        share = self.datamodule.prompts_per_step // self.model.updates_per_step
        processes = self.trainer.world_size
        if share < processes:
            raise UserError(
                f"data.prompts_per_step / model.updates_per_step is {share}, fewer than the {processes} processes: "
                "every process needs at least one prompt per update."
            )
        rollout = self._section.rollout
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            check_optimizer(self.model.make_optimizer)
            check_sampler(rollout)
        elif self._section.checkpoint.layout == "sharded":
            raise UserError("checkpoint.layout is sharded, but weights are sharded by trainer.strategy fsdp2 alone.")
        if rollout.sampler in ("vllm", "auto"):
            check_in_process(rollout.engine, processes, on_gpu=self.trainer.strategy.root_device.type == "cuda")

    def _check_lengths(self) -> None:
        """The longest sequence against what the architecture takes."""
        own = (chosen.max_completion_tokens or 0 for chosen in self.datamodule.evaluation_sets.values())
        prompt = self.datamodule.max_prompt_tokens
        completion = max(self._section.rollout.max_completion_tokens, *own, 0)
        config = load_config(self.model.policy_path)
        known, rows = len(self.datamodule.tokenizer), getattr(config, "vocab_size", None)
        if rows is not None and known > rows:
            raise UserError(
                f"The tokenizer of {self.datamodule.tokenizer_path} knows {known:,} tokens, but the model has only "
                f"{rows:,}: they do not belong together."
            )
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and prompt + completion > limit:
            raise UserError(
                f"data.max_prompt_tokens ({prompt}) and rollout.max_completion_tokens ({completion}) add up to more "
                f"than the {limit} positions of {self.model.policy_path}."
            )
        own_limit = self._section.rollout.engine.max_model_len
        if own_limit is not None and own_limit < prompt + completion:
            raise UserError(
                f"rollout.engine.max_model_len is {own_limit}, less than data.max_prompt_tokens ({prompt}) and the "
                f"longest completion ({completion}) together."
            )

    def _check_lora(self) -> list[str]:
        """What is trained, in a line, if that is adapters; a checkpoint must be of the same kind."""
        module, checkpoint = self.model, self._section.ckpt_path
        if checkpoint is not None:
            check_settings(read_state(Path(checkpoint)), module.lora, checkpoint)
        if module.lora is None:
            return []
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            raise UserError(
                "model.lora does not go with trainer.strategy fsdp2, which cannot keep frozen weights and adapters of "
                "different types in one group: use trainer.strategy ddp."
            )
        return [summary(empty_policy(load_config(module.policy_path)), module.lora, module.policy_path)]

    def _check_method(self) -> None:
        """What shows only where sections meet; a variant of the user's own is tried on every group there is."""
        module, rollout = self.model, self._section.rollout
        cuts = [f"rollout.{name} ({rollout[name]})" for name, value in _CUTS_NOTHING.items() if rollout[name] != value]
        if cuts and module.loss.correction.mode == "off":
            raise UserError(
                f"{' and '.join(cuts)} cuts the distribution that training samples from, which biases the ratio of "
                f"policy and sampler: leave it out, or set model.loss.correction.mode."
            )
        if rollout.dynamic_sampling is not None and module.advantage.uses_degenerate_groups:
            raise UserError(
                f"rollout.dynamic_sampling replaces groups that are all right or all wrong, but model.advantage "
                f"({type(module.advantage).__name__}) learns from them: turn one of the two off."
            )
        buffer, limit = module.loss.overlong_buffer, rollout.max_completion_tokens
        if buffer is not None and buffer > limit:
            raise UserError(
                f"model.loss.overlong_buffer is {buffer}, longer than rollout.max_completion_tokens, {limit}."
            )
        size = rollout.group_size
        rewards = torch.tensor([[float(place < k) for place in range(size)] for k in range(size + 1)])
        for progress in (0.0, 1.0):
            try:
                checked_advantages(module.advantage, GroupRewards(rewards, torch.ones_like(rewards).bool(), progress))
            except UserError as error:
                raise UserError(_with_key(str(error), "model.advantage")) from error

    def _check_best(self) -> None:
        """The metric that checkpoints are kept by is one that validation gives."""
        run_checkpoint(self.trainer).check_metric(
            [
                f"val/{name}/{key}"
                for name, chosen in self.datamodule.evaluation_sets.items()
                for key in chosen.metrics().choice.names(chosen.samples)
                if key.partition("@")[0] in ACCURACIES
            ]
        )

    def _arithmetic(self) -> str:
        """The batch sizes in one line each."""
        section, module, data = self._section, self.model, self.datamodule
        group_size = section.rollout.group_size
        updates = module.updates_per_step * module.passes_per_step
        return (
            f"Run folder: {section.run_dir}\n"
            f"{section.steps} RL steps; a step is {data.prompts_per_step} prompts x {group_size} completions = "
            f"{data.prompts_per_step * group_size} completions and {updates} optimizer update{'s' * (updates > 1)} of "
            f"{data.prompts_per_step // module.updates_per_step * group_size} completions; "
            f"{self.trainer.world_size} process{'es' * (self.trainer.world_size > 1)}, {self.trainer.precision}"
        )

    def _memory(self) -> list[str]:
        """What the run will hold in memory, with a warning where that does not fit or its precision is very slow."""
        module, rollout, data = self.model, self._section.rollout, self.datamodule
        precision, device = str(self.trainer.precision), self.trainer.strategy.root_device.type
        on_gpu = device == "cuda"
        kind = installed_sampler(rollout.sampler)
        sampler = {"vllm": rollout.engine, "transformers": rollout.transformers}.get(kind)  # none if elsewhere
        cache = int(rollout.engine.kv_cache_gib * 2**30)
        if on_gpu:
            cache = int(rollout.engine.gpu_memory_utilization * device_memory(device))
        prompts = -(-data.prompts_per_step // self.trainer.world_size)
        at_once = rollout.transformers.batch_tokens
        if not data.evaluation_sets:  # a validation is likely to fill it
            longest = data.max_prompt_tokens + rollout.max_completion_tokens
            at_once = min(at_once, prompts * rollout.group_size * longest)
        settings = MemorySettings(
            precision=precision,
            attention=module.attention,
            gradient_checkpointing=module.gradient_checkpointing,
            micro_batch_tokens=module.micro_batch_tokens,
            max_prompt_tokens=data.max_prompt_tokens,
            max_completion_tokens=rollout.max_completion_tokens,
            group_size=rollout.group_size,
            completions_per_update=-(-prompts // module.updates_per_step) * rollout.group_size,
            optimizer_copies=optimizer_copies(module.make_optimizer),
            optimizer_works_on_all=works_on_all(module.make_optimizer, on_gpu=on_gpu),
            reference=module.loss.kl_coef > 0 and module.lora is None,
            lora=module.lora,
            sampler_dtype=resolve_dtype(sampler.dtype, precision) if sampler else None,
            sampler_cache=cache if kind == "vllm" else 0,
            sampler_tokens=at_once if kind == "transformers" else None,
            sampler_sleeps=kind == "vllm" and rollout.engine.sleep_level > 0,
            device="cuda" if on_gpu else "cpu",
            processes=self.trainer.world_size // self.trainer.num_nodes,
            shards=self.trainer.world_size if isinstance(self.trainer.strategy, FSDP2Strategy) else 1,
            ddp=isinstance(self.trainer.strategy, DDPStrategy),
        )
        lines = memory_lines(load_config(module.policy_path), settings)
        section = "engine" if kind == "vllm" else kind
        dtypes = {f"rollout.{section}.dtype": sampler.dtype} if sampler else {}
        return lines + bfloat16_lines(precision=precision, sampler=dtypes, device=settings.device)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | {"weights_only": True}


def _numbered(folder: Path) -> Iterator[Path]:
    """The folder, and then with a number added to its name: 2, 3, ..."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _other_strategy(name: str) -> UserError:
    return UserError(f"trainer.strategy {name} is not supported: use ddp, or fsdp2 to shard weights.")


def _preview(data: PromptDataModule) -> list[str]:
    """The first prompts as the policy sees them."""
    lines = ["The first prompts, as the policy sees them:"]
    for encoded in data.preview(_PREVIEWED):
        answer = one_line(ascii(encoded.prompt.row.get("answer")))
        lines.append(f"  {encoded.prompt.uid}, {len(encoded.token_ids)} tokens, answer {answer}")
        shown = (
            encoded.rendered if len(encoded.rendered) <= _PREVIEW_CHARS else encoded.rendered[:_PREVIEW_CHARS] + " ..."
        )
        lines += [f"    | {printable(line)}" for line in shown.split("\n")]
    return lines


def _key_of(error: BaseException) -> str | None:
    """The key of the config whose object the parser was making when this was raised, as far as it can be told."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if "jsonargparse" in frame.f_code.co_filename]
    keys = (getattr(frame.f_locals.get("component"), "dest", None) for frame in frames)
    return next((str(key) for key in keys if key), None)


def _with_key(message: str, key: str | None) -> str:
    """The message with the key in front, unless it names one of that section."""
    if key is None or f"{key.partition('.')[0]}." in message:
        return message
    return f"{key}: {message}"


def _user_error_in(error: BaseException) -> UserError | None:
    """The first `UserError` among an exception and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _ordered(callbacks: list[Callback]) -> list[Callback]:
    """Whether to stop is asked before all else, then rollouts; checkpoints stay last, as Lightning has them."""
    first = (SafeStop, VLLMRolloutCallback)
    return sorted(callbacks, key=lambda callback: next((n for n, k in enumerate(first) if isinstance(callback, k)), 9))
