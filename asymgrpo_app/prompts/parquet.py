"""Problems from Parquet files."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from asymgrpo_app.errors import UserError, one_line
from asymgrpo_app.prompts.arrow_rows import plain_row
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import FileSource, FileTable, SourceFile
from asymgrpo_app.prompts.values import Row

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_PER_BATCH = 128
"""A whole batch is read for a row, so it must be small; much smaller batches make the file larger and not faster."""

_ROWS_CONVERTED_AT_ONCE = 8_192
_READ_AT_ONCE = 2**20  # bytes of a column
_KEPT_OPEN = 64
_CONVERTED_KIND = "arrow1"


class ParquetTable(FileTable):
    """The rows of a file, from a copy in which single rows are found fast."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        self._converted = cached(self.file, _CONVERTED_KIND, partial(_convert, self.file))
        last = _reader(self._converted).num_record_batches - 1
        if last >= 0:
            self.length = last * _ROWS_PER_BATCH + self._batch(last).num_rows

    def row(self, index: int) -> Row:
        """Row `index`, from 0.

        Raises:
            BadRow: It cannot be read.
        """
        place = f"{self.file.shown}, row {index + 1}"
        batch = self._batch(index // _ROWS_PER_BATCH)
        fields = plain_row(batch.slice(index % _ROWS_PER_BATCH, 1), place)
        return Row(uid=f"{self.name}/{index + 1}", place=place, fields=fields)

    def _batch(self, number: int) -> "pa.RecordBatch":
        try:
            return _reader(self._converted).get_batch(number)
        except OSError as error:
            raise UserError(f"Cannot read {str(self._converted)!r}, a copy of Parquet rows: {error}.") from error


# Read and not mapped: every touched page of a mapped file would count as this process's memory. A reader has no
# position, so threads can share it; each process opens its own.
@lru_cache(maxsize=_KEPT_OPEN)
def _reader(path: Path) -> "pa.ipc.RecordBatchFileReader":
    import pyarrow as pa

    return pa.ipc.open_file(pa.OSFile(str(path)))


def _convert(file: SourceFile, target: Path) -> None:
    """Write the file as Arrow, never holding it whole; every batch but the last has `_ROWS_PER_BATCH` rows."""
    import pyarrow as pa

    batches = _batches(file)
    rest = next(batches)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, rest.schema) as writer:
        for batch in batches:
            rows = pa.concat_batches([rest, batch])
            full = rows.num_rows - rows.num_rows % _ROWS_PER_BATCH
            writer.write_table(pa.Table.from_batches([rows.slice(0, full)]), max_chunksize=_ROWS_PER_BATCH)
            rest = rows.slice(full)
        if rest.num_rows:
            writer.write_batch(rest)


def _batches(file: SourceFile) -> "Iterator[pa.RecordBatch]":
    """Yield an empty batch, and then the rows of a file, not too many at once."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without these two, whole columns of a row group are fetched at once.
        with parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=_READ_AT_ONCE) as source:
            schema = pa.schema([column.with_type(_plain(column.type)) for column in source.schema_arrow])
            # Its other makers of empty batches import pandas: 30 MiB and a second.
            yield pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], schema=schema)
            # Group by group: pyarrow cannot make one batch of nested columns from two groups. Threads would keep
            # memory.
            for group in range(source.num_row_groups):
                for batch in source.iter_batches(_ROWS_CONVERTED_AT_ONCE, row_groups=[group], use_threads=False):
                    yield batch.cast(schema)
    except (pa.ArrowException, OSError) as error:
        reason = one_line(str(error)).rstrip(".") or type(error).__name__
        raise UserError(f"Cannot read the Parquet file {file.shown!r}: {reason}.") from error


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


class ParquetFiles(FileSource):
    """Problems from Parquet files, one per row.

    The verifier finds every column of the row, and the answer as a string under `answer`. The uid is `<file name>/<row
    number from 1>`; of several files with the same name, with the folders in which they differ.

    Parquet can only be read in groups of many rows. So each file is converted once to an uncompressed Arrow file in the
    folder `$ASYMGRPO_CACHE` (default `~/.cache/asymgrpo`), in which single rows are found fast; it takes as much space
    there as its content without compression.

    Args:
        path: The file, relative to the working directory, a pattern such as `data/*.parquet`, or a list of both.
        prompt_field: The column of the prompt, a string that is not empty, or a chat, whose last message of the user
            is the problem; for a field within it, names joined by dots: `extra_info.question`, `messages.0.content`.
        answer_field: The column of the right answer, a string that is not empty, a number or a date; named likewise.
            Null: the verifier reads other fields.
        verifier: The verifier that judges the completions; exact match if left out.
        reading: How a row becomes a problem, where these fields do not say it all: chats and choices, references
            inside solutions, JSON in texts.

    Raises:
        UserError: A file cannot be read, or there is no row.
    """

    table_class = ParquetTable
