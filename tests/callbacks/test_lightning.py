"""What of Lightning is supported does what a user of Lightning expects, in a run that counts RL steps."""

import csv
import json
import re
from types import SimpleNamespace

import pytest
import torch

from asymgrpo_app.checks.run_tags import objective_tags, run_tags, validation_tags
from asymgrpo_app.cli import main
from tests.support.events import scalars
from tests.support.own_callbacks import Flags, OwnEnvironment, OwnLogger
from tests.support.recorded_training import result_of, trained_on_two_processes
from tests.support.scripted_engine import ScriptedEngine, command, fit

OWN = "tests.support.own_callbacks"
HALVED = ("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1")


def trainer(folder, **options) -> str:
    """A config with options of the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trainer.yaml"
    path.write_text(json.dumps({"trainer": options}))
    return f"--config={path}"


def callback(name, /, **arguments) -> dict:
    return {"class_path": name, "init_args": arguments}


def steps_of(folder) -> list[int]:
    """RL steps that a run made."""
    return [step for step, _ in scalars(folder)["reward/mean"]]


def refused(capsys, monkeypatch, tmp_path, *arguments, verb="check", code=2) -> str:
    """The sentence that a command ends with."""
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
    assert main([verb, *command(tmp_path)[1:], *arguments]) == code
    return capsys.readouterr().err.splitlines()[-1]


# ---- EarlyStopping: half of all completions are right in every step ----


def test_early_stopping_by_an_accuracy(monkeypatch, tmp_path, capsys):
    stop = callback("EarlyStopping", monitor="val/held_out/avg@8", mode="max", patience=2, verbose=True)
    run = fit(monkeypatch, tmp_path, trainer(tmp_path, callbacks=[stop]), "--steps=6")
    # The validation before the first step gives the value to compare with.
    assert steps_of(run) == [1, 2]
    assert [step for step, _ in scalars(run)["val/held_out/avg@8"]] == [0, 1, 2]
    said = "Monitored metric val/held_out/avg@8 did not improve in the last 2 records. Best score: 0.500."
    assert said in capsys.readouterr().out


def test_early_stopping_by_a_scalar_of_steps(monkeypatch, tmp_path, capsys):
    stop = callback("EarlyStopping", monitor="reward/mean", mode="max", patience=2, verbose=True)
    run = fit(
        monkeypatch, tmp_path, trainer(tmp_path, callbacks=[stop]), "--steps=12", "--trainer.val_check_interval=2"
    )
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]  # the first look is after step 2; those after 4 and 6 are no better
    done = capsys.readouterr()
    assert "Metric reward/mean improved. New best score: 0.500" in done.out
    assert "not available" not in done.err


def test_early_stopping_at_a_threshold_and_by_a_metric_of_ones_own(monkeypatch, tmp_path, capsys):
    stop = callback("EarlyStopping", monitor="my/tag", mode="max", stopping_threshold=0.5)
    run = fit(monkeypatch, tmp_path, trainer(tmp_path, callbacks=[callback(f"{OWN}.Logs"), stop]), "--steps=6")
    assert steps_of(run) == [1]
    assert (
        "trainer.callbacks: EarlyStopping.monitor is my/tag, which this run does not have by itself; Logs has to log "
        "it before the first validation of a step."
    ) in capsys.readouterr().out


def test_a_metric_of_ones_own_that_nobody_logs_stops_the_run(monkeypatch, tmp_path, capsys):
    stop = callback("EarlyStopping", monitor="other/tag")
    config = trainer(tmp_path, callbacks=[callback(f"{OWN}.Logs"), stop])
    assert refused(capsys, monkeypatch, tmp_path, config, verb="fit", code=1) == (
        "asymgrpo: stopped: trainer.callbacks: EarlyStopping.monitor other/tag was not there at a validation: log it "
        "in every step, or set strict to false."
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"monitor": "val/held_out/avg@4"},
            "EarlyStopping.monitor is val/held_out/avg@4, which this run does not have: there are val/held_out/avg@8, "
            "val/held_out/maj@8, val/held_out/pass@8, val/held_out/pass@1, reward/mean and others (docs/metrics.md).",
        ),
        ({"monitor": "val_loss"}, "EarlyStopping.monitor is val_loss, which this run does not have: there are "),
        (
            {"monitor": "method/cov_p00-25"},
            "EarlyStopping.monitor is method/cov_p00-25, which some steps do not have: set strict to false.",
        ),
        (
            {"monitor": "reward/mean", "check_on_train_epoch_end": True},
            "EarlyStopping.check_on_train_epoch_end is true, but a run is one epoch: leave it out, and monitor is "
            "looked at after each validation.",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["check", "fit"])
def test_what_early_stopping_cannot_look_at(monkeypatch, tmp_path, capsys, arguments, sentence, verb):
    config = trainer(tmp_path, callbacks=[callback("EarlyStopping", **arguments)])
    said = refused(capsys, monkeypatch, tmp_path, config, verb=verb)
    assert said.startswith(f"asymgrpo: error: trainer.callbacks: {sentence}")
    assert not (tmp_path / "run").exists()


def test_early_stopping_without_validations(monkeypatch, tmp_path, capsys):
    config = trainer(tmp_path, callbacks=[callback("EarlyStopping", monitor="reward/mean")], limit_val_batches=0)
    assert "after each validation, but trainer.limit_val_batches is 0" in refused(capsys, monkeypatch, tmp_path, config)


def test_a_run_without_validations(monkeypatch, tmp_path, capsys):
    run = fit(monkeypatch, tmp_path, "--trainer.limit_val_batches=0")
    assert steps_of(run) == [1, 2]
    assert "val/held_out/avg@8" not in scalars(run)
    said = refused(capsys, monkeypatch, tmp_path, "--trainer.limit_val_batches=0", verb="validate")
    assert said.endswith("trainer.limit_val_batches is 0, so nothing would be evaluated: leave it out.")
    best = "--checkpoint.best.metric=val/held_out/avg@8"
    folder = tmp_path / "other"
    assert "val/held_out/avg@8" in refused(capsys, monkeypatch, folder, "--trainer.limit_val_batches=0", best)


# ---- callbacks that write ----


def test_learning_rates_and_devices_in_several_loggers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    OwnLogger.written.clear()
    config = trainer(
        tmp_path,
        callbacks=[
            callback("LearningRateMonitor"),
            callback("DeviceStatsMonitor"),
            callback("ThroughputMonitor", batch_size_fn=f"{OWN}.completions"),
        ],
        logger=[callback("CSVLogger", save_dir="logs", name="a", version="b"), callback(f"{OWN}.OwnLogger")],
    )
    fit(monkeypatch, tmp_path, config, *HALVED, "--steps=3")
    rows = list(csv.DictReader((tmp_path / "logs/a/b/metrics.csv").read_text().splitlines()))

    def column(tag: str) -> dict[int, float]:
        return {int(row["step"]): float(row[tag]) for row in rows if row[tag]}

    rates = column("actor/lr")
    assert rates == pytest.approx({1: 1e-4, 2: 1e-5, 3: 1e-6})
    assert column("lr-AdamW") == {step - 1: rate for step, rate in rates.items()}
    assert column("reward/mean") == {1: 0.5, 2: 0.5, 3: 0.5}
    assert column("val/held_out/avg@8") == {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}
    assert column("DeviceStatsMonitor.on_train_batch_start/cpu_percent").keys() == {0, 1, 2}
    samples = [values["train/samples"] for _, values in OwnLogger.written if "train/samples" in values]
    assert samples == [144, 288, 432]  # 18 groups of 8
    own = [(step, values["reward/mean"]) for step, values in OwnLogger.written if "reward/mean" in values]
    assert own == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_learning_rates_by_the_interval_of_logging(monkeypatch, tmp_path):
    run = fit(
        monkeypatch, tmp_path, "--trainer.callbacks+=LearningRateMonitor", "--trainer.log_every_n_steps=2", "--steps=4"
    )
    # As in Lightning: also when the epoch begins.
    assert [step for step, _ in scalars(run)["lr-AdamW"]] == [0, 1, 3]
    assert steps_of(run) == [2, 4]


def test_metrics_of_an_earlier_run_are_not_replaced(monkeypatch, tmp_path, capsys):
    config = trainer(tmp_path, logger=callback("CSVLogger", save_dir=str(tmp_path), name="a", version="b"))
    fit(monkeypatch, tmp_path, config)
    path = tmp_path / "a/b/metrics.csv"
    before = path.read_text()
    for arguments in (["fit", "--ckpt_path=last", "--steps=4"], ["validate"]):
        said = refused(capsys, monkeypatch, tmp_path, config, *arguments[1:], verb=arguments[0])
        assert said == (
            f"asymgrpo: error: trainer.logger: CSVLogger would replace {path}: leave its version out, give it another "
            "one, or set trainer.logger to false."
        )
    assert path.read_text() == before


def test_hooks_by_name_and_callbacks_on_the_command_line(monkeypatch, tmp_path, capsys):
    options = ("LambdaCallback", f"{OWN}.OfOldTimes")
    fit(
        monkeypatch,
        tmp_path,
        "--trainer.callbacks+=LambdaCallback",
        f"--trainer.callbacks.on_train_end={OWN}.say_end",
        f"--trainer.callbacks+={options[1]}",
    )
    printed = capsys.readouterr().out
    assert "ended after 2 steps" in printed
    assert "trainer.callbacks: OfOldTimes.on_epoch_end is no hook of Lightning" in printed


# ---- the terminal ----


@pytest.mark.parametrize("name", ["RichProgressBar", "TQDMProgressBar"])
def test_a_bar_of_lightnings_takes_the_place_of_ours(monkeypatch, tmp_path, capsys, name):
    run = fit(monkeypatch, tmp_path, f"--trainer.callbacks+={name}")
    assert steps_of(run) == [1, 2]
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "step 2/2" not in printed
    assert re.search(r"val[=:] ?0\.500", printed)
    assert re.search(r"reward[=:] ?0\.500", printed)
    assert "Run finished" in printed


def test_no_bar(monkeypatch, tmp_path, capsys):
    fit(monkeypatch, tmp_path, "--trainer.enable_progress_bar=false")
    assert "step 2/2" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--trainer.callbacks+=ModelSummary", "--trainer.enable_model_summary=true"])
def test_the_summary_of_the_model_is_printed(monkeypatch, tmp_path, capsys, option):
    fit(monkeypatch, tmp_path, option)
    printed = capsys.readouterr().out
    assert "Qwen3ForCausalLM" in printed
    assert re.search(r"Trainable params", printed)


def test_a_short_profile_is_printed(monkeypatch, tmp_path, capsys):
    fit(monkeypatch, tmp_path, "--trainer.profiler=simple")
    printed = capsys.readouterr().out
    assert "FIT Profiler Report" in printed.split("Run finished")[1]
    (line,) = [line for line in printed.splitlines() if "run_training_batch" in line]
    assert line.split("|")[3].split() == ["2"]  # the number of calls; the columns are spaces, no tabs as escapes
    assert "\\t" not in line


def test_a_profile_of_functions_in_a_file(monkeypatch, tmp_path, capsys):
    config = trainer(tmp_path, profiler=callback("AdvancedProfiler", filename="functions"))
    run = fit(monkeypatch, tmp_path, config, "--steps=1")
    assert "training_step" in (run / "tensorboard/fit-functions.txt").read_text()
    assert "Profiler Report" not in capsys.readouterr().out


@pytest.mark.long
def test_a_profile_of_operators(monkeypatch, tmp_path, capsys):
    config = trainer(tmp_path, profiler=callback("PyTorchProfiler", dirpath=str(tmp_path / "here"), filename="torch"))
    # Of the first steps it leaves out one and warms up in another.
    short = ("--steps=5", "--data.prompts_per_step=1", "--trainer.limit_val_batches=0", "--checkpoint.every_n_steps=9")
    fit(monkeypatch, tmp_path, config, *short)
    assert "aten::" in (tmp_path / "here/fit-torch.txt").read_text()
    assert list((tmp_path / "here").glob("*.pt.trace.json"))


# ---- options of torch, plugins and strategies ----


def test_options_of_torch_are_set_and_change_no_weight(monkeypatch, tmp_path):
    flags = f"--trainer.callbacks+={OWN}.Flags"
    plain = fit(monkeypatch, tmp_path / "plain", flags)
    assert Flags.seen == {"anomaly": False, "deterministic": False, "benchmark": False, "inference": False}
    names = {"detect_anomaly": "true", "deterministic": "true", "benchmark": "true"}
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        options = [f"--trainer.{name}={value}" for name, value in names.items()]
        other = fit(monkeypatch, tmp_path / "other", flags, *options)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
    assert Flags.seen == {"anomaly": True, "deterministic": True, "benchmark": True, "inference": False}
    assert (plain / "export/model.safetensors").read_bytes() == (other / "export/model.safetensors").read_bytes()


@pytest.mark.parametrize("inference", [True, False])
def test_an_evaluation_in_inference_mode_or_without(monkeypatch, tmp_path, inference):
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
    option = f"--trainer.inference_mode={str(inference).lower()}"
    assert main(["validate", *command(tmp_path)[1:], f"--trainer.callbacks+={OWN}.Flags", option]) == 0
    # Lightning leaves it off where processes exchange by Gloo, as vLLM's do that an earlier test may have started.
    assert Flags.seen["inference"] is (inference and not torch.distributed.is_initialized())
    results = json.loads((tmp_path / "run/evaluations/base/results.json").read_text())
    assert results["sets"]["held_out"]["metrics"]["avg@8"]["value"] == 0.5


def test_an_environment_by_class(monkeypatch, tmp_path):
    OwnEnvironment.made = 0
    run = fit(monkeypatch, tmp_path, trainer(tmp_path, plugins=[callback(f"{OWN}.OwnEnvironment")]))
    assert steps_of(run) == [1, 2]
    assert OwnEnvironment.made == 1


@pytest.mark.long
def test_names_of_ddp_are_the_same_training(tmp_path):
    names = ("ddp", "ddp_find_unused_parameters_true")
    trained_on_two_processes(tmp_path, **{name: ["uneven"] for name in names})
    plain, *others = (result_of(tmp_path, name, "uneven") for name in names)
    for other in others:
        assert torch.equal(plain["weights"], other["weights"])


# ---- tags ----


def test_tags_of_what_is_chosen():
    def tags(**given):
        loss = SimpleNamespace(
            overlong_buffer=given.get("buffer"),
            kl_coef=given.get("kl_coef", 0.0),
            adaptive_entropy=given.get("entropy"),
            correction=SimpleNamespace(mode=given.get("mode", "off")),
        )
        module = SimpleNamespace(
            loss=loss, advantage=SimpleNamespace(scalars=lambda progress: {}), shaping=[], objective=None
        )
        data = SimpleNamespace(
            evaluation_sets={}, train_source=SimpleNamespace(size=given.get("rows")), repeat_steps=given.get("repeat")
        )
        device = torch.device(given.get("device", "cpu"))
        of_trainer = SimpleNamespace(
            limit_val_batches=1.0, loggers=[], strategy=SimpleNamespace(root_device=device), callbacks=[]
        )
        section = SimpleNamespace(
            tensorboard=SimpleNamespace(change_completions=64),
            rollout=SimpleNamespace(dynamic_sampling=given.get("dynamic"), second_opinion=given.get("second")),
        )
        assert validation_tags(data, of_trainer) == []
        return run_tags(module, data, of_trainer, section).keys()

    plain = tags()
    assert "reward/mean" in plain
    assert tags(kl_coef=0.1) - plain == {"actor/kl_loss"}
    assert tags(buffer=2) - plain == {"advantages/overlong_penalty"}
    assert tags(entropy=object()) - plain == {"actor/entropy_coef"}
    assert tags(rows=5) - plain == {"reward/epoch_solved_all", "reward/epoch_solved_none"}
    assert tags(rows=5, repeat=2) == plain
    assert len(tags(dynamic=object()) - plain) == 4
    assert len(tags(second=object()) - plain) == 6
    assert len(tags(mode="mask") - plain) == 5
    assert tags(device="cuda") - plain == {"perf/max_memory_gb", "perf/mfu"}


def test_an_objective_that_fails_gives_no_tags():
    assert objective_tags(SimpleNamespace(prepare=lambda update: 1 / 0)) == []
