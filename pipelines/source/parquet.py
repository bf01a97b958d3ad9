"""A Parquet shard opened so that it can be read a little at a time, whatever its footer says.

A footer is no bound on memory: 208 KB of dictionary and run lengths held 2 GB of text and called it 205 KB. But no
value is larger than the page that holds it (or its dictionary), and the sizes of pages are seen as they are read
(`pages.py`). So a batch has only so many rows that even the largest value in each of them fits. A row of a nested
column can hold any number of values: its texts are left as indices into their dictionary until a caller has seen how
large the row would be.
"""

import os
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.source import thrift
from pipelines.source.formats import Unreadable, Watched, short
from pipelines.source.pages import Pages
from pipelines.storage import Changed

# What Arrow raises over broken bytes.
BROKEN = (Changed, pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, KeyError, IndexError, TypeError)

_BATCH_BYTES = 2 * 2**20  # on average, where the footer is honest
_WORST_BATCH_BYTES = 64 * 2**20  # of one column, where each row holds its largest value
_MOST_ROWS = 1024
_MOST_COLUMNS = 10_000
_DELTA_BYTE_ARRAY = 7  # each text may repeat the one before it, at the cost of a byte
_OPTIONS = {
    "pre_buffer": False,
    "buffer_size": 2**20,  # read of each column at once, instead of all of its chunk
    # Types from elsewhere are not brought to life; `schema.py` refuses them by name.
    "arrow_extensions_enabled": False,
    # The old INT96 reaches beyond the years that nanoseconds in 64 bits can hold, and would wrap without a word.
    "coerce_int96_timestamp_unit": "us",
}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A column chunk as the footer tells it."""

    start: int  # in the file
    packed: int  # bytes, headers included
    unpacked: int
    values: int
    dictionary: bool
    encodings: tuple[int, ...]
    least: bytes | None  # statistics, as plain values
    most: bytes | None


@dataclass(frozen=True, slots=True)
class ParquetShard:
    """An open Parquet shard, ready to be decoded."""

    arrow: pq.ParquetFile
    file: Watched
    groups: list[list[_Chunk]]  # row group, leaf
    pages: Pages

    def batch_rows(self, group: int) -> int:
        """Rows of a row group to decode together."""
        told = self.arrow.metadata.row_group(group)
        rows = _BATCH_BYTES // max(1, int(told.total_byte_size) // max(1, int(told.num_rows)))
        for leaf, chunk in enumerate(self.groups[group]):
            if self.arrow.schema.column(leaf).physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
                if chunk.dictionary:
                    rows = min(rows, _WORST_BATCH_BYTES // max(1, self._first_page(chunk.start)))
                elif _DELTA_BYTE_ARRAY in chunk.encodings:
                    rows = min(rows, 16)
        return max(1, min(_MOST_ROWS, rows))

    def _first_page(self, start: int) -> int:
        """Unpacked bytes of the page at `start`, the dictionary if the chunk has one."""
        self.file.seek(start)
        self.file.read(1024)
        return self.pages.first.get(start, 2**20)


def open_parquet(file: Watched) -> pq.ParquetFile:
    """The shard with its footer read: enough for its columns and the number of its rows.

    Raises:
        Unreadable: it is no Parquet.
    """
    try:
        arrow = pq.ParquetFile(file, **_OPTIONS)
        names = arrow.schema_arrow.names
    except BROKEN as error:
        file.raise_failure()
        raise Unreadable(f"Parquet: {short(error)}") from error
    if arrow.metadata.num_columns > _MOST_COLUMNS:
        raise Unreadable(f"Parquet: {arrow.metadata.num_columns:,} columns, more than {_MOST_COLUMNS:,}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"Parquet: column {twice!r} is there twice")
    return arrow


def open_to_decode(file: Watched) -> ParquetShard:
    """The shard, its bounds known; no row yet.

    Raises:
        Unreadable: it is no Parquet.
    """
    arrow = open_parquet(file)
    groups = _footer(file, arrow)
    nested = ["." in arrow.schema.column(leaf).path for leaf in range(arrow.metadata.num_columns)]
    # A row group without rows is not read, and some writers leave its offsets blank.
    filled = (group for index, group in enumerate(groups) if arrow.metadata.row_group(index).num_rows)
    chunks = ((chunk, deep) for group in filled for chunk, deep in zip(group, nested, strict=True))
    pages = Pages([(chunk.start, chunk.start + chunk.packed, deep) for chunk, deep in chunks])
    file.seen = pages.saw
    try:
        indexed = [arrow.schema.column(leaf).path for leaf in _indexed(arrow, groups)]
        if indexed:
            arrow = pq.ParquetFile(file, metadata=arrow.metadata, read_dictionary=indexed, **_OPTIONS)
    except BROKEN as error:
        file.raise_failure()
        raise Unreadable(f"Parquet: {short(error)}") from error
    return ParquetShard(arrow, file, groups, pages)


def has_nanoseconds(file: Watched, arrow: pq.ParquetFile, name: str) -> bool:
    """Whether the footer's statistics of a column of nanoseconds show any that are no whole microsecond."""
    leaves = [leaf for leaf in range(arrow.metadata.num_columns) if arrow.schema.column(leaf).path == name]
    bounds = [
        bound for group in _footer(file, arrow) for leaf in leaves for bound in (group[leaf].least, group[leaf].most)
    ]
    whole = [int.from_bytes(bound, "little", signed=True) for bound in bounds if isinstance(bound, bytes)]
    return any(bound % 1000 for bound in whole)


def _footer(file: Watched, arrow: pq.ParquetFile) -> list[list[_Chunk]]:
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    try:
        told, _ = thrift.struct(file.read(length))
        groups = [[_chunk(column[3]) for column in group[1]] for group in told.get(4, [])]
    except (thrift.Cut, thrift.Malformed, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable("Parquet: a footer that is none") from error
    metadata = arrow.metadata
    if len(groups) != metadata.num_row_groups or any(len(group) != metadata.num_columns for group in groups):
        raise Unreadable("Parquet: a footer with row groups that lack columns")
    return groups


def _chunk(told: thrift.Struct) -> _Chunk:
    """From a ColumnMetaData, by Parquet's own field numbers."""
    start, dictionary = int(told[9]), told.get(11)
    statistics = told.get(12, {})
    return _Chunk(
        start=int(dictionary) if dictionary and 0 < int(dictionary) < start else start,
        packed=int(told[7]),
        unpacked=int(told[6]),
        values=int(told[5]),
        dictionary=bool(dictionary) or any(encoding in (2, 8) for encoding in told[2]),
        encodings=tuple(told[2]),
        least=statistics.get(6, statistics.get(2)),
        most=statistics.get(5, statistics.get(1)),
    )


def _indexed(arrow: pq.ParquetFile, groups: list[list[_Chunk]]) -> list[int]:
    """The nested string and binary leaves that are nothing but indices into a dictionary.

    Where a writer gave its dictionary up for plain values, Arrow would build one of all values seen, over and over;
    such a leaf takes as much room in the file's own account as it does in memory.
    """
    leaves = []
    for leaf in range(arrow.metadata.num_columns):
        column = arrow.schema.column(leaf)
        if column.physical_type == "BYTE_ARRAY" and "." in column.path and column.logical_type.type != "DECIMAL":
            chunks = [group[leaf] for group in groups]
            room = sum(2**21 + 5 * chunk.values for chunk in chunks)
            if any(chunk.dictionary for chunk in chunks) and room >= sum(chunk.unpacked for chunk in chunks):
                leaves.append(leaf)
    return leaves
