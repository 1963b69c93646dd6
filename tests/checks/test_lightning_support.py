"""The table of what of Lightning is supported: it is whole, the page has it, and the checks go by it."""

import inspect
from types import SimpleNamespace

import lightning.fabric.plugins.environments as environments
import pytest
from lightning.pytorch import Trainer, accelerators, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import StrategyRegistry

from asymgrpo_app.checks import lightning_support as support
from asymgrpo_app.checks.hooks import HOOKS, NEVER, check_hooks
from asymgrpo_app.checks.options import check_trainer_options, refuse_class
from asymgrpo_app.errors import UserError
from asymgrpo_app.parallel.strategy import NAME as FSDP2
from tests.support import own_callbacks as own
from tests.support.lightning_docs import PAGE, page


def classes(module) -> set[str]:
    return {name for name in module.__all__ if inspect.isclass(getattr(module, name))}


# ---- the table is whole ----


def test_every_public_name_of_the_installed_lightning_is_in_the_table():
    clusters = {name for name, cls in vars(environments).items() if inspect.isclass(cls)}
    assert support.CALLBACKS.keys() == classes(callbacks)
    assert support.LOGGERS.keys() == set(loggers.__all__)
    assert support.PROFILERS.keys() == set(profilers.__all__)
    assert support.STRATEGY_CLASSES.keys() == classes(strategies)
    assert support.PLUGINS.keys() == classes(plugins) | clusters
    assert support.ACCELERATORS.keys() == classes(accelerators)
    assert support.ARGUMENTS.keys() == inspect.signature(Trainer).parameters.keys()
    assert issubclass(environments.LightningEnvironment, ClusterEnvironment)


def test_names_that_are_supported_are_names_of_lightning():
    assert support.STRATEGIES.keys() - {"auto", FSDP2} <= set(StrategyRegistry.available_strategies())
    for name in support.PROFILER_NAMES:
        assert not isinstance(Trainer(profiler=name, logger=False).profiler, profilers.PassThroughProfiler)
    assert accelerators.AcceleratorRegistry.available_accelerators() > {"cpu", "cuda"}


def test_the_page_has_the_table():
    text = PAGE.read_text()
    assert page(text) == text


def test_the_hooks_of_the_page_are_hooks_of_lightning():
    assert NEVER.keys() <= set(HOOKS)
    assert {"setup", "teardown", "state_dict", "on_train_batch_start"} <= set(HOOKS)


# ---- the checks go by it ----


def options(**given):
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    kept = {name: entry.values[0] for name, entry in support.ARGUMENTS.items() if isinstance(entry, support.Fixed)}
    return Options(defaults | kept | {"log_every_n_steps": 1, "val_check_interval": 20} | given)


class Options(SimpleNamespace):
    """Stands in for the parser's namespace."""

    def __init__(self, values) -> None:
        super().__init__(**values)

    def get(self, name, default=None):
        return getattr(self, name, default)


def test_the_defaults_are_accepted():
    check_trainer_options(options())


REFUSED = [
    (argument, module, name)
    for argument, module in (
        ("callbacks", callbacks),
        ("profiler", profilers),
        ("strategy", strategies),
        ("plugins", plugins),
        ("plugins", environments),
        ("accelerator", accelerators),
    )
    for name, entry in support.CLASSES[argument].items()
    if isinstance(entry, support.Refused) and hasattr(module, name)
]


@pytest.mark.parametrize(("argument", "module", "name"), REFUSED, ids=[name for _, _, name in REFUSED])
def test_a_refused_class_is_refused_and_so_is_a_subclass(argument, module, name):
    refused = getattr(module, name)
    text = support.CLASSES[argument][name].text
    place = f"trainer.{argument}{':' * (argument in ('callbacks', 'plugins'))}"
    with pytest.raises(UserError) as caught:
        refuse_class(argument, refused)
    assert str(caught.value) == f"{place} {name} is not supported: {text}."
    with pytest.raises(UserError, match=f"{place} Mine, a {name}, is not supported: "):
        refuse_class(argument, type("Mine", (refused,), {}))


def test_a_subclass_with_other_methods_is_a_class_of_the_users_own():
    refuse_class("callbacks", own.OwnAccumulation)
    refuse_class("callbacks", own.Stopper)
    refuse_class("callbacks", Callback)
    refuse_class("callbacks", len)  # a function that returns a callback: the object is looked at later


@pytest.mark.parametrize("name", sorted(set(StrategyRegistry.available_strategies()) - {*support.STRATEGIES}))
def test_every_other_strategy_is_refused(name):
    with pytest.raises(UserError) as caught:
        check_trainer_options(options(strategy=name))
    assert str(caught.value) == f"trainer.strategy {name} is not supported: use ddp, or fsdp2 to shard weights."


@pytest.mark.parametrize("name", support.STRATEGIES)
def test_the_strategies_of_the_table_are_accepted(name):
    check_trainer_options(options(strategy=name))


STAYS = {
    "accumulate_grad_batches": "1",
    "barebones": "false",
    "check_val_every_n_epoch": "null",
    "enable_autolog_hparams": "true",
    "fast_dev_run": "false",
    "limit_predict_batches": "null",
    "limit_test_batches": "null",
    "limit_train_batches": "null",
    "limit_val_batches": "null",
    "model_registry": "null",
    "num_sanity_val_steps": "0",
    "overfit_batches": "0.0",
    "reload_dataloaders_every_n_epochs": "0",
    "sync_batchnorm": "false",
    "use_distributed_sampler": "false",
}


@pytest.mark.parametrize("name", [name for name, each in support.ARGUMENTS.items() if isinstance(each, support.Fixed)])
def test_an_argument_that_a_run_sets_itself_is_refused(name):
    entry = support.ARGUMENTS[name]
    assert entry.stays == (name in STAYS)
    for value in entry.values:
        check_trainer_options(options(**{name: value}))
    with pytest.raises(UserError) as caught:
        check_trainer_options(options(**{name: 7}))
    assert str(caught.value) == (
        f"trainer.{name} must stay {STAYS[name]}, got 7: {entry.instead}."
        if entry.stays
        else f"trainer.{name} is not used here: set {entry.instead}."
    )


@pytest.mark.parametrize("value", [1, True, 0.5, 2])
def test_one_batch_is_not_all_batches(value):
    check_trainer_options(options(limit_val_batches=1.0))
    check_trainer_options(options(limit_val_batches=0))
    with pytest.raises(UserError, match=f"limit_val_batches must stay null, got {str(value).lower()}: "):
        check_trainer_options(options(limit_val_batches=value))


# ---- hooks ----


@pytest.mark.parametrize("sets", [0, 1, 2])
def test_hooks_that_lightning_can_call(sets):
    assert check_hooks([own.ByAnyName(), own.Logs(), own.Flags(), callbacks.EarlyStopping("reward/mean")], sets) == []


def test_the_index_of_a_set_is_given_where_there_are_several():
    assert check_hooks([own.OfOneSet()], 1) == []
    with pytest.raises(UserError) as caught:
        check_hooks([own.OfOneSet()], 2)
    assert str(caught.value) == (
        "trainer.callbacks: OfOneSet.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx) cannot be "
        "called as Lightning calls it: "
        "on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)."
    )


def test_a_state_that_no_checkpoint_can_be_read_back_with():
    assert check_hooks([own.StateOfNumbers(), own.StateOfSetup()], 1) == []
    with pytest.raises(UserError) as caught:
        check_hooks([own.StateOfPaths()], 1)
    assert str(caught.value) == (
        "trainer.callbacks: StateOfPaths.state_dict holds something else than tensors and plain values (dict, list, "
        "str, int, float, bool, None), with which no checkpoint can be read back: convert it."
    )


def test_hooks_that_never_run_are_told():
    place = "trainer.callbacks: OfOldTimes"
    assert check_hooks([own.OfOldTimes()], 1) == [
        f"{place}.on_before_zero_grad {NEVER['on_before_zero_grad']}.",
        f"{place}.on_train_epoch_end {NEVER['on_train_epoch_end']}.",
        f"{place}.on_epoch_end is no hook of Lightning (on_test_epoch_end is), so it never runs.",
    ]


def test_every_hook_of_a_plain_callback_can_be_called():
    for name in HOOKS:
        theirs = getattr(Callback, name)
        assert check_hooks([type("Mine", (Callback,), {name: lambda self, *a, **k: None})()], 2) == [
            f"trainer.callbacks: Mine.{name} {NEVER[name]}." for _ in range(name in NEVER)
        ]
        parameters = [*inspect.signature(theirs).parameters][1:]
        if parameters:
            with pytest.raises(UserError, match=rf"Mine\.{name}\(\) cannot be called"):
                check_hooks([type("Mine", (Callback,), {name: lambda self: None})()], 2)
