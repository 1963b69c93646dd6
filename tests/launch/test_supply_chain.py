"""What is installed is what the lock files name, byte by byte, and the bill of materials lists it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch_commands import REPOSITORY

LOCKS = ["cpu", "gpu"]


def locked(device: str) -> dict[str, list[str]]:
    """The sha256 of the files of each pinned package, under `name==version`."""
    text = (REPOSITORY / f"requirements/{device}.lock").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {words[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})\b", " ".join(words)) for words in lines}


@pytest.mark.parametrize("device", LOCKS)
def test_every_package_is_pinned_with_the_hashes_of_its_files(device):
    packages = locked(device)
    assert len(packages) > 200
    assert not [name for name in packages if not re.fullmatch(r"[a-z0-9-]+==[\w.+!]+", name)]
    assert not [name for name, hashes in packages.items() if not hashes]


def test_the_cuda_compiler_is_of_the_version_of_the_headers_it_compiles_with():
    """nvcc refuses the headers of another minor version."""
    versions = dict(name.split("==") for name in locked("gpu"))
    parts = ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl", "cuda-runtime", "cuda-nvrtc")
    found = {part: ".".join(versions[f"nvidia-{part}"].split(".")[:2]) for part in parts}
    assert found == dict.fromkeys(parts, ".".join(versions["cuda-toolkit"].split(".")[:2]))


def test_pip_compares_the_hashes():
    """The one exception is the project itself, which lies here."""
    script = (REPOSITORY / "tools/setup_venv.sh").read_text()
    installs = re.findall(r"^ *pip_install (.*?) \|\| ", script, re.MULTILINE)
    assert sorted(installs) == [
        "--no-build-isolation --editable .",
        '--no-compile --require-hashes -r "$venv/packages.lock"',
        '--no-compile -r "$torch"',
    ]


def test_a_file_with_another_hash_is_not_installed(tmp_path):
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    subprocess.run([sys.executable, "-c", WHEEL, wheel], check=True)
    lock = tmp_path / "cpu.lock"
    lock.write_text(f"small==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links",
        tmp_path,
        "--target",
        tmp_path / "site",
    ]
    done = subprocess.run([*pip, "--require-hashes", "-r", lock], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


WHEEL = """
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("small.py", "")
    wheel.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
    wheel.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("small-1.0.dist-info/RECORD", "")
"""


@pytest.mark.long
@pytest.mark.parametrize("device", LOCKS)
def test_the_bill_of_materials_lists_what_is_locked(device, tmp_path):
    """As `make sbom` writes it."""
    path = tmp_path / "sbom.json"
    command = [Path(sys.executable).with_name("cyclonedx-py"), "requirements", "--output-reproducible"]
    command += ["--pyproject", REPOSITORY / "pyproject.toml", "--output-file", path]
    subprocess.run([*command, REPOSITORY / f"requirements/{device}.lock"], check=True, capture_output=True)
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "asymgrpo")
    found = {f"{component['name']}=={component['version']}": component for component in bill["components"]}
    packages = locked(device)
    assert set(found) == set(packages)
    for name, component in found.items():
        (reference,) = component["externalReferences"]
        assert sorted(entry["content"] for entry in reference["hashes"]) == sorted(packages[name])
