"""The cache of files made from data files: indexes of lines, and Parquet in a form that can be read row by row."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.files import SourceFile
from asymgrpo_app.runtime.environment import cache_folder
from asymgrpo_app.runtime.whole_files import permit


def cached(source: SourceFile, kind: str, build: Callable[[Path], None]) -> Path:
    """The file that `build` makes from `source`, made now unless it is in the cache.

    It lies in `$ASYMGRPO_CACHE`, or `~/.cache/asymgrpo`, under a name of the source's path, size and time of change, so
    a source that changed gets a new one. It appears at once and whole: several processes may make it at the same time.
    Whoever may read the source may read it, as far as the umask allows. Where the cache cannot be written, it lies in a
    temporary folder that ends with this process.

    Args:
        source: The file it is made from.
        kind: Ending of the name; has to change when `build` does.
        build: Writes the file at the path it is given.

    Raises:
        UserError: No folder for it can be written.
    """
    identity = f"{source.path}\0{source.size}\0{source.mtime_ns}"
    name = f"{blake2b(identity.encode(errors='surrogateescape'), digest_size=16).hexdigest()}.{kind}"
    folder = cache_folder()
    try:
        return _found_or_made(folder / name, source, build)
    except OSError:
        temporary = _temporary_folder()
    try:
        return _found_or_made(temporary / name, source, build)
    except OSError as error:
        raise UserError(
            f"Neither {str(folder)!r} nor {str(temporary)!r} takes the index of {source.path!r}: "
            f"{error.strerror or error}; set ASYMGRPO_CACHE to a folder with space."
        ) from error


def _found_or_made(path: Path, source: SourceFile, build: Callable[[Path], None]) -> Path:
    if path.is_file() and os.access(path, os.R_OK):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    unfinished = Path(name)
    try:
        build(unfinished)
        permit([unfinished], at_most=Path(source.path).stat().st_mode & 0o666)
        os.fsync(descriptor)  # a crash of the machine must not leave a file with its final name and half its content
        return unfinished.rename(path)
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)


@cache
def _temporary_folder() -> Path:
    """A temporary folder for this process and those it forks; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="asymgrpo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # not run in processes that multiprocessing forks
    return folder
