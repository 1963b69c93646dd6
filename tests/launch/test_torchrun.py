"""launch/torchrun.sh with the real torchrun: exit codes, signals, several machines."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.launch_commands import NO_GPUS, RANK, REPOSITORY, TORCHRUN, environment, notes, place, start

SCRIPT = str(REPOSITORY / "launch/torchrun.sh")
ARGUMENTS = ["--config", "my config.yaml", "--run_dir", "runs/mine"]


@pytest.fixture
def commands(tmp_path) -> Path:
    return place(tmp_path / "bin", asymgrpo=RANK, nvidia_smi=NO_GPUS)


def until(met: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Wait; a command that ends first, or that takes too long and is then ended, fails the test with its output."""
    end = time.monotonic() + seconds
    while not met():
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            raise AssertionError(process.communicate(timeout=120)[0])
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        pytest.param("0 0", 0, marks=pytest.mark.long),
        ("stop:75 stop:75", 75),  # rank 1 is done a second before rank 0, which is not disturbed
        # A failure ends the others, and is what the script returns.
        pytest.param("wait 3", 3, marks=pytest.mark.long),
        pytest.param("2 2", 2, marks=pytest.mark.long),
    ],
)
def test_its_exit_code_is_that_of_the_processes(ends, code, commands):
    process = start([SCRIPT, *ARGUMENTS], environment(commands, PROCESSES="2", ENDS=ends, GRACE="20"))
    process.communicate(timeout=120)
    assert process.returncode == code
    noted = notes(commands)
    wanted = (
        "fit --config my config.yaml --run_dir runs/mine --trainer.num_nodes 1 --trainer.devices 2 --ckpt_path last"
    )
    assert [line for line in sorted(noted) if " of " in line] == [f"rank {rank} of 2: {wanted}" for rank in (0, 1)]
    assert not any("second signal" in line for line in noted)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
        (signal.SIGUSR1, 75),
        pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_the_script_stops_every_process_once_and_waits_for_it(number, code, commands):
    process = start([SCRIPT, *ARGUMENTS], environment(commands, PROCESSES="2", ENDS="wait wait", GRACE="20"))
    until(lambda: sum(line.endswith("ready") for line in notes(commands)) == 2, process)
    process.send_signal(number)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code
    assert sorted(line for line in notes(commands) if " of " not in line) == [
        *("rank 0: ready", "rank 0: saved", "rank 1: ready", "rank 1: saved")
    ]


@pytest.mark.long
def test_nothing_stays_when_the_script_is_killed(commands):
    process = start([SCRIPT, *ARGUMENTS], environment(commands, PROCESSES="2", ENDS="wait wait", GRACE="20"))
    until(lambda: sum(line.endswith("ready") for line in notes(commands)) == 2, process)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 5  # torchrun; for each process its shell and the command
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


def test_several_machines_meet_at_the_first(tmp_path):
    folder = place(tmp_path / "bin", asymgrpo="", torchrun=TORCHRUN)
    env = environment(folder, PROCESSES="8", NODES="2", NODE_RANK="1", MASTER_ADDR="gpu07", MASTER_PORT="2345")
    assert subprocess.run([SCRIPT, *ARGUMENTS], env=env, check=False).returncode == 0
    (line,) = notes(folder)
    assert line.startswith(
        "torchrun --node-rank 1 --master-addr gpu07 --master-port 2345 --nnodes 2 --nproc-per-node 8 "
    )
    assert line.endswith(
        "/launch/process.sh fit --config my config.yaml --run_dir runs/mine --trainer.num_nodes 2 --trainer.devices 8 "
        "--ckpt_path last"
    )


@pytest.mark.parametrize(
    ("listing", "variables", "processes"),
    [
        ("printf 'GPU %s: NVIDIA H100 (UUID: a)\\n' 0 1 2", {}, 3),
        ("printf 'GPU %s: NVIDIA H100 (UUID: a)\\n' 0 1 2", {"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ("printf 'GPU %s: NVIDIA H100 (UUID: a)\\n' 0 1 2", {"PROCESSES": "1"}, 1),
        ("echo 'No devices were found'; exit 6", {}, 1),
        (NO_GPUS, {"CUDA_VISIBLE_DEVICES": ""}, 1),
    ],
)
def test_there_is_a_process_for_each_visible_gpu(listing, variables, processes, tmp_path):
    folder = place(tmp_path / "bin", asymgrpo="", torchrun=TORCHRUN, nvidia_smi=listing)
    subprocess.run([SCRIPT, *ARGUMENTS], env=environment(folder, **variables), check=True)
    (line,) = notes(folder)
    assert line.startswith(f"torchrun --standalone --nnodes 1 --nproc-per-node {processes} ")


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {}, "There are no arguments: name at least --config and --run_dir, as for asymgrpo fit."),
        (["--config=a"], {"NODES": "two"}, "PROCESSES, NODES and NODE_RANK are whole numbers, not 'two'."),
        (
            ["--config=a"],
            {"NODES": "2", "NODE_RANK": "2"},
            "NODE_RANK is 2, but there are 2 machines, numbered from 0.",
        ),
        (["--config=a"], {"NODES": "2"}, "MASTER_ADDR is not set: with 2 machines it names the first."),
        (["--config=a"], {"ASYMGRPO": "asym"}, "asym is not on the PATH: activate the environment of asymgrpo."),
    ],
)
def test_what_it_refuses(arguments, variables, sentence, commands):
    done = subprocess.run(
        [SCRIPT, *arguments], env=environment(commands, **variables), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"torchrun.sh: {sentence}\n")


@pytest.mark.long
def test_two_processes_train_stop_and_go_on(tmp_path):
    """Real vLLM in each: begun with `--ckpt_path last`, stopped by SIGTERM, and taken up by the same command."""
    folder = place(tmp_path / "bin", nvidia_smi=NO_GPUS, own=f'exec {sys.executable} -m asymgrpo_app "$@"')
    run_dir = tmp_path / "run"
    options = {
        "config": REPOSITORY / "configs/quickstart.yaml",
        "run_dir": run_dir,
        "steps": 6,
        "data.prompts_per_step": 8,
        "trainer.limit_val_batches": 0,
        "trainer.strategy": "ddp",
        "trainer.accelerator": "cpu",
        "rollout.engine.max_num_seqs": 32,
        "rollout.engine.kv_cache_gib": 0.25,
        "trainer.logger": "false",
    }
    command = [SCRIPT, *(f"--{key}={value}" for key, value in options.items())]
    env = environment(folder, PROCESSES="2", ASYMGRPO=str(folder / "own"), PYTHONPATH=str(REPOSITORY))
    checkpoints = run_dir / "checkpoints"

    first = start([*command, "--checkpoint.every_n_steps=1", "--steps=400"], env)
    until(lambda: len(list(checkpoints.glob("step-*.ckpt"))) > 0, first, seconds=400)
    first.terminate()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 143, output
    saved = max(int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.ckpt"))
    assert f"RL step {saved} of 400 is done and saved" in output

    steps = saved + 2
    second = start([*command, f"--steps={steps}"], env)
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0, output
    assert f"Run finished: {steps} RL steps" in output
    assert (checkpoints / f"step-{steps:08d}.ckpt").exists()
    assert (run_dir / "export/config.json").exists()
