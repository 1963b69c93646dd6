"""The command line and config files of fit, validate, test and predict, from arguments to a parsed config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint
from asymgrpo_app.callbacks.progress import with_one_bar
from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.callbacks.save_config import SaveRunConfig
from asymgrpo_app.callbacks.tensorboard import TensorBoardDetails
from asymgrpo_app.cli.config_files import check_config_file, config_paths
from asymgrpo_app.cli.own_classes import find_own_classes
from asymgrpo_app.cli.parser_messages import known_keys, plain, with_option
from asymgrpo_app.cli.parser_yaml import read_yaml_as_meant
from asymgrpo_app.cli.paths import expand_config_names, expand_paths
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
from asymgrpo_app.module import AsymGRPOModule

_DESCRIPTION = "Train and evaluate language models with AsymGRPO."
_UNSET = "model.policy must be a text, got None."
_NO_POLICY = (
    "model.policy is not set: give a config, as in --config configs/quickstart.yaml, or a model, as in "
    "--model.policy data/countdown_base."
)
_TRAINER_DEFAULTS = {
    "check_val_every_n_epoch": None,  # validation goes by RL steps
    "val_check_interval": 20,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data module deals prompts out to ranks itself
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


class RunParser(LightningCLI):
    """LightningCLI as a parser only; checking, building and running are functions in other modules.

    Attributes:
        config: The parsed config; its section `config[config["subcommand"]]` holds the settings of the run.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = expand_config_names(arguments)
        self.builds_trainer = False  # whether all other objects are built
        find_own_classes(self.arguments)
        for path in self.config_paths:
            check_config_file(path)
        super().__init__(
            AsymGRPOModule,
            PromptDataModule,
            parser_class=_Parser,
            parser_kwargs={"prog": "asymgrpo", "description": _DESCRIPTION},
            save_config_callback=SaveRunConfig,
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves no hyperparameters: a checkpoint holds the config
            args=self.arguments,
        )

    # ---- what was parsed ----

    @property
    def config_paths(self) -> list[Path]:
        """The config files that were given, in order."""
        return config_paths(self.arguments)

    @property
    def section(self) -> Any:
        """The config of the subcommand."""
        return self.config[self.config["subcommand"]]

    @property
    def section_parser(self) -> LightningArgumentParser:
        """The parser of the subcommand."""
        parser: LightningArgumentParser = self._parser(self.config["subcommand"])
        return parser

    @property
    def text(self) -> str:
        """The resolved config as YAML."""
        return str(self.section_parser.dump(self.section, skip_none=False))

    def build(self, **trainer_options: Any) -> tuple[AsymGRPOModule, PromptDataModule, Trainer]:
        """Build the objects of the config; `trainer_options` override the trainer options of the config."""
        self._trainer_options = trainer_options
        super().instantiate_classes()
        return self.model, self.datamodule, self.trainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the options given to `build`."""
        self.builds_trainer = True
        configured = self.config_init[self.config["subcommand"]].trainer.callbacks or []
        callbacks = configured if isinstance(configured, list) else [configured]
        options = self._trainer_options | {"callbacks": with_one_bar(callbacks, self._trainer_options["callbacks"])}
        return super().instantiate_trainer(**options, **kwargs)

    # ---- options ----

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
            # Registered by name only: the options of the three other subcommands take most of the parsing time.
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # a run prints a table of its own
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
        try:
            self.config = parser.parse_args(args)
        except UserError as error:
            sentence = _NO_POLICY if str(error) == _UNSET else with_option(str(error), self.arguments)
            raise UserError(sentence) from error
        expand_paths(self.section)

    # ---- later steps of LightningCLI's constructor, left out ----

    def _parse_ckpt_path(self) -> None:
        """Does nothing: settings in a checkpoint do not change the config."""

    def _set_seed(self) -> None:
        """Does nothing: a run is seeded when it is built."""

    def instantiate_classes(self) -> None:
        """Does nothing: see `build`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing: see `asymgrpo_app.cli.run`."""


read_yaml_as_meant()


class _Parser(LightningArgumentParser):
    """An argument parser that takes whole option names alone, and raises its errors as a one-line `UserError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(plain(message, known_keys(self))) from ex
