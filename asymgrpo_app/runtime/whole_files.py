"""Files and folders that are, at every moment and after a power cut, absent or whole."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PART_SUFFIX = ".part"


def part_of(path: Path) -> Path:
    """The path of a file or folder while it is being written."""
    return path.with_name(f".{path.name}{PART_SUFFIX}")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Gives an open file of another name in the same folder, which is made; at the end it is renamed to `path`.

    An older file of that name stays until then. If the body fails, nothing of the new one is left behind. What a killed
    process left is replaced; a link in its place is removed, never followed.

    Raises:
        OSError: It cannot be written; EBUSY: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    with _fresh(part) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)  # still locked, so it is nobody else's
            raise
    sync(path.parent)


def _fresh(part: Path) -> BinaryIO:
    """A new, locked file; where there are no locks, as on some network file systems, it is not locked."""
    if part.is_file() and not part.is_symlink():
        with part.open("rb") as stale:
            _lock(stale)  # or it is being written
    part.unlink(missing_ok=True)
    file = part.open("x+b")  # fails if anything has that name by now, a link included
    _lock(file)
    return file


def _lock(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EBUSY, "another process is writing it") from error
    except OSError:
        pass


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder of another name beside `path`, which takes its place at the end, of an older one too.

    Its files get the permissions of any new file, whatever wrote them. What else is in the older one moves along, but
    for weights. A link is replaced, not followed. If the body fails,
    nothing of the new one is left behind.

    Raises:
        OSError: It cannot be written.
    """
    part = part_of(path)
    _remove(part)
    try:
        part.mkdir(parents=True)
        yield part
        files = [*part.rglob("*")]
        permit([file for file in files if file.is_file()])
        for file in [*files, part]:
            sync(file)
        for older in [*path.iterdir()] if path.is_dir() and not path.is_symlink() else []:
            if not (part / older.name).exists() and ".safetensors" not in older.name:
                older.rename(part / older.name)
        _remove(path)
        part.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def permit(files: Sequence[Path], at_most: int = 0o666) -> None:
    """Give files of one folder tree the permissions that any new file has there (0666 less the umask).

    Some libraries, safetensors among them, write files for their owner alone, whatever the umask says.

    Args:
        files: The files.
        at_most: Permissions beyond which they get none.

    Raises:
        OSError: Nothing can be written there.
    """
    if files:
        probe = part_of(files[0])
        with _fresh(probe) as new:
            mode = os.fstat(new.fileno()).st_mode & at_most
            probe.unlink()
        for file in files:
            file.chmod(mode)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
