"""What of Lightning a run supports, and what it refuses: one table, for the checks and for docs/lightning.md."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Supported:
    """Something of Lightning that works in a run.

    Attributes:
        text: What it does here.
    """

    text: str


@dataclass(frozen=True)
class Refused:
    """Something of Lightning that a run refuses.

    Attributes:
        text: Why, and what to use instead.
        hooks: Methods that are the reason; a subclass with other ones for all of them is a class of the user's own.
    """

    text: str
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fixed:
    """An argument of the trainer that a run sets by itself.

    Attributes:
        instead: What to set in its place.
        values: Its values that change nothing.
        stays: Whether the message names the value that it must keep.
    """

    instead: str
    values: tuple[Any, ...]
    stays: bool = False


_OWN = "A base for classes of your own."
_AVERAGING = (
    "its averaged weights do not reach the sampler, so a validation would score others than it says; keep the best "
    "checkpoints (checkpoint.best), or lower the learning rate towards the end (model.lr_scheduler)"
)
_NO_TUNER = "it trains on trial before the run, which a run of RL steps cannot undo"
_NOT_BEFORE_SETUP = ("setup",)

CALLBACKS: dict[str, Supported | Refused] = {
    "BackboneFinetuning": Refused(
        "it freezes a part named `backbone`, which the policy does not have: set model.lora to train few weights",
        _NOT_BEFORE_SETUP,
    ),
    "BaseFinetuning": Refused(
        "it freezes weights before the policy is loaded: set model.lora to train few weights", _NOT_BEFORE_SETUP
    ),
    "BasePredictionWriter": Refused(
        "a prediction is a number of problems here: `asymgrpo predict` writes every completion to predictions.jsonl",
        ("on_predict_batch_end", "on_predict_epoch_end"),
    ),
    "BatchSizeFinder": Refused(
        f"{_NO_TUNER}: set data.prompts_per_step, and model.micro_batch_tokens for the memory", _NOT_BEFORE_SETUP
    ),
    "Callback": Supported(f"{_OWN} `asymgrpo check` looks at its hooks, and says which of them never run."),
    "Checkpoint": Supported(_OWN),
    "DeviceStatsMonitor": Supported(
        "Writes use of CPU and memory, or GPU memory, as `DeviceStatsMonitor.*`; needs a logger."
    ),
    "EarlyStopping": Supported(
        "Looks at `monitor`, a tag of metrics.md, after each validation; `patience` counts validations, the one before "
        "the first step included if it gives the tag."
    ),
    "EMAWeightAveraging": Refused(_AVERAGING),
    "GradientAccumulationScheduler": Refused(
        "an update takes all its completions, in micro-batches of any number: set model.micro_batch_tokens for the "
        "memory, and data.prompts_per_step for the size of a step",
        ("on_train_start",),
    ),
    "LambdaCallback": Supported("Hooks by the import path of a function, `on_train_end: my_module.my_function`."),
    "LearningRateFinder": Refused(f"{_NO_TUNER}: set lr of model.optimizer", ("on_fit_start",)),
    "LearningRateMonitor": Supported(
        "Writes `lr-<optimizer>` before each step; needs a logger. `actor/lr` is written without it."
    ),
    "ModelCheckpoint": Refused(
        "it counts optimizer updates and epochs, and saves what a run cannot continue: set checkpoint.every_n_steps, "
        "checkpoint.keep and checkpoint.best"
    ),
    "ModelPruning": Refused(
        "it looks for weights before the policy is loaded: prune the exported model", _NOT_BEFORE_SETUP
    ),
    "ModelSummary": Supported(
        "Prints layers and numbers of weights at the start; `trainer.enable_model_summary: true`."
    ),
    "OnExceptionCheckpoint": Refused(
        "it saves in the middle of a step, and deletes its file at the end: a run that is stopped or fails saves its "
        "last whole step by itself",
        ("on_exception",),
    ),
    "ProgressBar": Supported(f"{_OWN} It takes the place of the run's own bar."),
    "RichModelSummary": Supported("As ModelSummary."),
    "RichProgressBar": Supported(
        "Takes the place of the run's own bar, with its values; it counts steps, not how many are left."
    ),
    "SpikeDetection": Refused(
        "it reads the loss that a training step returns, and here it returns none: model.max_skipped_updates stops a "
        "run whose loss is not finite, and EarlyStopping can watch actor/grad_norm",
        ("on_train_batch_end",),
    ),
    "StochasticWeightAveraging": Refused(_AVERAGING, ("on_fit_start",)),
    "ThroughputMonitor": Supported(
        "Writes `train/*` and `validate/*`, of what `batch_size_fn` counts in a `PromptBatch`, a function of your own; "
        "rates after `window_size` steps (100). Needs a logger. `perf/throughput` and `perf/mfu` come without it."
    ),
    "Timer": Refused("set time_limit, at which a run saves its last step and can be continued"),
    "TQDMProgressBar": Supported("As RichProgressBar."),
    "WeightAveraging": Refused(_AVERAGING),
}

_SERVICE = (
    "Gets every scalar of metrics.md over RL steps, as any logger does. Its package does not come with this one, and "
    "no test has it."
)
LOGGERS: dict[str, Supported | Refused] = {
    "CometLogger": Supported(_SERVICE),
    "CSVLogger": Supported(
        "Writes metrics.csv; without `version`, a run that is continued begins another one. One that is there already "
        "is not overwritten."
    ),
    "LitLogger": Supported(_SERVICE),
    "Logger": Supported(_OWN),
    "MLFlowLogger": Supported(_SERVICE),
    "TensorBoardLogger": Supported(
        "The default, in the run's folder. Histograms, samples and the layout go to each logger of this kind."
    ),
    "WandbLogger": Supported(_SERVICE),
}

PROFILERS: dict[str, Supported | Refused] = {
    "AdvancedProfiler": Supported("`advanced`: every function, by cProfile. Printed at the end, or in `filename`."),
    "PassThroughProfiler": Supported("None, the default."),
    "Profiler": Supported(_OWN),
    "PyTorchProfiler": Supported(
        "`pytorch`: operators, printed at the end or in `filename`; traces go to `dirpath`, or beside the events of "
        "the run."
    ),
    "SimpleProfiler": Supported("`simple`: seconds of each hook. Printed at the end, or in `filename`."),
    "XLAProfiler": Refused("it needs a TPU: use simple, advanced or pytorch"),
}
PROFILER_NAMES = {"simple", "advanced", "pytorch"}

STRATEGIES: dict[str, Supported | Refused] = {
    "auto": Supported("One process: `single_device`; several: `ddp`."),
    "ddp": Supported("A copy of the weights in each process."),
    "ddp_find_unused_parameters_false": Supported("The same as `ddp`."),
    "ddp_find_unused_parameters_true": Supported(
        "As `ddp`, with a search for weights without gradient, which costs time."
    ),
    "fsdp2": Supported("Weights, gradients and optimizer state sharded over all processes (strategies.md)."),
    "single_device": Supported("One process."),
}
"""By name. Every other name is refused: `OTHER_STRATEGY` says why."""
OTHER_STRATEGY = "use ddp, or fsdp2 to shard weights"

STRATEGY_CLASSES: dict[str, Supported | Refused] = {
    "DDPStrategy": Supported("With `start_method: popen`, the default; the others start processes that cannot run."),
    "DeepSpeedStrategy": Refused(OTHER_STRATEGY),
    "FSDPStrategy": Refused(OTHER_STRATEGY),
    "ModelParallelStrategy": Refused(OTHER_STRATEGY, ("setup_environment",)),
    "ParallelStrategy": Refused(OTHER_STRATEGY),
    "SingleDeviceStrategy": Supported("One process."),
    "Strategy": Refused(OTHER_STRATEGY),
}

_IO = "checkpoints are written by the run's own, whole or not at all: leave it out"
_PRECISION = "set trainer.precision, 32-true or bf16-mixed"
_LAYER_SYNC = "language models have no batch normalization: leave it out"
_CLUSTER = "Found by itself where it applies (scaling.md)."
_OTHER_CLUSTER = "processes are started by Lightning, torchrun or SLURM: leave it out, or use torchrun"
PLUGINS: dict[str, Supported | Refused] = {
    "AsyncCheckpointIO": Refused(_IO),
    "BitsandbytesPrecision": Refused(f"weights of few bits are not supported: {_PRECISION}"),
    "CheckpointIO": Refused(_IO),
    "ClusterEnvironment": Supported(_OWN),
    "DeepSpeedPrecision": Refused(_PRECISION),
    "DoublePrecision": Refused(_PRECISION),
    "FSDPPrecision": Refused(_PRECISION),
    "HalfPrecision": Refused(_PRECISION),
    "KubeflowEnvironment": Refused(_OTHER_CLUSTER),
    "LayerSync": Refused(_LAYER_SYNC),
    "LightningEnvironment": Supported("Lightning starts the processes; the default outside a cluster."),
    "LSFEnvironment": Refused(_OTHER_CLUSTER),
    "MixedPrecision": Refused(_PRECISION),
    "MPIEnvironment": Refused(_OTHER_CLUSTER),
    "Precision": Refused(_PRECISION),
    "SLURMEnvironment": Supported(f"{_CLUSTER} It does not requeue a job: a run that is stopped saves, and ends."),
    "TorchCheckpointIO": Refused(_IO),
    "TorchElasticEnvironment": Supported(_CLUSTER),
    "TorchSyncBatchNorm": Refused(_LAYER_SYNC),
    "TransformerEnginePrecision": Refused(_PRECISION),
    "XLACheckpointIO": Refused(_IO),
    "XLAEnvironment": Refused(_OTHER_CLUSTER),
    "XLAPrecision": Refused(_PRECISION),
}

_DEVICES = "set trainer.accelerator to cpu or cuda"
ACCELERATORS: dict[str, Supported | Refused] = {
    "Accelerator": Refused(_DEVICES),
    "CPUAccelerator": Supported("`cpu`"),
    "CUDAAccelerator": Supported("`cuda` or `gpu`"),
    "MPSAccelerator": Refused(_DEVICES),
    "XLAAccelerator": Refused(_DEVICES),
}
ACCELERATOR_NAMES = {"auto", "cpu", "cuda", "gpu"}

_OFF = (None, -1)
_WHOLE = (None, 1.0)
_SET_LIMIT = "set `limit` of the sets in data.validation"
ARGUMENTS: dict[str, Supported | Fixed] = {
    "accelerator": Supported("`auto`, `cpu`, `cuda` (`gpu`)."),
    "accumulate_grad_batches": Fixed("set model.micro_batch_tokens", (1,), stays=True),
    "barebones": Fixed("leave it out", (False,), stays=True),
    "benchmark": Supported("As in Lightning; few language models have what it times."),
    "callbacks": Supported("See below; they run beside those of a run."),
    "check_val_every_n_epoch": Fixed("set trainer.val_check_interval", (None,), stays=True),
    "default_root_dir": Fixed("run_dir", _OFF),
    "detect_anomaly": Supported("Names the operation whose gradient is not a number; slow."),
    "deterministic": Supported("`true` or `warn`: torch's deterministic algorithms, of which a GPU may lack one."),
    "devices": Supported("Number of processes, one for each device, or their numbers."),
    "enable_autolog_hparams": Fixed("leave it out, the settings are written by the run itself", (True,), stays=True),
    "enable_checkpointing": Fixed("checkpoint.every_n_steps", _OFF),
    "enable_model_summary": Supported("Prints layers and numbers of weights at the start. Default: false."),
    "enable_progress_bar": Supported("`false`: neither a bar nor lines of progress."),
    "fast_dev_run": Fixed("set steps", (False,), stays=True),
    "gradient_clip_algorithm": Fixed("model.max_grad_norm", _OFF),
    "gradient_clip_val": Fixed("model.max_grad_norm", _OFF),
    "inference_mode": Supported(
        "`false`: evaluations with `torch.no_grad`, as the validations of a run always are; same results."
    ),
    "limit_predict_batches": Fixed(_SET_LIMIT, _WHOLE, stays=True),
    "limit_test_batches": Fixed(_SET_LIMIT, _WHOLE, stays=True),
    "limit_train_batches": Fixed("set steps", (None,), stays=True),
    "limit_val_batches": Fixed(f"{_SET_LIMIT}, or 0 to train without validation", (*_WHOLE, 0), stays=True),
    "log_every_n_steps": Supported("RL steps between two writings of scalars. Default: 1."),
    "logger": Supported("`false`: none; see below. Default: TensorBoard in the run's folder."),
    "max_epochs": Fixed("steps, which counts RL steps", _OFF),
    "max_steps": Fixed("steps, which counts RL steps", _OFF),
    "max_time": Fixed("time_limit", _OFF),
    "min_epochs": Fixed("steps", _OFF),
    "min_steps": Fixed("steps", _OFF),
    "model_registry": Fixed("leave it out, checkpoints stay in the run's folder", (None,), stays=True),
    "num_nodes": Supported("Number of machines (scaling.md)."),
    "num_sanity_val_steps": Fixed("a run validates before its first step by itself", (0,), stays=True),
    "overfit_batches": Fixed("set data.repeat_steps", (0.0,), stays=True),
    "plugins": Supported("See below."),
    "precision": Supported("`32-true` or `bf16-mixed`."),
    "profiler": Supported("`simple`, `advanced`, `pytorch` or a class; see below."),
    "reload_dataloaders_every_n_epochs": Fixed("leave it out", (0,), stays=True),
    "strategy": Supported("See below."),
    "sync_batchnorm": Fixed(_LAYER_SYNC, (False,), stays=True),
    "use_distributed_sampler": Fixed("leave it out", (False,), stays=True),
    "val_check_interval": Supported("RL steps between two validations, a whole number. Default: 20."),
}

CLASSES: dict[str, dict[str, Supported | Refused]] = {
    "callbacks": CALLBACKS,
    "logger": LOGGERS,
    "profiler": PROFILERS,
    "strategy": STRATEGY_CLASSES,
    "plugins": PLUGINS,
    "accelerator": ACCELERATORS,
}
"""Tables of classes, by the argument of the trainer that takes them."""
