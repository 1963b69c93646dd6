"""The job scripts of SLURM and Kubernetes: by schema, and with stand-ins for the schedulers' commands."""

import re
import signal
import subprocess
import time
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from asymgrpo_app.errors import ExitCode
from tests.support.launch_commands import REPOSITORY, SCONTROL, SRUN, TORCHRUN, environment, notes, place, start

SLURM = REPOSITORY / "launch/slurm.sbatch"
IMAGE_FOLDER = PurePosixPath("/app")
JOBS = sorted((REPOSITORY / "launch/kubernetes").glob("*.yaml"))

# Options of sbatch that the script may use, and what their values look like (https://slurm.schedmd.com/sbatch.html).
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "exclusive": "",
    "time": r"(\d+-)?\d\d:\d\d:\d\d",
    "signal": r"([RB]+:)?([A-Z]+|\d+)(@\d+)?",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"[\w%./-]+",
}


def sbatch_options() -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE)
    assert len(lines) == SLURM.read_text().count("\n#SBATCH ")
    return dict(lines)


def places(nodes: int, processes: int) -> str:
    return f"--trainer.num_nodes {nodes} --trainer.devices {processes}"


def test_every_option_is_one_of_sbatch():
    for name, value in sbatch_options().items():
        assert re.fullmatch(SBATCH[name], value), name


def test_options_stand_before_the_first_command():
    """sbatch reads no further."""
    text = SLURM.read_text()
    first = re.search(r"^[^#\n]", text, re.MULTILINE)
    assert first is not None
    assert text.rindex("#SBATCH ") < first.start()


def test_processes_have_less_grace_than_the_signal_gives():
    (grace,) = re.findall(r"^GRACE=(\d+)", SLURM.read_text(), re.MULTILINE)
    signal, _, seconds = sbatch_options()["signal"].partition("@")
    assert signal == "TERM"
    assert int(grace) < int(seconds)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137, 143])
def test_a_stopped_job_is_queued_again_and_no_other(code, tmp_path):
    folder = place(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, torchrun=TORCHRUN, asymgrpo="")
    env = environment(
        folder,
        ENDS=str(code),
        PROCESSES="8",
        SLURM_JOB_ID="41234",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="gpu[07-08]",
        SLURM_SUBMIT_DIR=str(REPOSITORY),
    )
    done = subprocess.run([SLURM, "--config=my.yaml", "--run_dir=runs/mine"], env=env, check=False)
    assert done.returncode == code
    srun, *nodes = [line for line in notes(folder) if not line.startswith("scontrol")]
    assert srun.startswith("srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 ")
    for number, line in enumerate(nodes):
        assert f"--node-rank {number} --master-addr gpu07 --master-port 21234 --nnodes 2 --nproc-per-node 8" in line
        assert line.endswith(f" fit --config=my.yaml --run_dir=runs/mine {places(2, 8)} --ckpt_path last")
    assert len(nodes) == 2
    requeued = [line for line in notes(folder) if line.startswith("scontrol")]
    assert requeued == (["scontrol requeue 41234"] if code in (ExitCode.TIME_LIMIT, 143) else [])


# srun, which passes signals on to its tasks, and they stop.
WAITING_SRUN = r"""
trap 'echo "srun: USR1" >>"$NOTES"; sleep 0.5; exit 75' USR1
trap 'echo "srun: TERM" >>"$NOTES"; sleep 0.5; exit 143' TERM
echo "ready" >>"$NOTES"
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_a_signal_to_the_job_script_alone_reaches_the_run(number, code, tmp_path):
    folder = place(tmp_path / "bin", srun=WAITING_SRUN, scontrol=SCONTROL)
    own = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "gpu07"}
    env = environment(folder, SLURM_SUBMIT_DIR=str(REPOSITORY), **own)
    process = start([str(SLURM), "--config=my.yaml"], env)
    end = time.monotonic() + 60
    while "ready" not in notes(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert notes(folder) == ["ready", f"srun: {number.name.removeprefix('SIG')}", "scontrol requeue 41234"]


@pytest.mark.parametrize("arguments", [[], ["--config=my.yaml"]])
def test_a_job_script_that_cannot_work_says_so(arguments, tmp_path):
    env = environment(tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    done = subprocess.run([SLURM, *arguments], env=env, capture_output=True, text=True, check=False)
    sentence = "is not there: submit the job from the project's folder." if arguments else "There are no arguments"
    assert done.returncode == 2
    assert sentence in done.stderr


# ---- Kubernetes ----


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def job(path: Path) -> dict[str, Any]:
    (found,) = [document for document in documents(path) if document["kind"] == "Job"]
    return found["spec"]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_a_job_fits_the_schema_of_kubernetes(path, version):
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_would_notice():
    document = documents(JOBS[0])[0]
    document["spec"]["template"]["spec"]["terminationGraceSeconds"] = 10
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_stop_starts_another_pod_and_bad_input_none(path):
    spec = job(path)
    (container,) = spec["template"]["spec"]["containers"]
    by_code = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["action"]: rule["onExitCodes"]["values"] for rule in by_code} == {
        "FailJob": [ExitCode.BAD_INPUT],
        "Ignore": [ExitCode.TIME_LIMIT, 143],
    }
    assert {rule["onExitCodes"]["containerName"] for rule in by_code} == {container["name"]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert int(variables(container)["GRACE"]) < spec["template"]["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_files_of_a_pods_recipe_lie_on_a_volume(path):
    """The image has none of them: they are not in git."""
    (container,) = job(path)["template"]["spec"]["containers"]
    recipe = container["args"][container["args"].index("--config") + 1]
    files = re.findall(r"path: (\S+\.jsonl)", (REPOSITORY / recipe).read_text())
    assert files
    folders = {PurePosixPath(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert all(folders & set((IMAGE_FOLDER / file).parents) for file in files)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_command_of_a_pod_starts_the_run(path, tmp_path):
    spec = job(path)
    (container,) = spec["template"]["spec"]["containers"]
    folder = place(tmp_path / "bin", torchrun=TORCHRUN, asymgrpo="")
    own = variables(container)
    last = spec.get("completions", 1) - 1
    env = environment(folder, PROCESSES="4", **own) | ({"JOB_COMPLETION_INDEX": str(last)} if last else {})
    assert (REPOSITORY / container["args"][container["args"].index("--config") + 1]).exists()
    subprocess.run([*container["command"], *container["args"]], env=env, cwd=REPOSITORY, check=True)
    (line,) = notes(folder)
    assert f"--nnodes {last + 1} --nproc-per-node 4" in line
    assert (f"--node-rank {last} --master-addr asymgrpo-0.asymgrpo --master-port 29500" in line) == (last > 0)
    assert line.endswith(f"--run_dir /runs/mine {places(last + 1, 4)} --ckpt_path last")


def test_pods_find_the_first_through_the_service():
    service, job_document, _ = documents(REPOSITORY / "launch/kubernetes/several_nodes.yaml")
    spec = job_document["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    own = variables(container)
    assert own["MASTER_ADDR"] == f"{job_document['metadata']['name']}-0.{service['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job_document["metadata"]["name"]}
    assert int(own["MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    assert int(own["NODES"]) == spec["completions"] == spec["parallelism"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_pod_has_no_privileges(path):
    pod = job(path)["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    seccomp = {"type": "RuntimeDefault"}
    assert pod["securityContext"] == {"runAsNonRoot": True, "fsGroup": 1000, "seccompProfile": seccomp}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_pod_is_reached_by_the_pods_of_its_run_alone(path):
    (job_document,) = [document for document in documents(path) if document["kind"] == "Job"]
    (policy,) = [document["spec"] for document in documents(path) if document["kind"] == "NetworkPolicy"]
    own = {"podSelector": {"matchLabels": {"job-name": job_document["metadata"]["name"]}}}
    several = job_document["spec"].get("completions", 1) > 1
    assert policy == {**own, "policyTypes": ["Ingress"], **({"ingress": [{"from": [own]}]} if several else {})}
