"""The private parts of libraries that are touched: these fail when a library changes them."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel

from asymgrpo_app.cli.parser import RunParser
from asymgrpo_app.policy.loading import load_policy
from asymgrpo_app.runtime import compat
from tests.support.paths import POLICY


def test_lightning_registers_its_handlers_where_they_are_replaced():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert isinstance(trainer._signal_connector, _SignalConnector)
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert "_signal_connector.register_signal_handlers()" in inspect.getsource(Trainer._run)
    compat.leave_signals_alone(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None


@pytest.mark.parametrize("replaces", [True, False])
def test_lightning_keeps_whether_it_replaces_samplers(replaces):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, use_distributed_sampler=replaces)
    assert compat.replaces_samplers(trainer) is replaces


def test_the_progress_bar_is_none_before_training():
    bar = TQDMProgressBar()
    assert compat.shown_progress_bar(bar) is None
    with pytest.raises(TypeError, match="_train_progress_bar"):
        bar.train_progress_bar  # noqa: B018
    bar.train_progress_bar = shown = bar.init_predict_tqdm() if hasattr(bar, "_trainer") and bar._trainer else "a bar"
    assert compat.shown_progress_bar(bar) is shown


@pytest.mark.parametrize("given", [None, True, False])
def test_early_stopping_says_whether_it_looks_at_epochs(given):
    assert compat.looks_at_epochs(EarlyStopping("loss", check_on_train_epoch_end=given)) is bool(given)


def test_the_file_of_a_summary_writer(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        assert [compat.event_file(writer)] == list(tmp_path.iterdir())


def test_the_common_store(tmp_path):
    mine = not torch.distributed.is_initialized()  # a test before may have left a group
    if mine:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        compat.common_store().set("key", "value")
        assert compat.common_store().get("key") == b"value"
    finally:
        if mine:
            torch.distributed.destroy_process_group()


def test_what_a_model_says_of_itself():
    policy = load_policy(POLICY, "eager")
    assert compat.block_names(policy) == {"Qwen3DecoderLayer"}
    assert compat.attention_of(policy) == "eager"
    assert not compat.came_with_adapter(policy)
    assert "_hf_peft_config_loaded" in inspect.getsource(PreTrainedModel.load_adapter)


class Refuses:
    def __init__(self, number: int = 1) -> None:
        raise ValueError("no")


def test_options_and_the_key_of_an_error():
    parser = ArgumentParser()
    parser.add_argument("--steps", type=int | None, default=3)
    parser.add_class_arguments(Refuses, "mine")
    options = {key: (kind, default) for key, kind, default in compat.options_of(parser)}
    assert options["steps"] == (int | None, 3)
    assert options["mine.number"] == (int, 1)
    with pytest.raises(ValueError, match="no") as refused:
        parser.instantiate_classes(parser.parse_args([]))
    assert compat.key_of(refused.value) == "mine"
    assert compat.key_of(SimpleNamespace(__traceback__=None)) is None


def test_every_yaml_of_the_parser_is_looked_at_before(tmp_path):
    seen: list[str] = []
    loader = get_yaml_default_loader()
    before = vars(loader).get("__init__")
    try:
        if before is not None:
            del loader.__init__
        compat.bound_yaml_of_parser(seen.append)
        parser = ArgumentParser()
        parser.add_argument("--config", action="config")
        parser.add_argument("--flag", type=bool)
        (tmp_path / "file.yaml").write_text("flag: yes")
        assert parser.parse_args([f"--config={tmp_path / 'file.yaml'}"]).flag is True
        assert parser.parse_args(["--flag=off"]).flag is False
        assert seen == ["yes", "off"]  # configs themselves are read by the loader of `set_loader`
    finally:
        del loader.__init__
        if before is not None:
            loader.__init__ = before


def test_an_error_of_lightning_in_restoring_is_told_from_others(tmp_path):
    (tmp_path / "empty.ckpt").write_bytes(b"")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(EOFError) as restoring:
        trainer._checkpoint_connector._restore_modules_and_callbacks(tmp_path / "empty.ckpt")
    assert compat.while_restoring(restoring.value)
    with pytest.raises(KeyError) as elsewhere:
        {}["a"]
    assert not compat.while_restoring(elsewhere.value)


def test_what_the_parser_overrides_is_called_by_lightning_cli():
    constructor = inspect.getsource(LightningCLI.__init__)
    for name in ("_parse_ckpt_path", "_set_seed", "instantiate_classes", "_run_subcommand"):
        assert f"self.{name}(" in constructor
        assert name in vars(RunParser)
    assert "self._prepare_subcommand_parser(" in inspect.getsource(LightningCLI._add_subcommands)
    assert "self._subcommand_method_arguments[subcommand]" in inspect.getsource(LightningCLI)


_DEFERRED = """
import sys
from asymgrpo_app.runtime import compat
compat.defer_transformers()
import lightning.pytorch.cli
assert "torchmetrics" in sys.modules and "transformers" not in sys.modules
modules = sys.modules.items()
held = [name for name, module in modules for value in vars(module).values() if type(value) is compat._Deferred]
from torchmetrics.functional.text import bert
import transformers
assert bert.AutoModel.from_pretrained == transformers.AutoModel.from_pretrained
config = transformers.LlamaConfig(num_hidden_layers=0, vocab_size=8, hidden_size=8, num_attention_heads=1)
deferred = compat._Deferred
assert isinstance(deferred("LlamaConfig")(), transformers.LlamaConfig)
assert isinstance(config, deferred("LlamaConfig")) and not isinstance(5, deferred("LlamaConfig"))
print(*sorted({name.partition(".")[0] for name in held}))
"""


def test_torchmetrics_gets_transformers_when_it_uses_it():
    done = subprocess.run([sys.executable, "-c", _DEFERRED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "torchmetrics\n"), done.stderr
