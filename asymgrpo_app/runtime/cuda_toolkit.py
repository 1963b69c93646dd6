"""The CUDA compiler that comes with the wheels, in the form in which libraries look for one.

FlashInfer, which vLLM prefers on the newest GPUs, compiles kernels when they are first used. It runs `bin/nvcc` of
`$CUDA_HOME`, links with `lib64/libcudart.so` and `lib64/stubs/libcuda.so` there, and runs `ninja` from `$PATH`. The
wheels have libraries in a folder of another name, under their full versions alone.
"""

import atexit
import ctypes
import os
import re
import shutil
import sys
import tempfile
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from asymgrpo_app.runtime.environment import cache_folder


def provide_cuda_home() -> None:
    """Set `$CUDA_HOME` to the compiler of the wheels, and have `ninja` found; what the user set is kept.

    Without those wheels nothing changes.
    """
    toolkit = installed_toolkit()
    if toolkit is None:
        return
    if not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        try:
            folder = linked_toolkit(toolkit, cache_folder())
        except OSError:  # the cache cannot be written
            temporary = tempfile.mkdtemp(prefix="asymgrpo-")
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            folder = linked_toolkit(toolkit, Path(temporary))
        os.environ["CUDA_HOME"] = str(folder)
    scripts = Path(sys.executable).parent
    if shutil.which("ninja") is None and (scripts / "ninja").exists():
        os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), str(scripts))))


def installed_toolkit() -> Path | None:
    """The folder of CUDA's wheels in this environment if the compiler is among them."""
    spec = find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = sorted(path for folder in folders for path in Path(folder).glob("cu[0-9]*/bin/nvcc"))
    return found[-1].parent.parent if found else None


def linked_toolkit(toolkit: Path, cache: Path) -> Path:
    """A folder of links to a toolkit of wheels that looks like an installed one; made unless it is there.

    Several processes may make it at the same time. It belongs to one environment and its versions: the name is a digest
    of where the libraries are.

    Args:
        toolkit: Folder of the wheels, with `bin`, `include`, `lib` and `nvvm`.
        cache: Where the folder is made.

    Raises:
        OSError: It cannot be made.
    """
    libraries = sorted((toolkit / "lib").iterdir())
    driver = _driver()
    identity = "\0".join(map(str, [*libraries, driver]))
    folder = cache / f"cuda-{blake2b(identity.encode(), digest_size=8).hexdigest()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    try:
        for part in ("bin", "include", "nvvm", "lib"):
            (unfinished / part).symlink_to(toolkit / part)
        stubs = unfinished / "lib64" / "stubs"
        stubs.mkdir(parents=True)
        for library in libraries:
            for name in {library.name, re.sub(r"\.so\..*", ".so", library.name)}:
                (unfinished / "lib64" / name).symlink_to(library)
        if driver is not None:
            (stubs / "libcuda.so").symlink_to(driver)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _driver() -> Path | None:
    """The driver's library, if this machine has it."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    mapped = re.findall(r"\S+/libcuda\.so\S*", Path("/proc/self/maps").read_text())
    return Path(mapped[0]) if mapped else None
