"""What of Lightning is refused in the section `trainer`."""

from tests.bad_inputs.case import BadInput, config, option

_OWN = "tests.support.own_callbacks"


def _callback(name: str, arguments: str, *told: str, logger: str = "true") -> BadInput:
    text = f"trainer:\n  logger: {logger}\n  callbacks:\n  - class_path: {name}\n    init_args: {arguments}\n"
    return config(text, "trainer.callbacks", *(told or (f"{name} is not supported",)))


OF_OPTIONS = (
    {
        f"callback {name}": _callback(name, arguments)
        for name, arguments in {
            "BackboneFinetuning": "{}",
            "BatchSizeFinder": "{}",
            "EMAWeightAveraging": "{}",
            "GradientAccumulationScheduler": "{scheduling: {0: 2}}",
            "LearningRateFinder": "{}",
            "ModelCheckpoint": "{monitor: val/countdown/avg@8}",
            "ModelPruning": "{pruning_fn: random_unstructured}",
            "OnExceptionCheckpoint": "{dirpath: x}",
            "SpikeDetection": "{}",
            "StochasticWeightAveraging": "{swa_lrs: 0.01}",
            "Timer": "{duration: 00:01:00:00}",
        }.items()
    }
    | {
        f"strategy {name}": option(f"trainer.strategy={name}", f"trainer.strategy {name} is not supported")
        for name in ("ddp_spawn", "ddp_fork", "ddp_notebook_find_unused_parameters_true", "fsdp", "deepspeed", "xla")
    }
    | {
        f"plugin {name}": option(f"trainer.plugins={name}", f"trainer.plugins: {name} is not supported")
        for name in ("AsyncCheckpointIO", "DoublePrecision", "TorchCheckpointIO", "TorchSyncBatchNorm")
    }
    | {
        f"trainer.{name}={value}": option(f"trainer.{name}={value}", f"trainer.{name} must stay", f"got {value}")
        for name, value in (
            ("limit_val_batches", "0.5"),
            ("limit_val_batches", "1"),
            ("limit_test_batches", "0"),
            ("limit_predict_batches", "3"),
            ("sync_batchnorm", "true"),
            ("enable_autolog_hparams", "false"),
            ("model_registry", "a/b"),
        )
    }
    | {
        "a strategy that spawns": config(
            "trainer:\n  strategy: {class_path: DDPStrategy, init_args: {start_method: spawn}}\n",
            "trainer.strategy start_method must stay popen, got spawn",
        ),
        "a strategy by class": config(
            "trainer:\n  strategy: {class_path: ModelParallelStrategy}\n",
            "trainer.strategy ModelParallelStrategy is not supported",
        ),
        "a TPU": option("trainer.accelerator=tpu", "trainer.accelerator tpu is not supported"),
        "a profiler of TPUs": option(
            "trainer.profiler=xla", "trainer.profiler must be simple, advanced, pytorch", "xla"
        ),
        "a class of one's own that is a ModelCheckpoint": _callback(
            f"{_OWN}.Saver", "{}", "Saver, a ModelCheckpoint, is not supported", "checkpoint.every_n_steps"
        ),
        "two bars": config(
            "trainer:\n  callbacks: [RichProgressBar, TQDMProgressBar]\n", "multiple progress bar callbacks"
        ),
    }
)
"""Refused as the options are read."""

OF_OBJECTS = {
    "early stopping without a validation": _callback(
        "EarlyStopping", "{monitor: reward/mean}", "EarlyStopping looks at reward/mean", "data.validation is empty"
    ),
    "rates without a logger": _callback(
        "LearningRateMonitor", "{}", "LearningRateMonitor", "trainer.logger is false", logger="false"
    ),
    "devices without a logger": _callback(
        "DeviceStatsMonitor", "{}", "DeviceStatsMonitor", "trainer.logger is false", logger="false"
    ),
    "rates by epoch": _callback("LearningRateMonitor", "{logging_interval: epoch}", "logging_interval is epoch"),
    "a setup without its stage": _callback(
        f"{_OWN}.WithoutStage", "{}", "WithoutStage.setup(trainer, pl_module)", "setup(trainer, pl_module, stage=...)"
    ),
    "a hook that waits": _callback(f"{_OWN}.Waits", "{}", "Waits.on_train_start", "plain method"),
    "a hook that is a number": _callback(f"{_OWN}.NoMethod", "{}", "NoMethod.on_train_end must be a method, got 5"),
    "a function with too few arguments": _callback(
        "LambdaCallback", f"{{on_train_end: {_OWN}.of_trainer}}", "LambdaCallback.on_train_end(trainer)"
    ),
    "a metric of one's own that does not exist": _callback(
        f"{_OWN}.Stopper", "{monitor: nope}", "Stopper looks at nope", "data.validation is empty"
    ),
}
"""Refused as the objects are there, by `check` and `fit` alike."""
