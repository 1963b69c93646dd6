"""Variables of launchers in the environment: those of a launcher, and what is left over of one."""

import os

import pytest

from asymgrpo_app.cli import command
from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.launch import announce_launcher, check_launch, is_started_rank
from asymgrpo_app.runtime.stopping import Cause, StopRun

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = MEETING | {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
LIGHTNING = {"LOCAL_RANK": "1", "ASYMGRPO_LAUNCHER": str(os.getppid())}
SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
LEFT_OVER = (
    "{} is {} in the environment, as if a launcher had started this process as one of several, but none has: unset {}, "
    "or set MASTER_ADDR and MASTER_PORT too if you start every process yourself."
)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN,
        LIGHTNING,
        SRUN,
        MEETING | {"LOCAL_RANK": "1"},
        MEETING | {"NODE_RANK": "1"},
        {"OMP_NUM_THREADS": "4"},
        {"OMP_NUM_THREADS": "4,2"},
        {"MASTER_ADDR": "gpu07"},
        {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2"},
    ],
)
def test_what_a_launcher_says_is_left_alone(environment):
    before = dict(environment)
    check_launch(environment)
    assert environment == before


@pytest.mark.parametrize(
    "name", ["RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"]
)
def test_a_rank_that_no_launcher_gave_is_refused(name):
    for more in ({}, {"WORLD_SIZE": "2"}, {"ASYMGRPO_LAUNCHER": "1"}, {"MASTER_ADDR": "x"}):
        with pytest.raises(UserError) as refused:
            check_launch({name: "1"} | more)
        assert str(refused.value) == LEFT_OVER.format(name, 1, name)


def test_what_says_nothing_is_taken_out():
    environment = {
        "LOCAL_RANK": "0",
        "RANK": "00",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "",
        "OMP_NUM_THREADS": "",
        "A": "",
    }
    check_launch(environment)
    assert environment == {"A": ""}


def test_a_job_of_slurm_without_srun_starts_its_processes_itself():
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine", "SLURM_PROCID": "0"}
    check_launch(environment)
    assert environment["SLURM_JOB_NAME"] == "interactive"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert not SLURMEnvironment.detect()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x' in the environment, which is no number: unset it."),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1' in the environment, which is no number: unset it."),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http' in the environment, which is no number: unset it."),
        ({"SLURM_NTASKS": "2(x3)"}, "SLURM_NTASKS is '2(x3)' in the environment, which is no number: unset it."),
        (
            {"OMP_NUM_THREADS": "abc"},
            "OMP_NUM_THREADS is 'abc' in the environment, which is no number of threads: unset it.",
        ),
        (
            {"OMP_NUM_THREADS": "0"},
            "OMP_NUM_THREADS is '0' in the environment, which is no number of threads: unset it.",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "0"},
            "TORCHELASTIC_RUN_ID is set in the environment as by torchrun, but LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, "
            "MASTER_PORT is not: start the command with torchrun, or unset it.",
        ),
    ],
)
def test_one_sentence(environment, told):
    with pytest.raises(UserError) as refused:
        check_launch(environment)
    assert str(refused.value) == told


def test_a_started_rank_is_the_child_of_its_launcher():
    assert is_started_rank(LIGHTNING)
    assert not is_started_rank(LIGHTNING | {"LOCAL_RANK": "0"})
    assert not is_started_rank(LIGHTNING | {"LOCAL_RANK": ""})
    assert not is_started_rank(LIGHTNING | {"ASYMGRPO_LAUNCHER": str(os.getpid())})
    assert not is_started_rank(TORCHRUN)
    assert not is_started_rank({"LOCAL_RANK": "1"})


def test_the_command_refuses_a_left_over_rank(monkeypatch, capsys):
    from asymgrpo_app.cli import main

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert main(["compare", "a.json", "b.json"]) == 2
    assert capsys.readouterr().err == f"asymgrpo: error: {LEFT_OVER.format('LOCAL_RANK', 1, 'LOCAL_RANK')}\n"


@pytest.mark.parametrize(("environment", "code", "lines"), [(LIGHTNING, 0, 0), ({"LOCAL_RANK": "0"}, 143, 1)])
def test_one_rank_alone_speaks_of_a_stop_and_ends_with_its_code(environment, code, lines, monkeypatch, capsys):
    """Lightning kills the first rank, in the middle of a save, when another one ends with a code of its own."""

    def stopped(_):
        announce_launcher()  # as every rank does, in which it is the parent of those that it starts
        raise StopRun(Cause.SIGTERM)

    for name in ("LOCAL_RANK", "ASYMGRPO_LAUNCHER", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "_run", stopped)
    monkeypatch.setattr(command, "end_with_parent", lambda: None)
    assert command.main(["fit"]) == code
    assert len(capsys.readouterr().err.splitlines()) == lines
