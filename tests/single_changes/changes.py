"""Single changes to the quick start's config and environment, at random.

A change need not be a sensible one: the values of a key are drawn from all that people write, and some of them are
refused. What is left out, with the reason: values that only make the run long or large (a million completions a group)
and settings for several machines, which wait for the others.
"""

from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.profilers
from hypothesis import strategies as st

from tests.support.paths import POLICY

BASE = f"""
model: {{policy: {POLICY}}}
steps: 2
run_dir: run
data:
  prompts_per_step: 4
  validation:
    countdown: {{limit: 3, samples: 2, pass_at: [2]}}
rollout: {{group_size: 3, sampler: transformers}}
checkpoint: {{every_n_steps: 1}}
tensorboard: {{change_completions: 4, samples: 2}}
trainer:
  accelerator: cpu
  val_check_interval: 1
  callbacks: [tests.support.two_steps.TwoSteps]
"""
"""A second config that makes the quick start a matter of seconds."""


@dataclass(frozen=True)
class Change:
    """A change of a run.

    Attributes:
        says: What is changed, for the report.
        arguments: Further arguments.
        config: A further config file.
        environment: Variables to set, or to unset with None.
        files: Text files that are there before, by path; a path that ends in `/` is a folder.
        signal: The signal that comes while it trains; empty: none.
    """

    says: str
    arguments: tuple[str, ...] = ()
    config: str = ""
    environment: dict[str, str | None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    signal: str = ""


# ---- values of keys ----

_ANY = (
    *("null", "true", "false", "on", "no", "''", "x", "[]", "{}", "[1]", "{a: 1}", "-1", "0", "1", "2", "3", "0.5"),
    *("1.0", "1e0", "010", "0x2", "1_0", "1:30", ".nan", ".inf", "-.inf", "2024-01-01", "'2'", "' '", "é", "~", "~/x"),
    *("${HOME}/x", "auto", "none", "a b", "!!str 2", "&a 2", "'\\0'", "../x", "/dev/null/x", "2.5", "1e-300", "-0.0"),
)
_LENGTHY = {  # keys whose larger values take long, or much memory
    "trainer.devices": ("'1'", "[0]", "auto", "-1", "0", "[]", "x", "null", "1.5", "cpu"),
    "trainer.num_nodes": ("0", "-1", "x", "null", "1.0"),
    "trainer.accelerator": ("cpu", "auto", "gpu", "cuda", "tpu", "mps", "x", "null", "[]", "CPU"),
    "rollout.sampler": ("transformers", "server", "x", "null", "''", "[]", "Transformers", "hf"),
    "model.compile": ("false", "null", "x", "0"),  # `true` takes a minute
}


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that are no group of others, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _setting(keys: tuple[str, ...]) -> st.SearchStrategy[Change]:
    """A value of one key, in a file or as an option."""

    @st.composite
    def draw(draw_one: Any) -> Change:
        key = draw_one(st.sampled_from(keys))
        value = draw_one(st.sampled_from(_LENGTHY.get(key, _ANY)))
        if draw_one(st.booleans()):
            return Change(f"--{key}={value}", (f"--{key}={value}",))
        parts = key.split(".")
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(parts)]
        return Change(f"{key}: {value}", config="\n".join(lines) + f" {value}\n")

    return draw()


# ---- Lightning's classes ----


def _public(module: Any) -> tuple[str, ...]:
    return tuple(f"{module.__name__}.{name}" for name in module.__all__)


_OWN = {
    "EarlyStopping": ("monitor: reward/mean", "monitor: val/countdown/avg@2", "monitor: val/none", "monitor: loss"),
    "ModelCheckpoint": ("{}", "monitor: reward/mean", "monitor: nothing"),
    "Timer": ("{}", "duration: 00:00:10:00", "duration: {hours: 1}", "interval: epoch"),
    "LearningRateMonitor": ("{}", "logging_interval: step", "logging_interval: epoch"),
    "GradientAccumulationScheduler": ("scheduling: {0: 2}",),
    "StochasticWeightAveraging": ("swa_lrs: 0.01",),
    "ThroughputMonitor": ("batch_size_fn: len",),
    "BatchSizeFinder": ("{}",),
    "BackboneFinetuning": ("{}",),
}


def _callback(path: str) -> st.SearchStrategy[Change]:
    given = _OWN.get(path.rpartition(".")[2], ("{}",))
    return st.sampled_from(given).map(
        lambda init: Change(
            f"callback {path} {init}",
            config="trainer:\n  callbacks:\n"
            "  - tests.support.two_steps.TwoSteps\n"
            f"  - class_path: {path}\n    init_args: {init if init == '{}' else '{' + init + '}'}\n",
        )
    )


_CALLBACKS = st.sampled_from(_public(lightning.pytorch.callbacks)).flatmap(_callback)
_LOGGERS = st.sampled_from(
    [
        *("true", "false", "[]"),
        *(
            f"{{class_path: {path}, init_args: {init}}}"
            for path in _public(lightning.pytorch.loggers)
            for init in ("{}", "{save_dir: logs}", "{save_dir: run/logs, name: a}")
        ),
        "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs}}, "
        "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: logs}}]",
    ]
).map(lambda value: Change(f"logger {value}", config=f"trainer:\n  logger: {value}\n"))
_PROFILERS = st.sampled_from(
    [
        "simple",
        "advanced",
        "pytorch",
        "xla",
        "x",
        *(f"{{class_path: {path}}}" for path in _public(lightning.pytorch.profilers)),
    ]
).map(lambda value: Change(f"profiler {value}", config=f"trainer:\n  profiler: {value}\n"))
_STRATEGIES = st.sampled_from(
    [
        *("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true", "fsdp", "fsdp2"),
        *("fsdp_cpu_offload", "deepspeed", "deepspeed_stage_3", "model_parallel", "single_device", "single_xla", "x"),
        "{class_path: lightning.pytorch.strategies.DDPStrategy}",
        "{class_path: lightning.pytorch.strategies.SingleDeviceStrategy}",
        "{class_path: lightning.pytorch.strategies.FSDPStrategy}",
    ]
).map(lambda value: Change(f"strategy {value}", config=f"trainer:\n  strategy: {value}\n"))
_PLUGINS = st.sampled_from(
    [
        "lightning.pytorch.plugins.environments.LightningEnvironment",
        "lightning.pytorch.plugins.environments.SLURMEnvironment",
        "lightning.pytorch.plugins.environments.TorchElasticEnvironment",
        "lightning.pytorch.plugins.io.TorchCheckpointIO",
        "lightning.pytorch.plugins.io.AsyncCheckpointIO",
        "lightning.pytorch.plugins.precision.Precision",
        "lightning.pytorch.plugins.precision.DoublePrecision",
        "lightning.pytorch.plugins.layer_sync.TorchSyncBatchNorm",
        "x",
    ]
).map(lambda value: Change(f"plugin {value}", config=f"trainer:\n  plugins: [{{class_path: {value}}}]\n"))

# ---- paths, environment, signals ----

_PATHS = st.sampled_from(
    [
        Change("run_dir with a space", ("--run_dir=a run",)),
        Change("run_dir outside ASCII", ("--run_dir=läufe/é",)),
        Change("run_dir of another run", ("--run_dir=old",), files={"old/config.yaml": "steps: 1\n"}),
        Change("run_dir with other files", ("--run_dir=old",), files={"old/notes.txt": "mine\n"}),
        Change("run_dir is a file", ("--run_dir=old",), files={"old": "mine\n"}),
        Change("run_dir is long", (f"--run_dir={'x' * 300}",)),
        Change("run_dir is deep", (f"--run_dir={'/'.join(['x' * 100] * 5)}",)),
        Change("run_dir with a line feed", ("--run_dir=a\nb",)),
        Change("run_dir with a percent sign", ("--run_dir=%s{0}$x",)),
        Change("run_dir of the home", ("--run_dir=~/run",)),
        Change("run_dir of a variable", ("--run_dir=${HOME}/run",)),
        Change("run_dir is here", ("--run_dir=.",)),
        Change("run_dir is empty", ("--run_dir=",)),
        Change("policy is missing", ("--model.policy=nowhere",)),
        Change("policy is missing, in two parts", ("--model.policy=data/nowhere",)),
        Change("policy is a file", ("--model.policy=mine.yaml",), files={"mine.yaml": "{}"}),
        Change("policy is an empty folder", ("--model.policy=empty",), files={"empty/": ""}),
        Change("ckpt_path is missing", ("--ckpt_path=nowhere.ckpt",)),
        Change("ckpt_path is last", ("--ckpt_path=last",)),
        Change("ckpt_path is no checkpoint", ("--ckpt_path=a.ckpt",), files={"a.ckpt": "none"}),
        Change("config is missing", ("--config=nowhere.yaml",)),
        Change("config is empty", ("--config=empty.yaml",), files={"empty.yaml": ""}),
        Change("config is a list", ("--config=list.yaml",), files={"list.yaml": "- 1\n"}),
        Change("config is a folder", ("--config=folder",), files={"folder/": ""}),
        Change("config in UTF-16", ("--config=-",)),
        Change("an option twice", ("--steps=2", "--steps=2")),
        Change("an abbreviated option", ("--run_d=run",)),
        Change("an abbreviated config", ("--conf=mine.yaml",), files={"mine.yaml": "steps: 2\n"}),
        Change("a word too many", ("run",)),
        Change("an unknown option", ("--lr=1",)),
    ]
)
_VARIABLES: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK"), ("0", "1", "x", "")),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NUM_NODES"), ("1", "2", "x", "")),
    **dict.fromkeys(("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_NAME"), ("0", "1", "bash", "")),
    **dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"), ("127.0.0.1", "29500", "x", "")),
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "COLUMNS", "LINES"), ("1", "0", "-1", "abc", "")),
    **dict.fromkeys(("HOME", "HF_HOME", "ASYMGRPO_CACHE", "XDG_CACHE_HOME"), ("/dev/null/x", "relative", "", None)),
    "TMPDIR": ("/dev/null/x", "", None),
    **dict.fromkeys(("LANG", "LC_ALL"), ("C", "POSIX", "xx_XX.UTF-8", "", None)),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-8"),
    "CUDA_VISIBLE_DEVICES": ("", "0", "x", "-1"),
    "TERM": ("dumb", "", "xterm", None),
    "PATH": ("", "/dev/null/x"),
    **dict.fromkeys(("USER", "LOGNAME"), (None, "")),
    "PL_GLOBAL_SEED": ("7", "x", ""),
    "HF_HUB_OFFLINE": ("1", "0", ""),
    "PYTHONWARNINGS": ("error", "x"),
    "PYTHONHASHSEED": ("0",),
    "TORCH_LOGS": ("x",),
    "VLLM_LOGGING_LEVEL": ("x", "DEBUG"),
}
_ENVIRONMENT = st.sampled_from([(name, value) for name, values in _VARIABLES.items() for value in values]).map(
    lambda pair: Change(f"{pair[0]}={pair[1]!r} in the environment", environment={pair[0]: pair[1]})
)
STOPPING = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75}
HARMLESS = ("SIGWINCH", "SIGCONT", "SIGURG", "SIGCHLD", "SIGPIPE")
_HOOKS = (
    *("setup", "on_train_start", "on_train_batch_start", "on_before_backward", "on_train_batch_end"),
    *("on_validation_batch_end", "on_save_checkpoint"),
)
_SIGNALS = st.builds(
    lambda name, hook, step: Change(
        f"{name} in {hook} after step {step}",
        config="trainer:\n  callbacks:\n  - tests.support.two_steps.TwoSteps\n"
        "  - class_path: tests.support.two_steps.Signalled\n"
        f"    init_args: {{name: {name}, hook: {hook}, step: {step}}}\n",
        signal=name,
    ),
    st.sampled_from([*STOPPING, *HARMLESS]),
    st.sampled_from(_HOOKS),
    st.integers(0, 1),
)


def changes(keys: tuple[str, ...]) -> st.SearchStrategy[Change]:
    """Any single change.

    Args:
        keys: The dotted keys of the config.
    """
    of_trainer = tuple(key for key in keys if key.startswith("trainer."))
    return st.one_of(
        *(_setting(keys), _setting(of_trainer), _CALLBACKS, _LOGGERS, _PROFILERS, _STRATEGIES, _PLUGINS),
        *(_PATHS, _ENVIRONMENT, _SIGNALS),
    )
