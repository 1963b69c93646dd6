"""Every private part of a library that this package uses, with the release it was read in and the reason.

`tests/runtime/test_compat.py` fails when one of them changes. The subclass of LightningCLI in `asymgrpo_app.cli.parser`
overrides private methods of it as well, which that test compares too.
"""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from asymgrpo_app.runtime.bounded_yaml import one_kind_of_error, resolve_as_meant


def leave_signals_alone(trainer: Any) -> None:
    """Have a Lightning trainer register no signal handlers.

    Lightning 2.6.6, `Trainer._signal_connector`: its handlers wait for other ranks, or on SLURM save a checkpoint in
    the middle of anything. There is no option to turn them off.
    """
    trainer._signal_connector.register_signal_handlers = _nothing


def replaces_samplers(trainer: Any) -> bool:
    """Whether a Lightning trainer of several processes puts samplers of its own into data loaders.

    Lightning 2.6.6, `Trainer._accelerator_connector`: its option `use_distributed_sampler` is kept nowhere else.
    """
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def _nothing() -> None:
    """Do nothing, in place of registering signal handlers."""


def shown_progress_bar(bar: Any) -> Any:
    """The training bar of a `TQDMProgressBar`, or None before there is one.

    Lightning 2.6.6, `TQDMProgressBar._train_progress_bar`: the public property raises without one.
    """
    return bar._train_progress_bar


class _Deferred:
    """A class of transformers that is imported when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(import_module("transformers"), self._name), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("transformers"), self._name)(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, getattr(import_module("transformers"), self._name))


def defer_transformers() -> None:
    """Import torchmetrics, as Lightning does, without transformers, which takes seconds and reads no config.

    torchmetrics 1.9, `functional.text.bert` and its like: they import classes of transformers for metrics of texts as
    soon as it is installed. They get stand-ins for these, which import it when such a metric is used.
    """
    if "torchmetrics" in sys.modules or "transformers" in sys.modules:
        return
    stand_in: Any = ModuleType("transformers")
    stand_in.__spec__ = find_spec("transformers")

    def deferred(name: str) -> _Deferred:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(name)

    stand_in.__getattr__ = deferred
    sys.modules["transformers"] = stand_in
    try:
        import_module("torchmetrics")
    finally:
        del sys.modules["transformers"]


def looks_at_epochs(early_stopping: Any) -> bool:
    """Whether an `EarlyStopping` was told to look at its metric at the end of an epoch.

    Lightning 2.6.6, `EarlyStopping._check_on_train_epoch_end`: the argument is kept nowhere else.
    """
    return bool(early_stopping._check_on_train_epoch_end)


def event_file(writer: Any) -> Path:
    """The file that a `SummaryWriter` of torch writes events to.

    tensorboard 2.21, `EventFileWriter._file_name`: the folder is public, the name is not.
    """
    return Path(writer.file_writer.event_writer._file_name)


def common_store() -> Any:
    """The key-value store that the processes of a run share.

    torch 2.13, `distributed_c10d._get_default_store`: a store of our own would need a port of its own.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def block_names(model: Any) -> set[str]:
    """Class names of a model's transformer blocks; none if its architecture does not say.

    transformers 5.19, `PreTrainedModel._no_split_modules`: what Accelerate and FSDP wrap by, too.
    """
    return set(model._no_split_modules or ())


def attention_of(model: Any) -> str:
    """The name of the attention implementation that a model was loaded with.

    transformers 5.19, `config._attn_implementation`: `attn_implementation` is an argument of `from_pretrained` alone.
    """
    return str(model.config._attn_implementation)


def came_with_adapter(model: Any) -> bool:
    """Whether transformers followed an adapter to its base model, and loaded both.

    transformers 5.19, `_hf_peft_config_loaded`: set by `from_pretrained`; nothing public shows it.
    """
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def options_of(parser: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, type and default of each option of a jsonargparse parser and its subcommands.

    jsonargparse 4.53, `_actions` of argparse and `_typehint`: the parser takes null for every key, which only optional
    ones may have; and its message on a key that is not there does not name those that are.
    """
    for action in parser._actions:
        if isinstance(action.choices, dict):  # the parsers of subcommands, by name
            for inner in action.choices.values():
                yield from options_of(inner)
        else:
            yield action.dest, getattr(action, "_typehint", None) or action.type, action.default


def key_of(error: BaseException) -> str | None:
    """The config key whose object jsonargparse was making when the error was raised; None if it cannot be told.

    jsonargparse 4.53, the variable `component` of `instantiate_classes`: a constructor's error does not say for which
    key it was called.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if "jsonargparse" in frame.f_code.co_filename]
    keys = (getattr(frame.f_locals.get("component"), "dest", None) for frame in frames)
    return next((str(key) for key in keys if key), None)


def bound_yaml_of_parser(refuse: Callable[[str], None]) -> None:
    """Have jsonargparse hand every YAML text to `refuse` before it reads it, and fail with YAML's errors alone.

    jsonargparse 4.53, `_loaders_dumpers.get_yaml_default_loader`: `set_loader` replaces what reads configs, but not
    what reads a text where a number or a truth value is asked for; and the loader is libyaml's, which nesting alone can
    crash.
    """
    from jsonargparse._loaders_dumpers import get_yaml_default_loader

    loader: Any = get_yaml_default_loader()  # type: ignore[no-untyped-call]
    if "__init__" in vars(loader):
        return
    begin, read = loader.__init__, loader.get_single_data

    def checked(self: Any, stream: str) -> None:
        refuse(stream)
        begin(self, stream)

    def read_whole(self: Any) -> Any:
        with one_kind_of_error():
            return read(self)

    loader.__init__, loader.get_single_data = checked, read_whole
    resolve_as_meant(loader, answers=True)


def while_restoring(error: BaseException) -> bool:
    """Whether an error was raised while Lightning took a run's state from a checkpoint.

    Lightning 2.6.6, `_CheckpointConnector.restore*`: what a state holds beside our own entries is theirs, and they
    report what is missing in it as a KeyError or the like.
    """
    codes = (frame.f_code for frame, _ in walk_tb(error.__traceback__))
    return any(code.co_filename.endswith("checkpoint_connector.py") and "restore" in code.co_name for code in codes)
