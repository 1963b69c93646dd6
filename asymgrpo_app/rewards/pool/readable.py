"""What a worker in the sandbox may read: the interpreter, the system's libraries, and modules."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import all_suffixes
from pathlib import Path

# Programs, libraries and the settings that the C library and Python's own modules read: none holds a secret.
_OF_THE_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/alternatives", "/etc/localtime", "/etc/timezone"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release", "/etc/mime.types", "/etc/fonts"),
    *("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu", "/sys/devices/system/node"),
)
_OF_PACKAGES = {"site-packages", "dist-packages"}


def loaded_modules() -> list[str]:
    """Where the modules that this process has loaded are, without those of the interpreter and its packages.

    An import hook or a namespace package may have found them where `sys.path` does not lead.
    """
    return sorted({place for place in _places() if place and not _is_installed(Path(place))})


def readable_paths(search_path: Sequence[str], modules: Iterable[str]) -> list[str]:
    """Files and folders that a worker may read.

    Folders of `search_path` such as the working directory may hold anything, a home or the folder of a run. There,
    only modules and packages are readable, and names can be listed.

    Args:
        search_path: The folders of `sys.path`; `""` is the working directory.
        modules: More files and folders of modules (`loaded_modules`).

    Returns:
        Paths as `sandbox.enter` takes them.
    """
    found = [*_OF_THE_SYSTEM, *_of_the_interpreter(), *modules]
    found += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = [path.rstrip("/") for path in found]  # or it could only be listed
    for folder in map(Path, search_path):  # "" becomes "."
        if folder.is_dir() and not _is_installed(folder):
            found += [f"{folder.absolute()}/", *_modules_in(folder.absolute())]
        else:
            found.append(str(folder.absolute()))
    return [path for path in dict.fromkeys(found) if path]


def _interpreter() -> list[str]:
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]


def _of_the_interpreter() -> Iterator[str]:
    """The interpreter's folders; not all that is in its prefix, which may be the working directory (`venv .`)."""
    for prefix in _interpreter():
        yield from (str(Path(prefix, name)) for name in ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg"))


def _is_installed(path: Path) -> bool:
    return bool(_OF_PACKAGES & set(path.parts)) or any(path.is_relative_to(root) for root in _interpreter())


def _modules_in(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # a folder of sys.path that may not be read holds nothing to import
        for entry in os.scandir(folder):
            if entry.name.endswith(tuple(all_suffixes())) or entry.name == "__pycache__" or _is_package(entry):
                yield entry.path


def _is_package(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir() and Path(entry.path, "__init__.py").exists()
    except OSError:  # a folder of another user
        return False


def _places() -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", {})  # not attributes of the module: a lazy one would import itself
        if "." not in name:
            try:
                yield from map(str, names.get("__path__") or [names.get("__file__") or ""])
            except Exception:  # a module may call anything its path
                continue
