"""Training and evaluating by a script, with Lightning's own Trainer."""

import json
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from asymgrpo_app import AsymGRPOModule, EvaluationSet, PromptDataModule, VLLMRolloutCallback, run_callbacks
from asymgrpo_app.callbacks.checkpoint import RunCheckpoint
from asymgrpo_app.callbacks.safe_stop import SafeStop
from asymgrpo_app.callbacks.summary import RunSummary
from asymgrpo_app.checkpoints.folder import newest_whole
from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Countdown, JsonLines
from asymgrpo_app.rollout.canary import CanaryConfig
from asymgrpo_app.runtime.stopping import Cause, StopRun, switch
from asymgrpo_app.update.trainer_settings import check_trainer
from tests.support.events import scalars
from tests.support.isolated_countdown import IsolatedCountdown
from tests.support.paths import POLICY
from tests.support.scripted_engine import RIGHT, ScriptedEngine

pytestmark = pytest.mark.filterwarnings("ignore")


FULL = {"enable_checkpointing": True, "enable_progress_bar": True}
"""Options of a trainer with the command's callbacks."""


def a_module(steps: int = 1, **options: Any) -> AsymGRPOModule:
    return AsymGRPOModule(POLICY, total_steps=steps, optimizer=partial(torch.optim.AdamW, lr=1e-4), **options)


def some_data(**options: Any) -> PromptDataModule:
    validation = {"small": EvaluationSet(Countdown("validation"), limit=2, samples=2)}
    return PromptDataModule(
        POLICY, **{"train": Countdown(), "prompts_per_step": 4, "validation": validation, **options}
    )


def a_sampler(**options: Any) -> VLLMRolloutCallback:
    return VLLMRolloutCallback(**{"group_size": 2, "max_completion_tokens": 8, "sampler": "transformers", **options})


def a_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(callbacks=[*callbacks], **{"accelerator": "cpu", **quiet, "enable_model_summary": False, **options})


# ---- what is refused ----

SETTINGS = {
    "max_steps": (3, "max_steps of the Trainer is not used here, got 3: set total_steps of AsymGRPOModule"),
    "min_steps": (3, "min_steps of the Trainer is not used here, got 3: set total_steps"),
    "max_epochs": (3, "max_epochs of the Trainer is not used here, got 3: set total_steps"),
    "min_epochs": (3, "min_epochs of the Trainer is not used here, got 3: set total_steps"),
    "limit_train_batches": (3, "limit_train_batches of the Trainer is not used here, got 3: set total_steps"),
    "fast_dev_run": (True, "fast_dev_run of the Trainer is not used here, got True: set total_steps"),
    "overfit_batches": (1, "overfit_batches of the Trainer is not used here, got 1: set repeat_steps of PromptData"),
    "gradient_clip_val": (1.0, "gradient_clip_val of the Trainer is not used here, got 1.0: set max_grad_norm of"),
    "gradient_clip_algorithm": ("value", "got GradClipAlgorithmType.VALUE: set max_grad_norm of AsymGRPOModule."),
    "accumulate_grad_batches": (2, "got 2: set micro_batch_tokens of AsymGRPOModule."),
    "check_val_every_n_epoch": (2, "got 2: set val_check_interval, which counts RL steps."),
    "val_check_interval": (0.5, "val_check_interval of the Trainer must be a whole number of RL steps >= 1, got 0.5"),
    "log_every_n_steps": (0, "log_every_n_steps of the Trainer must be at least 1, got 0."),
    "precision": ("64-true", "precision of the Trainer must be one of 32-true, bf16-mixed, got 64-true."),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_trainer_that_mean_something_else_are_refused(name):
    value, told = SETTINGS[name]
    module = a_module()
    with pytest.raises(UserError) as error:
        a_trainer(a_sampler(), **{name: value}).fit(module, datamodule=some_data())
    assert told in str(error.value)
    assert not hasattr(module, "policy")


def test_weights_in_bfloat16_are_refused_also_for_an_evaluation():
    with pytest.raises(UserError, match="precision of the Trainer bf16-true is not supported, as weights in"):
        a_trainer(a_sampler(), precision="bf16-true").validate(a_module(), datamodule=some_data())


def test_barebones_is_refused():
    with pytest.raises(UserError, match="barebones of the Trainer is not used here, got True: leave it out"):
        Trainer(barebones=True, accelerator="cpu", callbacks=[a_sampler()]).fit(a_module(), datamodule=some_data())


def test_several_processes_without_lightnings_sampler():
    trainer = a_trainer(a_sampler(), devices=2, strategy="ddp")
    trainer.datamodule, trainer.state.fn = some_data(), TrainerFn.VALIDATING
    with pytest.raises(UserError, match="use_distributed_sampler of the Trainer must be False with several processes"):
        check_trainer(trainer)
    trainer = a_trainer(a_sampler(), devices=2, strategy="ddp", use_distributed_sampler=False)
    trainer.datamodule, trainer.state.fn = some_data(), TrainerFn.VALIDATING
    check_trainer(trainer)


def test_a_run_needs_prompts_and_a_sampler():
    for call, method in (("fit", "fit"), ("validate", "validate"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(UserError, match=rf"trainer\.{method} needs one VLLMRolloutCallback, .*, got 0: build"):
            getattr(a_trainer(), call)(a_module(), datamodule=some_data())
        with pytest.raises(
            UserError, match=rf"trainer\.{method} needs datamodule=PromptDataModule\(...\): its batches"
        ):
            getattr(a_trainer(a_sampler()), call)(a_module())
        with pytest.raises(UserError, match=rf"trainer\.{method} needs datamodule=PromptDataModule"):
            getattr(a_trainer(a_sampler()), call)(a_module(), DataLoader([1, 2]))


def test_one_sampler_is_enough():
    with pytest.raises(UserError, match="needs one VLLMRolloutCallback, which samples the completions, got 2: build"):
        a_trainer(a_sampler(), a_sampler()).fit(a_module(), datamodule=some_data())


MISMATCHES = {
    "a list of prompts": (
        {},
        {"train": ["1+1="]},
        {},
        "train of PromptDataModule must be a source of prompts .*, got list",
    ),
    "a bare source": (
        {},
        {"validation": {"a": Countdown()}},
        {},
        "must be EvaluationSets by name, got Countdown for a",
    ),
    "updates": ({"updates_per_step": 2}, {}, {}, "updates_per_step is 2 in AsymGRPOModule and 1 in PromptDataModule"),
    "nucleus": ({}, {}, {"top_p": 0.9}, "top_p, top_k and min_p of VLLMRolloutCallback cut the distribution"),
    "no prompts": ({}, {"train": None}, {}, "train of PromptDataModule is not set: fit needs a source of prompts."),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_objects_that_do_not_belong_together_are_refused(name):
    of_module, of_data, of_sampler, told = MISMATCHES[name]
    module = a_module(**of_module)
    with pytest.raises(UserError, match=told):
        a_trainer(a_sampler(**of_sampler)).fit(module, datamodule=some_data(**of_data))
    assert not hasattr(module, "policy")


def test_the_tokenizer_has_to_be_the_policys(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(POLICY).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    a_trainer(a_sampler()).validate(a_module(), datamodule=_with_tokenizer(other), verbose=False)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"whose vocabulary is not that of the policy .*: give both the same folder"):
        a_trainer(a_sampler()).validate(a_module(), datamodule=_with_tokenizer(other))


def _with_tokenizer(folder: Path) -> PromptDataModule:
    return PromptDataModule(str(folder), validation=some_data().evaluation_sets)


def test_an_evaluation_needs_a_set():
    with pytest.raises(UserError, match="validation of PromptDataModule is empty: name at least one set to evaluate"):
        a_trainer(a_sampler()).validate(a_module(), datamodule=some_data(validation=None))


def test_checkpoints_do_not_rebuild_objects():
    with pytest.raises(UserError, match=r'build them as before and call .* with ckpt_path="last\.ckpt", or write the'):
        AsymGRPOModule.load_from_checkpoint("last.ckpt", map_location="cpu", policy=POLICY)
    with pytest.raises(UserError, match=r'build it as before; trainer\.fit\(\.\.\., ckpt_path="last\.ckpt"\) goes on'):
        PromptDataModule.load_from_checkpoint("last.ckpt")


@pytest.mark.parametrize("callback", [SafeStop, RunSummary])
def test_what_works_with_checkpoints_needs_them(callback):
    with pytest.raises(UserError, match="SafeStop and RunSummary work with a RunCheckpoint: add one to the callbacks"):
        a_trainer(callback(), a_sampler()).fit(a_module(), datamodule=some_data())


# ---- what an evaluation returns ----


@pytest.fixture
def scripted(monkeypatch):
    """A callback whose completions of problem i are i mod 9 times right and then wrong, of eight."""
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
    return partial(a_sampler, sampler="vllm", canary=CanaryConfig(digest=False, completions=0))


@pytest.fixture
def two_sets(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}>", "answer": RIGHT}) + "\n" for n in range(9)))
    source = JsonLines(str(path))
    return {"all": EvaluationSet(source, samples=8, pass_at=[1]), "few": EvaluationSet(source, limit=3, samples=8)}


OF_ALL = {"val/all/avg@8": 0.5, "val/all/pass@1": 0.5, "val/all/maj@8": 0.5}
OF_FEW = {"val/few/avg@8": 0.125, "val/few/pass@8": pytest.approx(2 / 3), "val/few/maj@8": 0.0}


def test_validate_and_test_return_the_metrics_of_each_set(scripted, two_sets):
    trainer, module, data = a_trainer(scripted()), a_module(), some_data(validation=two_sets)
    for evaluate in (trainer.validate, trainer.test):
        assert evaluate(module, datamodule=data, verbose=False) == [OF_ALL, OF_FEW]
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        assert values.pop("timing_s/testing") > 0
        assert values == OF_ALL | OF_FEW
        assert {tag: float(value) for tag, value in trainer.logged_metrics.items()} == OF_ALL | OF_FEW


def test_loggers_get_the_metrics_of_an_evaluation_once_at_the_step_of_the_policy(scripted, two_sets, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer, module = a_trainer(scripted(), logger=logger, log_every_n_steps=1), a_module(steps=2)
    data = some_data(validation=two_sets)
    trainer.fit(module, datamodule=data)
    before = scalars(tmp_path)
    assert [step for step, _ in before["val/all/avg@8"]] == [0, 2]
    assert not trainer.logged_metrics
    returned = trainer.validate(module, datamodule=data, verbose=False)
    assert returned == [OF_ALL | {"step": 2.0}, OF_FEW | {"step": 2.0}]
    after = scalars(tmp_path)
    assert after.keys() == before.keys()
    added = {tag: points[len(before[tag]) :] for tag, points in after.items() if points != before[tag]}
    assert added == {tag: [(2, value)] for tag, value in (OF_ALL | OF_FEW).items()}


def test_predict_returns_the_completions(scripted, two_sets):
    trainer = a_trainer(scripted())
    of_all, of_few = trainer.predict(a_module(), datamodule=some_data(validation=two_sets))
    (completions,) = of_few
    assert [completion["correct"] for completion in completions] == [
        sample < problem for problem in range(3) for sample in range(8)
    ]
    assert completions[8] | {"uid": ""} == {
        "set": "few",
        "uid": "",
        "index": 1,
        "sample": 0,
        "completion": "1",
        "correct": True,
        "status": "ok",
        "truncated": False,
        "length": 2,
        "logprob_sum": -4.0,
        "answer_class": 0,
    }
    assert sum(map(len, of_all)) == 9 * 8


# ---- one run after the other ----


def weights(module: AsymGRPOModule) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.policy.parameters()])


def test_runs_in_one_process_leave_nothing_to_each_other(tmp_path):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads: set[str] = set()
    trained = []
    for number in range(2):
        module, data = a_module(steps=2), some_data(train=IsolatedCountdown())
        callbacks = run_callbacks(a_sampler(group_size=4), RunCheckpoint(every_n_steps=1))
        a_trainer(*callbacks, default_root_dir=tmp_path / str(number), **FULL).fit(module, datamodule=data)
        trained.append(weights(module))
        assert not psutil.Process().children(recursive=True)
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        assert switch.cause is None
        names = {thread.name for thread in threading.enumerate()}
        assert number == 0 or names == threads
        threads = names
    assert torch.equal(*trained)
    assert not torch.equal(trained[0], weights_at_start())


def weights_at_start() -> torch.Tensor:
    module = a_module()
    module.configure_model()
    return weights(module)


def test_a_run_that_fails_ends_its_processes(tmp_path):
    class Failing(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        a_trainer(a_sampler(), Failing()).fit(a_module(steps=2), datamodule=some_data(train=IsolatedCountdown()))
    assert not psutil.Process().children(recursive=True)


def test_the_steps_of_validations_go_on_in_a_resumed_run(tmp_path):
    options = {"default_root_dir": tmp_path, "val_check_interval": 2, "log_every_n_steps": 1}

    def run(steps: int, checkpoint: str | None) -> tuple[list[int], str]:
        trainer = a_trainer(a_sampler(), logger=True, enable_checkpointing=True, **options)
        trainer.fit(a_module(steps), datamodule=some_data(prompts_per_step=2), ckpt_path=checkpoint)
        logged = Path(str(trainer.log_dir)).rename(tmp_path / f"{steps}")
        (logged / "tensorboard").mkdir()
        (event_file,) = logged.glob("events*")
        event_file.rename(logged / "tensorboard" / event_file.name)
        (path,) = (logged / "checkpoints").iterdir()
        return [step for step, _ in scalars(logged)["val/small/avg@2"]], str(path)

    first, checkpoint = run(3, None)
    second, _ = run(6, checkpoint)
    assert first == [0, 2, 3]
    assert second == [4, 6]


def test_a_signal_stops_a_script_that_goes_on_later(tmp_path):
    class Ask(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if pl_module.completed_steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def fit(*further: Callback) -> AsymGRPOModule:
        module = a_module(steps=3)
        callbacks = [*run_callbacks(a_sampler(group_size=4), RunCheckpoint(every_n_steps=50)), *further]
        trainer = a_trainer(*callbacks, default_root_dir=tmp_path, **FULL)
        newest, _ = newest_whole(tmp_path)
        with switch.handling_signals():
            trainer.fit(module, datamodule=some_data(), ckpt_path=newest)
        return module

    with pytest.raises(StopRun) as stop:
        fit(Ask())
    assert stop.value.cause == Cause.SIGTERM
    assert "RL step 2 of 3 is done and saved in" in stop.value.outcome
    assert switch.cause is None
    assert fit().completed_steps == 3
    assert (tmp_path / "export/model.safetensors").exists()


def test_a_trainer_trains_once(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer = a_trainer(a_sampler(), RunCheckpoint(), logger=logger, default_root_dir=tmp_path, **FULL)
    trainer.fit(a_module(), datamodule=some_data())
    with pytest.raises(UserError, match=r"This Trainer has trained already, .*: build a new one for each fit"):
        trainer.fit(a_module(), datamodule=some_data())
