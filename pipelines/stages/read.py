"""Read a shard into parcels: its units, cut as it is read from front to back, each with its rows.

A shard that breaks off keeps the rows before the break; one row, `unreadable_shard`, stands for the rest.
"""

import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.config import RunFailed
from pipelines.sink.receipt import Redo
from pipelines.source.formats import Format, Unreadable
from pipelines.source.shards import Shard, check_unchanged
from pipelines.source.units import UNREADABLE_SHARD, Tail, Unit, UnitSize
from pipelines.stages.decode import counted, decode
from pipelines.stages.parcel import Parcel
from pipelines.stages.pieces import Cursor, Piece, empty, error_row, finished

LOOKED_AT = 8  # shards whose rows are counted before anything is read
SMALL_BYTES = 2**18  # packed; those beyond fill units of the usual size


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpec:
    """How all shards of a run are read."""

    schema: pa.Schema  # of the input's columns in the output, from `corpus_schema`
    size: UnitSize
    max_row_bytes: int
    columns: tuple[str, ...] | None = None  # source.columns; None: a column that the schema lacks is told


def read_units(
    shard: Shard,
    spec: ReadSpec,
    *,
    done: Sequence[tuple[int, int]] = (),
    redo: Sequence[Redo] = (),
    limit: int | None = None,
    ends_here: bool = False,
    leads: bool = False,
    tail: Tail | None = None,
) -> Iterator[Parcel]:
    """The units of a shard that are not done, in row order, each as soon as the next one has begun.

    Rows come in `spec.schema`, then `_row` (int64), `_error_type`, `_error`. `done` are row ranges to leave out, at
    which units end. The unit that ends where the shard does has `last`; where that row is done already, or the shard
    has none, it is a unit without rows. `limit` is the row of the shard before which to stop: the shard does not end
    there, so no unit has `last`, and a later run with a higher limit goes on behind it; with `ends_here` the unit
    before it is `limited`. Units to `redo`, in row order, are cut as they were, whatever the size. With `leads` the
    first of the others are small, with a `tail` those that are near the end of the run.
    """
    cursor = Cursor(done, limit)
    cut = _Cut(shard, spec, redo, leads=leads, tail=tail)
    for piece in _pieces(shard, spec, cursor):
        yield from cut.add(piece)
    yield from cut.end(cursor.row, last=not cursor.full(), limited=cursor.full() and ends_here)


def _pieces(shard: Shard, spec: ReadSpec, cursor: Cursor) -> Iterator[Piece]:
    """The shard's pieces, and one for what could not be read."""
    if cursor.full():
        return
    try:
        yield from decode(shard, spec.schema, spec.max_row_bytes, spec.columns is None, cursor)
        check_unchanged(shard)
    except Unreadable as error:
        cursor.skip_done()
        if not cursor.full():
            yield error_row(spec.schema, cursor.row, UNREADABLE_SHARD, f"from row {cursor.row} on: {error}")
            cursor.row += 1


class _Cut:
    """Pieces in, units out: one is held back until it is known whether the shard ends with it."""

    def __init__(self, shard: Shard, spec: ReadSpec, redo: Sequence[Redo], *, leads: bool, tail: Tail | None) -> None:
        self._shard = shard
        self._spec = spec
        self._redo = redo
        self._redo_starts = [unit.start for unit in redo]
        self._bound = sys.maxsize  # row before which the unit ends in any case
        self._again: Redo | None = None  # the unit is this one, once more
        self._held: list[pa.Table] = []
        self._start = 0
        self._rows = 0
        self._bytes = 0
        self._left_out: Counter[str] = Counter()
        self._leads, self._tail = leads, tail
        self._number = 0  # of units, but for those to redo, that were cut

    def add(self, piece: Piece) -> Iterator[Parcel]:
        """The units that are complete now that `piece` follows."""
        if self._rows and piece.start != self._start + self._rows:
            yield self._parcel(last=False)
        sums = np.cumsum(piece.sizes)
        at, rows = 0, len(piece.sizes)
        while at < rows:
            row = piece.start + at
            if self._rows and row >= self._bound:
                yield self._parcel(last=False)
            if not self._rows:
                self._begin(row)
            if not at:  # a piece over several units is told with the first of them
                self._left_out.update(piece.left_out)
            before = int(sums[at - 1]) if at else 0
            take = min(rows - at, self._bound - row)
            if not self._again:
                room = int(np.searchsorted(sums, before + self._spec.size.bytes - self._bytes, side="right")) - at
                most = self._spec.size.rows_of(self._number, self._start, leads=self._leads, tail=self._tail)
                take = min(take, room, most - self._rows)
            if take <= 0 and self._rows:
                yield self._parcel(last=False)
                continue
            take = max(1, take)  # a row larger than a unit is one of its own
            self._held.append(piece.rows.slice(at, take))
            self._rows += take
            self._bytes += int(sums[at + take - 1]) - before
            at += take

    def _begin(self, row: int) -> None:
        """A unit whose first row is `row`: one to redo, or one that ends before the next of those."""
        self._start = row
        after = bisect_right(self._redo_starts, row)
        here = self._redo[after - 1] if after else None
        self._again = here if here is not None and row < here.stop else None
        following = self._redo_starts[after] if after < len(self._redo) else sys.maxsize
        self._bound = self._again.stop if self._again else following

    def end(self, row: int, *, last: bool, limited: bool) -> Iterator[Parcel]:
        """What is held, and where the shard ends with rows that were done, a unit without rows behind them."""
        reached = self._start + self._rows
        if self._rows:
            yield self._parcel(last=last and reached == row, limited=limited and reached == row)
        if last and (reached < row or not reached):
            self._start, self._again = row, None
            yield self._parcel(last=True)

    def _parcel(self, *, last: bool, limited: bool = False) -> Parcel:
        unit = Unit(
            shard=self._shard.path,
            identity=self._shard.identity,
            start=self._start,
            stop=self._start + self._rows,
            last=last,
            limited=limited,
        )
        held = self._held or [finished(0, empty(self._spec.schema, 0), [], {}).rows]
        rows = pa.concat_tables(held).combine_chunks()
        numbers = pa.array(np.arange(unit.start, unit.stop, dtype=np.int64))
        rows = rows.add_column(len(self._spec.schema.names), pa.field("_row", pa.int64()), numbers)
        left_out = dict(self._left_out)
        self._number += self._again is None
        self._held, self._rows, self._bytes, self._left_out = [], 0, 0, Counter()
        return Parcel(unit=unit, rows=rows, redo=self._again, read_at=time.time(), left_out=left_out)


# ---------------------------------------------------------------------------------------------- counting


def count_rows(shard: Shard, at_most: int, *, max_row_bytes: int = 16 * 2**20) -> int:
    """Rows of a shard, as `read_units` counts them, or `at_most` if there are more.

    Parquet tells by its footer; of other formats the beginning is read. What is unreadable counts as one row.
    """
    try:
        return min(at_most, counted(shard, at_most, max_row_bytes))
    except Unreadable:
        return min(at_most, 1)


def rows_a_unit(shards: Sequence[Shard], spec: ReadSpec) -> float:
    """About how many rows a unit has, by some of the shards: small ones are counted, others fill theirs."""
    some = shards[:: max(1, len(shards) // LOOKED_AT)][:LOOKED_AT]
    rows = [_rows_of_its_first_unit(shard, spec) for shard in some]
    return sum(rows) / len(rows) if rows else float(spec.size.rows)


def _rows_of_its_first_unit(shard: Shard, spec: ReadSpec) -> int:
    if shard.size >= SMALL_BYTES and shard.format is not Format.PARQUET:
        return spec.size.rows
    try:
        return max(1, count_rows(shard, spec.size.rows, max_row_bytes=spec.max_row_bytes))
    except (OSError, RunFailed):  # who reads it will say so
        return spec.size.rows


def apply_limit(
    shards: Sequence[Shard], limit: int | None, *, max_row_bytes: int = 16 * 2**20
) -> list[tuple[Shard, int | None]]:
    """The shards that hold the first `limit` rows, in order, the last with the rows it may still give (else None)."""
    if limit is None:
        return [(shard, None) for shard in shards]
    chosen: list[tuple[Shard, int | None]] = []
    left = limit
    for shard in shards:
        rows = count_rows(shard, left + 1, max_row_bytes=max_row_bytes)
        chosen.append((shard, left if rows > left else None))
        left -= min(rows, left)
        if left == 0:
            break
    return chosen
