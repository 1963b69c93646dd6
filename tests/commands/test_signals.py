"""Signals and the time limit: exit codes, what is said, what is kept, and that nothing stays behind."""

import contextlib
import errno
import json
import os
import pty
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from lightning.pytorch.core.optimizer import LightningOptimizer

from asymgrpo_app.callbacks import rollout, safe_stop
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.predictions import PredictionWriter
from asymgrpo_app.rollout.engine import EngineError
from asymgrpo_app.runtime import stopping
from asymgrpo_app.runtime.stopping import STOP_SIGNALS, Cause, StopRun, StopSwitch, StopWatch, seconds_of
from tests.support.events import repeated_scalars
from tests.support.scripted_engine import ScriptedEngine, command
from tests.support.states import assert_same, saved_steps, state
from tests.support.stopping import Started, interrupted, signal_at

STEPS = 4
STOPPED_RUN = "tests.support.stopped_run"
RARELY = [f"--steps={STEPS}", "--checkpoint.every_n_steps=100"]


@pytest.fixture
def scripted(monkeypatch):
    """Put an engine in place that answers by script; the argument says how its `generate` differs."""

    def put(generate=None):
        class Engine(ScriptedEngine):
            pass

        if generate is not None:
            plain = ScriptedEngine.generate
            Engine.generate = lambda self, *arguments: generate(lambda: plain(self, *arguments))
        monkeypatch.setattr(rollout, "VLLMEngine", Engine)

    put()
    return put


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", ScriptedEngine)
        assert main([*command(folder), f"--steps={STEPS}", "--checkpoint.keep=null"]) == 0
    return folder / "run"


def goes_on(folder: Path, undisturbed: Path) -> None:
    assert main([*command(folder), *RARELY, "--ckpt_path=last"]) == 0
    assert_same(state(folder / "run", STEPS), state(undisturbed, STEPS))
    assert repeated_scalars(folder / "run") == repeated_scalars(undisturbed)


# ---- the time limit ----


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("00:00:01", 1),
        ("01:30:00", 5400),
        ("47:59:59", 172_799),
        ("2-00:00:00", 172_800),
        (90, 90),
        ("100:00:00", 360_000),
    ],
)
def test_durations(written, seconds):
    assert seconds_of(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "90", "1:2:3", "00:60:00", "00:00:00", 0, -5, True, "1.5"])
def test_what_is_no_duration(written):
    with pytest.raises(UserError, match=r"^time_limit must be a duration above 0 as HH:MM:SS"):
        seconds_of(written)


def test_a_wrong_time_limit_is_refused_before_the_run(tmp_path, capsys):
    assert main([*command(tmp_path), "--time_limit=soon"]) == 2
    assert capsys.readouterr().err.startswith("asymgrpo: error: time_limit must be a duration")
    assert main([*command(tmp_path), "--trainer.max_time=00:01:00:00"]) == 2
    assert capsys.readouterr().err == "asymgrpo: error: trainer.max_time is not used here: set time_limit.\n"
    assert not (tmp_path / "run").exists()


def test_a_duration_in_yaml_is_read_as_seconds_or_as_text(tmp_path, scripted, monkeypatch):
    seen = []

    def noted(self, limit):
        seen.append(limit)
        plain(self)

    plain = safe_stop.SafeStop.__init__
    monkeypatch.setattr(safe_stop.SafeStop, "__init__", noted)
    for number, written in enumerate(("1:30:00", "01:30:00", "'1:30:00'", "5400", "1-00:00:00", "null")):
        folder = tmp_path / str(number)
        arguments = command(folder)
        (folder / "limit.yaml").write_text(f"time_limit: {written}\n")
        assert main(["validate", *arguments[1:], f"--config={folder / 'limit.yaml'}"]) == 0
    assert seen == [5400, 5400, 5400, 5400, 86_400, None]


def test_the_time_limit_stops_a_run_that_goes_on_later(tmp_path, scripted, undisturbed, monkeypatch, capfd):
    calls = []

    def until_the_end(generate):
        calls.append(1)
        if len(calls) == 6:  # validation and step in turn
            (watch,) = (thread for thread in threading.enumerate() if isinstance(thread, StopWatch))
            watch._deadline = time.monotonic() + 0.3
            time.sleep(60)  # is interrupted
        return generate()

    scripted(until_the_end)
    monkeypatch.setattr(safe_stop, "age_s", lambda: 0.0)
    assert main([*command(tmp_path), *RARELY, "--time_limit=01:00:00"]) == 75
    assert len(calls) == 6
    said = capfd.readouterr().err
    assert "asymgrpo: time_limit: stopping. What is under way is given up" in said
    assert f"asymgrpo: stopped by time_limit. RL step 2 of {STEPS} is done and saved in " in said
    scripted()
    goes_on(tmp_path, undisturbed)


def test_time_that_passed_before_training_counts(tmp_path, scripted, monkeypatch, capsys):
    monkeypatch.setattr(safe_stop, "age_s", lambda: 3600.0)
    scripted(lambda generate: time.sleep(60))  # validation, before the first step
    assert main([*command(tmp_path), *RARELY, "--time_limit=01:00:00"]) == 75
    assert "No step was complete yet" in capsys.readouterr().err
    assert saved_steps(tmp_path / "run") == []


# ---- signals in this process ----


def test_handlers_are_those_of_before(tmp_path, scripted):
    def mine(number, frame): ...

    before = {number: signal.signal(number, mine) for number in STOP_SIGNALS}
    try:
        assert main([*command(tmp_path), "--steps=1"]) == 0
        assert {signal.getsignal(number) for number in before} == {mine}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_is_kept_for_the_next_work_that_may_be_given_up():
    switch = StopSwitch()
    with switch.handling_signals():
        switch.must_finish()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRun) as stopped:
            switch.may_stop()
    assert stopped.value.cause.code == 143


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])  # a shell's background jobs, and nohup
def test_an_ignored_signal_stays_ignored(signum, tmp_path, scripted):
    handler = signal.signal(signum, signal.SIG_IGN)
    try:
        scripted(interrupted(lambda generate: generate(), 2, "before", signum))
        assert main([*command(tmp_path), "--steps=1"]) == 0
    finally:
        signal.signal(signum, handler)


NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("notice", NOTICES)
@pytest.mark.parametrize("impatient", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_a_process_at_once(notice, impatient, monkeypatch, capfd):
    """A terminal that is closed or a scheduler may be followed by SIGTERM: the save goes on until a second one."""
    exits, now = [], [100.0]
    monkeypatch.setattr(stopping.os, "_exit", exits.append)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    switch = StopSwitch()
    with switch.handling_signals():
        switch.must_finish()
        for number, after in [(notice, 0), *((other, 5) for other in NOTICES), (impatient, 5), (impatient, 0.5)]:
            now[0] += after
            signal.raise_signal(number)
        assert exits == []
        assert switch.cause is Cause[notice.name]
        now[0] += 2
        signal.raise_signal(impatient)
    assert exits == [128 + impatient]
    assert capfd.readouterr().err.count(f"asymgrpo: {notice.name}: stopping.") == 2


def test_a_second_signal_does_not_raise_while_the_first_one_is_on_its_way():
    switch = StopSwitch()
    with switch.handling_signals():
        switch.may_stop()
        with pytest.raises(StopRun) as stopped:
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert stopped.value.cause is Cause.SIGHUP
        with pytest.raises(StopRun):
            switch.may_stop()


def test_the_time_limit_is_no_first_signal(monkeypatch):
    exits = []
    monkeypatch.setattr(stopping.os, "_exit", exits.append)
    monkeypatch.setattr(stopping, "_SAME_SIGNAL_S", -1.0)
    switch = StopSwitch()
    with switch.handling_signals():
        switch.must_finish()
        switch.ask(Cause.time_limit)
        signal.raise_signal(signal.SIGTERM)
        assert exits == []
        signal.raise_signal(signal.SIGTERM)
        assert switch.cause is Cause.time_limit
    assert exits == [143]
    assert Cause.time_limit.code == 75


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path, scripted, undisturbed, monkeypatch):
    with signal_at(monkeypatch, "end of the step", 3), signal_at(monkeypatch, "end of the step", 3):
        assert main([*command(tmp_path), *RARELY]) == 143
    assert saved_steps(tmp_path / "run") == [3]
    goes_on(tmp_path, undisturbed)


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_an_evaluation_is_given_up(verb, tmp_path, scripted, capsys):
    scripted(interrupted(lambda generate: generate(), 1, "before", signal.SIGINT))
    assert main([verb, *command(tmp_path)[1:]]) == 130
    assert "asymgrpo: stopped by SIGINT." in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("results.json"))


def test_completions_that_are_being_written_are_written_whole(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(PredictionWriter, "write", interrupted(PredictionWriter.write, 1, "before"))
    output = tmp_path / "predicted"
    arguments = ["--data.validation.held_out.samples=128", f"--output={output}"]
    assert main(["predict", *command(tmp_path)[1:], *arguments]) == 143
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2 * 128  # what one call samples
    assert not (output / "results.json").exists()


def test_a_signal_after_all_work_is_done_changes_nothing(tmp_path, scripted, monkeypatch):
    from asymgrpo_app.callbacks.export import ExportCallback

    monkeypatch.setattr(ExportCallback, "on_train_end", interrupted(ExportCallback.on_train_end, 1, "before"))
    assert main([*command(tmp_path), "--steps=1"]) == 0
    assert (tmp_path / "run/export/model.safetensors").exists()


# ---- failures ----


def test_a_sampler_that_fails_leaves_the_last_whole_step(tmp_path, scripted, undisturbed, capsys):
    calls = []

    def failing(generate):
        calls.append(1)
        if len(calls) == 6:
            raise EngineError("vLLM failed while it sampled: out of luck.")
        return generate()

    scripted(failing)
    assert main([*command(tmp_path), *RARELY, "--rollout.max_engine_restarts=0"]) == 1
    said = capsys.readouterr()
    assert said.err == "asymgrpo: stopped: vLLM failed while it sampled: out of luck.\n"
    assert f"RL step 2 of {STEPS} is done and saved in " in said.out
    scripted()
    goes_on(tmp_path, undisturbed)


def test_a_failure_in_the_middle_of_an_update_saves_nothing(tmp_path, scripted, monkeypatch):
    """In the second step, after its weights have moved and before it is complete."""
    step, calls = LightningOptimizer.step, []

    def failing(*arguments, **named):
        step(*arguments, **named)
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError

    monkeypatch.setattr(LightningOptimizer, "step", failing)
    with pytest.raises(ZeroDivisionError):
        main([*command(tmp_path), *RARELY])
    assert len(calls) == 2
    assert saved_steps(tmp_path / "run") == []


def test_a_checkpoint_that_cannot_be_written_after_a_validation_is_tried_once(tmp_path, scripted, monkeypatch, capsys):
    tried = []

    def full(self, checkpoint, path, storage_options=None):
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", full)
    assert main([*command(tmp_path), "--steps=1"]) == 1
    assert len(tried) == 1
    said = capsys.readouterr()
    assert "(no space left on device)" in said.err
    assert "no space left on device" not in said.out


# ---- processes ----


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        *(
            pytest.param(signum, code, marks=pytest.mark.long)
            for signum, code in zip(NOTICES, (129, 75, 75), strict=True)
        ),
    ],
)
def test_a_signal_while_libraries_are_imported(signum, code, quickstart, tmp_path):
    run = Started(["-m", "asymgrpo_app", *quickstart, f"--run_dir={tmp_path / 'run'}"], tmp_path / "log")
    run.wait_for(lambda: run.catches(signal.SIGTERM))
    run.process.send_signal(signum)
    assert run.process.wait(20) == code
    assert f"asymgrpo: stopped by {signum.name}." in run.text
    assert "Traceback" not in run.text
    assert not (tmp_path / "run").exists()


def test_a_second_signal_ends_at_once(tmp_path):
    arguments = ["-m", STOPPED_RUN, *command(tmp_path), *RARELY]
    run = Started(arguments, tmp_path / "log", SAVING_S="60", SAMPLING_S="0.5")
    run.wait_for(lambda: run.text.count("sampling") >= 3)  # in the second step, or in the validation before it
    run.process.send_signal(signal.SIGTERM)
    run.wait_for(lambda: "saving" in run.text)
    time.sleep(1.2)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(5) == 130
    assert "asymgrpo: SIGINT once more: ended." in run.text
    assert run.left_behind() == []
    assert saved_steps(tmp_path / "run") == []


@pytest.mark.parametrize("moment", ["sampling", pytest.param("saving", marks=pytest.mark.long)])
def test_a_closed_terminal_costs_nothing(moment, tmp_path, scripted, undisturbed):
    """Every write to it fails from then on; `tee`, which the output often goes through, ends with it."""
    ours, theirs = pty.openpty()
    saved = ["--checkpoint.every_n_steps=2" if moment == "saving" else "--checkpoint.every_n_steps=100"]
    times = {
        "SAMPLING_S": "0 0 0 0 0 60" if moment == "sampling" else "0",
        "SAVING_S": "1" if moment == "saving" else "0",
    }
    run = Started(["-m", STOPPED_RUN, *command(tmp_path), *RARELY, *saved], tmp_path / "log", terminal=theirs, **times)
    os.close(theirs)
    shown = ""
    while shown.count(moment) < (6 if moment == "sampling" else 1):
        shown += os.read(ours, 4096).decode(errors="replace")
    os.close(ours)
    assert run.process.wait(30) == 129
    assert saved_steps(tmp_path / "run") == [2]
    goes_on(tmp_path, undisturbed)


@pytest.mark.long
def test_a_run_under_nohup_outlasts_its_terminal(tmp_path, scripted, undisturbed):
    """SIGHUP is ignored, and nobody reads what is printed: the run goes on to its end."""
    ours, theirs = pty.openpty()
    arguments = ["-m", STOPPED_RUN, *command(tmp_path), *RARELY]
    run = Started(arguments, tmp_path / "log", terminal=theirs, ignored=signal.SIGHUP, SAMPLING_S="0.2")
    os.close(theirs)
    while "sampling" not in os.read(ours, 4096).decode(errors="replace"):
        pass
    os.close(ours)
    assert run.process.wait(120) == 0
    assert_same(state(tmp_path / "run", STEPS), state(undisturbed, STEPS))
    assert (tmp_path / "run/export/model.safetensors").exists()


def test_a_verifier_that_takes_long_is_given_up_with_its_processes(tmp_path):
    arguments = command(tmp_path)
    rows = [json.dumps({"prompt": f"{number}>", "answer": "1"}) for number in range(40)]
    (tmp_path / "slow.jsonl").write_text("\n".join(rows))
    slow = {"class_path": "tests.support.probe_verifiers.SleepsOverSums", "init_args": {"seconds": 60}}
    source = {
        "class_path": "JsonLines",
        "init_args": {"path": str(tmp_path / "slow.jsonl"), "verifier": slow},
    }
    arguments += [f"--data.train={json.dumps(source)}", "--data.verifiers.timeout_s=120", "--data.verifiers.workers=2"]
    run = Started(["-m", STOPPED_RUN, *arguments, "--data.validation={}"], tmp_path / "log")
    run.wait_for(lambda: "sampling" in run.text)
    run.wait_for(lambda: _workers(run.process.pid) == 2)
    time.sleep(1)
    run.wait_for(lambda: True)  # to know all of its processes
    assert len(run.known) >= 3  # the launcher and its workers
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(20) == 143
    assert time.monotonic() - began < 15
    assert "Traceback" not in run.text
    assert run.left_behind() == []


def _workers(pid: int) -> int:
    """Worker processes of its verifier pool: grandchildren, children of the launcher."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return len(parent.children(recursive=True)) - len(parent.children())
    return 0


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", ["sampling", "saving"])
def test_a_signal_to_one_of_two_ranks_stops_both(rank, moment, tmp_path):
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--steps={STEPS}"]
    saved = ["--checkpoint.every_n_steps=1" if moment == "saving" else "--checkpoint.every_n_steps=100"]
    slow = "0.1 0.1 0.1 60"  # longer in the second step than is waited below: the other rank has to be told
    times = {"SAMPLING_S": slow if moment == "sampling" else "0.1", "SAVING_S": "1" if moment == "saving" else "0"}
    folder = tmp_path / "stopped"
    run = Started(["-m", STOPPED_RUN, *command(folder), *ranks, *saved], tmp_path / "log", **times)
    run.wait_for(lambda: run.text.count(moment) >= (7 if moment == "sampling" else 1))  # two calls at a time
    (child,) = [own for own in psutil.Process(run.process.pid).children() if STOPPED_RUN in own.cmdline()]
    (run.process if rank == 0 else child).send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 143, run.text
    assert run.left_behind() == []
    assert "Traceback" not in run.text
    assert run.text.count("asymgrpo: stopped by SIGTERM. RL step") == 1
    again = Started(["-m", STOPPED_RUN, *command(folder), *ranks, "--ckpt_path=last"], tmp_path / "again")
    assert again.process.wait(120) == 0, again.text
    whole = Started(["-m", STOPPED_RUN, *command(tmp_path / "whole"), *ranks], tmp_path / "whole.log")
    assert whole.process.wait(120) == 0, whole.text
    assert_same(state(folder / "run", STEPS), state(tmp_path / "whole/run", STEPS))
    assert repeated_scalars(folder / "run") == repeated_scalars(tmp_path / "whole/run")


@pytest.mark.long
def test_ranks_end_with_the_one_that_started_them(tmp_path):
    arguments = [*command(tmp_path), "--trainer.devices=2", "--trainer.strategy=ddp"]
    run = Started(["-m", STOPPED_RUN, *arguments], tmp_path / "log", SAMPLING_S="60")
    run.wait_for(lambda: run.text.count("sampling") == 2)
    assert run.known
    run.process.kill()
    run.process.wait()
    assert run.left_behind() == []
