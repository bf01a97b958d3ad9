"""Parquet: row group by row group, a few rows at a time, texts decoded only as far as a piece may grow."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.source.formats import Unreadable, Watched, short
from pipelines.source.parquet import BROKEN, ParquetShard, open_to_decode
from pipelines.stages.columns import fit, row_sizes
from pipelines.stages.pieces import PIECE_BYTES, PIECE_ROWS, Bad, Cursor, Piece, error_row, finished


def parquet_pieces(
    file: Watched, schema: pa.Schema, max_row_bytes: int, carry_all: bool, cursor: Cursor
) -> Iterator[Piece]:
    shard = open_to_decode(file)
    metadata = shard.arrow.metadata
    names = [name for name in schema.names if name in shard.arrow.schema_arrow.names]
    unknown = [name for name in shard.arrow.schema_arrow.names if name not in schema.names] if carry_all else []
    for group in range(metadata.num_row_groups):
        if cursor.full():
            return
        told = metadata.row_group(group)
        if cursor.wants_none_of(told.num_rows):
            cursor.take(told.num_rows)
            continue
        yield from _group(shard, group, names, _Held(schema, max_row_bytes, unknown), cursor)


def _group(shard: ParquetShard, group: int, names: list[str], held: "_Held", cursor: Cursor) -> Iterator[Piece]:
    """The wanted rows of one row group; where it breaks, the cursor stands behind the last row that was yielded."""
    rows = shard.arrow.metadata.row_group(group).num_rows
    end = cursor.row + rows
    reached = cursor.row
    try:
        for piece in _group_pieces(shard, group, names, held, cursor):
            yield piece
            reached = piece.start + piece.rows.num_rows
        if not cursor.full() and cursor.row != end:
            raise Unreadable(f"{cursor.row - end + rows} rows of {rows}")
    except (Unreadable, *BROKEN) as error:
        with suppress(*BROKEN):
            for piece in held.rest():
                yield piece
                reached = piece.start + piece.rows.num_rows
        cursor.row = reached
        shard.file.raise_failure()
        raise Unreadable(f"Parquet row group {group}: {short(error)}") from error


def _group_pieces(shard: ParquetShard, group: int, names: list[str], held: "_Held", cursor: Cursor) -> Iterator[Piece]:
    batches = shard.arrow.iter_batches(
        batch_size=shard.batch_rows(group),
        row_groups=[group],
        columns=names,
        use_threads=False,
        use_pandas_metadata=False,
    )
    for batch in batches:
        start = cursor.row
        for low, high in cursor.take(batch.num_rows):
            yield from held.add(start + low, batch.slice(low, high - low))
        if cursor.full():
            break
    yield from held.rest()


class _Held:
    """Batches, strings still as indices, until they make a piece: only then, and only so many, are decoded."""

    def __init__(self, schema: pa.Schema, max_row_bytes: int, unknown: Sequence[str]) -> None:
        self._schema = schema
        self._unknown = unknown  # columns of the shard that the schema lacks
        self._max = max_row_bytes
        self._batches: list[pa.RecordBatch] = []
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._start = 0
        self._rows = 0
        self._bytes = 0

    def add(self, start: int, batch: pa.RecordBatch) -> Iterator[Piece]:
        sizes = row_sizes(batch)
        at = 0
        while at < batch.num_rows:
            if sizes[at] > self._max:
                yield from self.rest()
                reason = f"row {start + at}: {int(sizes[at]):,} bytes, more than {self._max:,}"
                yield error_row(self._schema, start + at, "too_large", reason)
                at += 1
                continue
            large = np.flatnonzero(sizes[at:] > self._max)
            until = at + int(large[0]) if len(large) else batch.num_rows
            room = np.searchsorted(np.cumsum(sizes[at:until]), PIECE_BYTES - self._bytes, side="right")
            stop = min(until, at + max(1, int(room)), at + PIECE_ROWS - self._rows)
            if self._rows and start + at != self._start + self._rows:
                yield from self.rest()
            self._start = self._start if self._rows else start + at
            self._batches.append(batch.slice(at, stop - at))
            self._sizes.append(sizes[at:stop])
            self._rows += stop - at
            self._bytes += int(sizes[at:stop].sum())
            at = stop
            if self._bytes >= PIECE_BYTES or self._rows >= PIECE_ROWS or at < until:
                yield from self.rest()

    def rest(self) -> Iterator[Piece]:
        if not self._rows:
            return
        table = pa.Table.from_batches(self._batches)
        start, rows, sizes = self._start, self._rows, np.concatenate(self._sizes)
        self._batches, self._sizes, self._rows, self._bytes = [], [], 0, 0
        bad: Bad = {}
        columns = {name: table[name] for name in table.column_names}
        left_out = dict.fromkeys(self._unknown, rows)
        yield finished(start, fit(columns, rows, self._schema, start, bad), sizes, bad, left_out)
