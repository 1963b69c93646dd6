"""Files that are packed, unpacked once into the cache."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import SourceFile

_CHUNK = 2**20
_KIND = "unpacked1"


def unpacked(file: SourceFile) -> SourceFile:
    """The file itself, or, if its name ends in .gz, .bz2, .xz or .zst, what is packed in it; shown by its own name.

    Raises:
        UserError: It is not what its name says, or is cut off.
    """
    opened = _OPENED.get(Path(file.path).suffix.lower())
    if opened is None:
        return file
    copy = cached(file, _KIND, partial(_unpack, file, opened))
    return replace(SourceFile.find(str(copy)), shown=file.shown)


def _unpack(file: SourceFile, opened: Callable[[str], AbstractContextManager[Any]], target: Path) -> None:
    with target.open("wb") as written:
        try:
            with opened(file.path) as packed:
                while chunk := packed.read(_CHUNK):
                    written.write(chunk)
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk is full, or the like
            raise UserError(f"Cannot unpack {file.shown!r}: {one_line(str(error)).rstrip('.')}.") from error


def _open_zst(path: str) -> AbstractContextManager[Any]:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(path), "zstd")  # type: ignore[no-any-return]


_OPENED: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
