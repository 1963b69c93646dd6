"""CUDA's compiler of the wheels is found where libraries look for an installed one."""

import os
from pathlib import Path

import pytest

from asymgrpo_app.runtime import cuda_toolkit
from asymgrpo_app.runtime.cuda_toolkit import installed_toolkit, linked_toolkit, provide_cuda_home


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """An environment with the folders of NVIDIA's wheels, and ninja beside its Python."""
    toolkit = tmp_path / "site/nvidia/cu13"
    for name in ("bin/nvcc", "include/cuda.h", "nvvm/bin/cicc", "lib/libcudart.so.13", "lib/libcudart_static.a"):
        path = toolkit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path / "site")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    for name in ("python", "ninja"):
        python.with_name(name).write_text("#!/bin/sh\n")
        python.with_name(name).chmod(0o755)
    monkeypatch.setattr(cuda_toolkit.sys, "executable", str(python))
    monkeypatch.setenv("ASYMGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, "")  # so that what a test makes of it is taken back
    return toolkit


def test_compiler_and_libraries_are_where_an_installed_toolkit_has_them(wheels):
    provide_cuda_home()
    home = Path(os.environ["CUDA_HOME"])
    assert (home / "bin/nvcc").read_text() == "bin/nvcc"
    assert (home / "include/cuda.h").read_text() == "include/cuda.h"
    assert (home / "nvvm/bin/cicc").read_text() == "nvvm/bin/cicc"
    assert sorted(path.name for path in (home / "lib64").iterdir()) == [
        "libcudart.so",
        "libcudart.so.13",
        "libcudart_static.a",
        "stubs",
    ]
    assert (home / "lib64/libcudart.so").read_text() == "lib/libcudart.so.13"


def test_ninja_is_found_though_the_environment_was_not_activated(wheels):
    provide_cuda_home()
    assert cuda_toolkit.shutil.which("ninja") == str(Path(cuda_toolkit.sys.executable).with_name("ninja"))


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_of_the_user_is_kept(wheels, monkeypatch, name):
    monkeypatch.setenv(name, "/opt/cuda")
    provide_cuda_home()
    assert {os.environ["CUDA_HOME"], os.environ["CUDA_PATH"]} == {"", "/opt/cuda"}


def test_links_are_made_once_and_anew_for_another_environment(wheels, tmp_path):
    first = linked_toolkit(wheels, tmp_path / "cache")
    assert linked_toolkit(wheels, tmp_path / "cache") == first
    (wheels / "lib/libcurand.so.10").write_text("")
    second = linked_toolkit(wheels, tmp_path / "cache")
    assert second != first
    assert (second / "lib64/libcurand.so").exists()
    assert sorted((tmp_path / "cache").iterdir()) == sorted([first, second])  # nothing unfinished is left


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(wheels, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASYMGRPO_CACHE", str(tmp_path / "file/cache"))
    provide_cuda_home()
    assert (Path(os.environ["CUDA_HOME"]) / "bin/nvcc").exists()


def test_nothing_changes_without_the_wheels(monkeypatch, tmp_path):
    monkeypatch.setenv("ASYMGRPO_CACHE", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr(cuda_toolkit, "find_spec", lambda name: None)
    assert installed_toolkit() is None
    provide_cuda_home()
    assert os.environ["CUDA_HOME"] == ""
    assert not list(tmp_path.iterdir())
