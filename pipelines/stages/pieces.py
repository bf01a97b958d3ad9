"""Piece: some consecutive rows of a shard as a decoder hands them on; Cursor: where in the shard it is.

A bad row is a row with an error in its place. What is done already is counted, not decoded further than its format
forces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.source.lines import Oversize, excerpt

PIECE_BYTES = 2**20
PIECE_ROWS = 1024

ERRORS = [pa.field("_error_type", pa.string()), pa.field("_error", pa.string())]

Bad = dict[int, tuple[str, str]]  # row of a piece -> error type, error


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive rows of a shard."""

    start: int  # row of the shard
    rows: pa.Table  # the run's schema, `_error_type`, `_error`
    sizes: npt.NDArray[np.int64]  # bytes of each row, decoded
    left_out: Mapping[str, int] = field(default_factory=dict)  # columns that the run's schema lacks: rows with a value


class Cursor:
    """Where in a shard a decoder is, and which rows it shall hand on."""

    def __init__(self, done: Sequence[tuple[int, int]], limit: int | None) -> None:
        self.row = 0  # next one to come
        self.limit = limit
        self._done = sorted((start, stop) for start, stop in done if stop > start)

    def full(self) -> bool:
        """Whether no further row is wanted."""
        return self.limit is not None and self.row >= self.limit

    def take(self, rows: int) -> list[tuple[int, int]]:
        """Go on by `rows`; which of them are wanted, as ranges counted from where the cursor was."""
        begin = self.row
        end = begin + rows if self.limit is None else min(begin + rows, self.limit)
        self.row = max(begin, end)
        wanted, at = [], begin
        for start, stop in self._done:
            if stop > at and start < end:
                if start > at:
                    wanted.append((at - begin, start - begin))
                at = max(at, stop)
        if at < end:
            wanted.append((at - begin, end - begin))
        return wanted

    def skip_done(self) -> None:
        """Go on to the next row that is not done."""
        for start, stop in self._done:
            if start <= self.row < stop:
                self.row = stop

    def wants_none_of(self, rows: int) -> bool:
        """Whether the next `rows` rows are all done, or beyond the limit."""
        before = self.row
        wanted = self.take(rows)
        self.row = before
        return not wanted


def finished(
    start: int,
    table: pa.Table,
    sizes: Sequence[int] | npt.NDArray[np.int64],
    bad: Bad,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> Piece:
    """A piece whose bad rows have an error; what could be read of them, they have as well."""
    for position, error in enumerate(ERRORS):
        told = [bad[row][position] if row in bad else None for row in range(table.num_rows)] if bad else None
        table = table.append_column(error, pa.array(told, error.type) if told else pa.nulls(table.num_rows, error.type))
    return Piece(start, table, np.asarray(sizes, dtype=np.int64), left_out)


def error_row(schema: pa.Schema, start: int, error_type: str, error: str) -> Piece:
    """One row that stands for what could not be read."""
    return finished(start, empty(schema, 1), [len(error)], {0: (error_type, error)})


def empty(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table({field.name: pa.nulls(rows, field.type) for field in schema}, schema=schema)


def fixed_bytes(schema: pa.Schema) -> int:
    """Bytes that a row takes beside its texts."""
    return 8 * len(schema.names)


def too_long(number: int, line: Oversize, max_row_bytes: int) -> str:
    """Why a line is left out that was never held whole."""
    return f"line {number}: {line.length:,} bytes, more than {max_row_bytes:,}: {excerpt(line.excerpt)}"
