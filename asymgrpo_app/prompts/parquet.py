"""Problems from Parquet files."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import BadRow
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import SourceFile, expand, shown, unique_names
from asymgrpo_app.prompts.rows import Row, RowSource
from asymgrpo_app.rewards.base import Verifier

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_ROWS_PER_BATCH = 128
"""A whole batch is read for a row, so it must be small; much smaller batches make the file larger and not faster."""

_ROWS_CONVERTED_AT_ONCE = 8_192
_READ_AT_ONCE = 2**20  # bytes of a column
_KEPT_OPEN = 64
_CONVERTED_KIND = "arrow1"


class ParquetFiles(RowSource):
    """Problems from Parquet files, one per row.

    The verifier finds every column of the row, and the answer as a string under `answer`. The uid is `<file name>/<row
    number from 1>`; of several files with the same name, with the folders in which they differ.

    Parquet can only be read in groups of many rows. So each file is converted once to an uncompressed Arrow file in the
    folder `$ASYMGRPO_CACHE` (default `~/.cache/asymgrpo`), in which single rows are found fast; it takes as much space
    there as its content without compression.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.parquet`, or a list of both.
        prompt_field: The column of the prompt, a string that is not empty (or a list with one chat message of the role
            `user`); for a field within a column, names joined by dots, e.g. `extra_info.question`.
        answer_field: The column of the right answer, a string that is not empty or a number; named likewise.
        verifier: The verifier that judges the completions; exact match if left out.

    Raises:
        UserError: A file cannot be read, or there is no row.
    """

    def __init__(
        self,
        path: str | list[str],
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        verifier: Verifier | None = None,
    ) -> None:
        self.path = path
        table = ParquetTable(expand(path))
        if not len(table):
            raise UserError(f"{shown(path)} holds no prompts: the file has no rows.")
        super().__init__(table, prompt_field, answer_field, verifier)

    def __str__(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path)


class ParquetTable:
    """The rows of several files, one file after the other.

    Args:
        paths: The files.

    Raises:
        UserError: A file cannot be read.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._names = unique_names(paths)
        self._converted = [_converted(SourceFile.find(path)) for path in paths]
        self._ends = list(accumulate(_count(path) for path in self._converted))

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        """Row `index`, from 0.

        Raises:
            BadRow: The row's bytes are no valid text.
        """
        which = bisect_right(self._ends, index)
        in_file = index - (self._ends[which - 1] if which else 0)
        place = f"{self._paths[which]}, row {in_file + 1}"
        batch = _batch(self._converted[which], in_file // _ROWS_PER_BATCH)
        try:
            fields = batch.slice(in_file % _ROWS_PER_BATCH, 1).to_pylist()[0]
        except UnicodeDecodeError as error:  # Parquet does not check that strings are UTF-8
            raise BadRow(
                f"{place}: not UTF-8 text, seen the bytes {error.object[error.start : error.end]!r}."
            ) from error
        return Row(uid=f"{self._names[which]}/{in_file + 1}", place=place, fields=fields)


def _converted(file: SourceFile) -> Path:
    return cached(file, _CONVERTED_KIND, partial(_convert, file))


def _convert(file: SourceFile, target: Path) -> None:
    """Write the file as Arrow, never holding it whole; every batch but the last has `_ROWS_PER_BATCH` rows."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without these two, whole columns of a row group are fetched at once.
        source = parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=_READ_AT_ONCE)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error
    with source:
        schema = pa.schema([column.with_type(_plain(column.type)) for column in source.schema_arrow])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            rest: list[pa.RecordBatch] = []
            for batch in _batches(file, source):
                rows = pa.concat_batches([*rest, batch.cast(schema)])
                full = rows.num_rows - rows.num_rows % _ROWS_PER_BATCH
                for start in range(0, full, _ROWS_PER_BATCH):
                    writer.write_batch(rows.slice(start, _ROWS_PER_BATCH))
                rest = [rows.slice(full)]
            for batch in rest:
                if batch.num_rows:
                    writer.write_batch(batch)


def _batches(file: SourceFile, source: "parquet.ParquetFile") -> "Iterator[pa.RecordBatch]":
    """Yield the rows of an open file, not too many at once."""
    import pyarrow as pa

    try:
        # Group by group: pyarrow cannot make one batch of nested columns from two groups. Threads would keep memory.
        for group in range(source.num_row_groups):
            yield from source.iter_batches(_ROWS_CONVERTED_AT_ONCE, row_groups=[group], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type without dictionaries: an Arrow file can hold just one dictionary per column, Parquet one per group."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def _count(path: Path) -> int:
    batches = _reader(path).num_record_batches
    return (batches - 1) * _ROWS_PER_BATCH + _batch(path, batches - 1).num_rows if batches else 0


def _batch(path: Path, number: int) -> "pa.RecordBatch":
    try:
        return _reader(path).get_batch(number)
    except OSError as error:
        raise UserError(f"Cannot read {str(path)!r}, a copy of Parquet rows: {error}.") from error


# Read and not mapped: every touched page of a mapped file would count as this process's memory. A reader has no
# position, so threads can share it; each process opens its own.
@lru_cache(maxsize=_KEPT_OPEN)
def _reader(path: Path) -> "pa.ipc.RecordBatchFileReader":
    import pyarrow as pa

    return pa.ipc.open_file(pa.OSFile(str(path)))


def _unreadable(file: SourceFile, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return UserError(f"Cannot read the Parquet file {file.shown!r}: {reason}.")
