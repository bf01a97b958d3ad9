"""Ledger: all receipts of an output, append-only, a Delta table at <sink>/ledger. To append to it is the commit.

Its order is that of (epoch, seq): each run that begins gets the next epoch and fences off the earlier ones, and
numbers its receipts. Rows of the table may lie in any file, so the ledger may be compacted at will.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import ColumnProperties, CommitProperties, DeltaTable, WriterProperties, write_deltalake

from pipelines import storage
from pipelines.memory import give_back
from pipelines.sink.committed import Change, Committed
from pipelines.sink.decisions import START, Counting, RunEnd
from pipelines.sink.fenced import FencedTable, check_inside
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

LEDGER = pa.schema(
    [
        ("epoch", pa.int64()),  # of the run that appended
        ("seq", pa.int64()),  # 0, 1, … within the epoch
        ("shard", pa.string()),
        ("identity", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("last", pa.bool_()),
        ("limited", pa.bool_()),
        ("fingerprint", pa.string()),
        ("run", pa.string()),
        ("attempt", pa.string()),
        ("data_file", pa.string()),
        ("errors_file", pa.string()),
        ("data_bytes", pa.int64()),
        ("data_sha256", pa.string()),
        ("errors_bytes", pa.int64()),
        ("errors_sha256", pa.string()),
        ("rows_in", pa.int64()),
        ("rows_ok", pa.int64()),
        ("rows_error", pa.int64()),
        ("errors_by_type", pa.map_(pa.string(), pa.int64())),
        ("columns_left_out", pa.map_(pa.string(), pa.int64())),
        ("rows_carried", pa.int64()),
        ("rows_shared", pa.int64()),
        ("saved_prompt_tokens", pa.int64()),
        ("saved_output_tokens", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("device_seconds", pa.float64()),
        ("started_at", pa.float64()),
        ("finished_at", pa.float64()),
        ("gold_rows", pa.int64()),
        ("gold_correct", pa.int64()),
        ("measures", pa.string()),
        ("replaces", pa.string()),
        ("removed", pa.bool_()),
    ]
)
_FIELDS = tuple(field.name for field in fields(Receipt))
_COUNTS = ("errors_by_type", "columns_left_out")  # maps
_UNREAD = ("measures",)  # of 10^5 receipts they would take 40 MB, which only a report needs: see `measured`
_LATE = {"rows_shared": 0}  # columns that an older ledger lacks, and what they hold of its receipts
# Held once in memory, however many receipts have them: most units are of one size.
_ALIKE = {"shard", "identity", "fingerprint", "run", "errors_sha256", "replaces", "start", "stop", "rows_in", "rows_ok"}
_ALIKE |= {"cached_tokens", "output_tokens"}
_READ = [name for name in LEDGER.names if name not in _UNREAD]
_SEQ_BITS = 40  # for the numbers of one run's receipts, where epoch and number are one integer
_ORDER = [("epoch", "ascending"), ("seq", "ascending")]
SLICE_ROWS = 8192  # of a file of the ledger, in memory as columns
COMPACT_FILES = 8  # from so many files on, compaction is worth a commit
COMPACT_EVERY = 50  # commits of one run: so many small files at most are left to the start after a kill
FILE_BYTES = 16 * 2**20  # of a file that is compacted no more: some 70,000 receipts
# Nobody looks receipts up by a range of values; statistics made up three quarters of a commit in the log. And a file of
# a few receipts takes a third less without dictionaries.
_SMALL = WriterProperties(
    compression="ZSTD",
    default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
)
_JOINED = WriterProperties(
    compression="ZSTD",
    max_row_group_size=SLICE_ROWS,
    default_column_properties=ColumnProperties(statistics_enabled="NONE"),
)
KEEP_HOURS = 24  # for which a compacted ledger's old files stay, for whoever is reading them


class Ledger:
    """The single truth of what was done and paid. Readers need no epoch; a writer begins one."""

    def __init__(self, sink_uri: str, table: FencedTable | None) -> None:
        self.uri = storage.join(sink_uri, "ledger")
        self._table = table
        self._epoch: int | None = None
        self._seq = 0
        self._view: Committed | None = None
        self._counts: Counting = Counting()
        self._end = START
        self._view_version: int | None = None  # of the table when the view was read
        self._appended = 0  # files since the last compaction
        self._newest: tuple[str, dict[str, Receipt]] = ("", {})  # the last run of the ledger as it was read, by attempt

    @classmethod
    def open(cls, sink_uri: str, *, create: bool) -> Self:
        """The ledger of the output at `sink_uri`; without `create`, one that is not there reads as empty."""
        uri = check_inside(sink_uri, "ledger")
        return cls(sink_uri, FencedTable.create(uri, LEDGER, growing=True) if create else FencedTable.open(uri))

    def made(self) -> Self:
        """This ledger, made empty if it is not there; what was read of it stays read."""
        if self._table is None:
            self._table, self._view = FencedTable.create(self.uri, LEDGER, growing=True), None
        self._table.check(LEDGER, growing=True)
        return self

    @property
    def epoch(self) -> int:
        """Of this writer; an error before `begin_epoch`."""
        if self._epoch is None:
            raise RuntimeError(f"{self.uri}: begin_epoch first")
        return self._epoch

    def begin_epoch(self, run: str = "", *, above: int = 0) -> int:
        """Become the writer of this output: whoever wrote before is refused from here on, and told of `run`.

        `above`: the epoch of the other tables. Normally they are not ahead; they are if the ledger was restored or
        lost, and a run that began below them could write nothing. Returns the epoch.
        """
        table, ahead = self._writable(), above
        table.refresh()
        self._epoch = table.begin(ahead + 1 if ahead > table.epoch() else None, run=run)
        self._seq = 0
        if self._view_version is None or table.version() != self._view_version + 1:
            self._view = None  # what the predecessor still appended belongs into the view
        table.grow(LEDGER, self._epoch)  # of an output that is older than one of our columns
        return self._epoch

    def append(self, receipts: Sequence[Receipt]) -> Change:
        """Commit these units. Returns what that changes in the current files.

        Raises:
            Fenced: another run has begun since.
            StoreFailed: the store stayed away; the units may or may not be committed, the next start knows.
        """
        view = self.committed()
        if not receipts:
            return Change(new=(), gone=())
        rows = _to_table(receipts, self.epoch, self._seq)

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(table, rows, mode="append", commit_properties=properties, writer_properties=_SMALL)

        self._writable().commit(self.epoch, write)
        self._seq += len(receipts)
        self._appended += 1
        self._end = (self.epoch << _SEQ_BITS) + self._seq - 1
        if self._appended >= COMPACT_EVERY:
            self.compact()
        held = [replace(receipt, measures=None) for receipt in receipts]
        if all(receipt.run == self._newest[0] for receipt in held):
            self._newest[1].update((receipt.attempt, receipt) for receipt in held)
        else:  # a run at work: what it replaces should not stay in memory
            self._newest = "", {}
        return view.add(held)

    def committed(self) -> Committed:
        """What counts, as `count` says. Read once, then kept up to date by `append`."""
        if self._view is None:
            self._view = self.fold(self._counts)
            self._view_version = None if self._table is None else self._table.version()
        return self._view

    def count(self, counting: Counting) -> None:
        """From here on these count, where all did. What comes next in the ledger must be among them."""
        if counting != self._counts:
            self._counts, self._view = counting, None

    def fold(self, counting: Counting, entries: Sequence[tuple[int, Receipt]] | None = None) -> Committed:
        """What counts of the ledger as it is now, or of these entries."""
        view = Committed()
        if counting == Counting():
            view.add(self._all()[1] if entries is None else (receipt for _, receipt in entries))
            return view
        for place, receipt in self.entries() if entries is None else entries:
            if counting.takes(place, receipt.fingerprint):
                view.add([receipt], shown_at=counting.shown_at(place))
            else:
                view.pass_over(receipt)
        return view

    def end(self) -> int:
        """The last place in the ledger, as it was last read; `START` if it is empty."""
        if self._view is None:
            self.committed()
        return self._end

    def ends(self) -> list[RunEnd]:
        """The last receipt of each run, in ledger order."""
        found: dict[str, RunEnd] = {}
        for place, receipt in self.entries():
            found.pop(receipt.run, None)
            found[receipt.run] = RunEnd(receipt.run, place, receipt.finished_at)
        return list(found.values())

    def of_run(self, run: str) -> Collection[Receipt]:
        """The receipts of a run, each once, whether or not they count still. Those of the last run of the ledger are at
        hand until another appends: so that a start after a kill need not read it twice."""
        self.committed()
        if self._newest[0] == run:
            return self._newest[1].values()
        return {receipt.attempt: receipt for receipt in self.receipts() if receipt.run == run}.values()

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt in the ledger, in order; one whose commit was written twice comes twice."""
        return iter(self._all()[1])

    def entries(self) -> list[tuple[int, Receipt]]:
        """Every receipt behind its place, an integer that only grows; as `receipts`."""
        return list(zip(*self._all(), strict=True))

    def _all(self) -> tuple[list[int], list[Receipt]]:
        """Places and receipts, in order."""
        shared: dict[Any, Any] = {}
        pieces = [] if self._table is None else self._table.gathered(partial(_pieces, shared=shared))
        pa.default_memory_pool().release_unused()  # 29 MB after 10^5 receipts
        give_back()  # 35 MB, of the threads that read
        pieces.sort(key=itemgetter(0))
        places = [place for piece in pieces for place in piece[0]]
        receipts = [receipt for piece in pieces for receipt in piece[1]]
        pieces.clear()
        if any(before > after for before, after in pairwise(places)):  # files overlap: some were compacted
            order = sorted(range(len(places)), key=places.__getitem__)
            places, receipts = [places[at] for at in order], [receipts[at] for at in order]
        self._end = places[-1] if places else START
        run = receipts[-1].run if receipts else ""
        self._newest = run, {receipt.attempt: receipt for receipt in receipts if receipt.run == run}
        return places, receipts

    def measured(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """These receipts, with the measures that they have in the ledger and not in memory."""
        wanted = {receipt.attempt: receipt for receipt in receipts}
        told = [] if self._table is None or not wanted else self._table.gathered(partial(_measures, wanted.keys()))
        measures = dict(told)  # one whose commit was written twice comes twice
        return (replace(receipt, measures=measures.get(attempt)) for attempt, receipt in wanted.items())

    def table(self, columns: Sequence[str] = LEDGER.names) -> pa.Table:
        """The ledger as an Arrow table in ledger order, with some of its columns."""
        return self._rows(columns).sort_by(_ORDER).select(list(columns))

    def _rows(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, and those that give the order, in any order."""
        wanted = list(dict.fromkeys((*columns, *(name for name, _ in _ORDER))))
        if self._table is None:
            return LEDGER.empty_table().select(wanted)
        return self._table.read(wanted)

    def compact(self) -> None:
        """Join the small files that appending leaves, and write a checkpoint of the log."""
        table = self._writable()
        table.refresh()
        if len(table.table.file_uris()) < COMPACT_FILES:
            return

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            delta.optimize.compact(
                target_size=FILE_BYTES,
                writer_properties=_JOINED,
                commit_properties=properties,
            )

        table.commit(self.epoch, write, always=False)
        table.tidy(keep_hours=KEEP_HOURS)
        self._appended = 0

    def _writable(self) -> FencedTable:
        if self._table is None:
            raise RuntimeError(f"{self.uri}: opened without create")
        return self._table


def _to_table(receipts: Sequence[Receipt], epoch: int, seq: int) -> pa.Table:
    columns: dict[str, Any] = {"epoch": [epoch] * len(receipts), "seq": range(seq, seq + len(receipts))}
    columns |= {name: [getattr(receipt, name) for receipt in receipts] for name in _FIELDS}
    columns |= {name: [sorted(counts.items()) for counts in columns[name]] for name in _COUNTS}
    return pa.table({name: pa.array(columns[name], LEDGER.field(name).type) for name in LEDGER.names}, schema=LEDGER)


def _pieces(uri: str, shared: dict[Any, Any]) -> list[tuple[list[int], list[Receipt]]]:
    """The receipts in one file of the ledger, and their places in its order, in slices.

    `shared`: what many receipts have, held once for all files.

    Read a slice at a time, and not by delta-rs's dataset: that takes four times the memory and most of a second.
    """
    found: list[tuple[list[int], list[Receipt]]] = []
    with storage.open_input(uri) as file, pq.ParquetFile(file) as parquet:
        for piece in parquet.iter_batches(SLICE_ROWS, columns=_READ, use_threads=False):
            named = [name for name in _FIELDS if name in piece.schema.names]  # an older file may lack some
            columns = {name: _column(piece, name, shared) for name in named}
            places = (_numbers(piece["epoch"]) << _SEQ_BITS) + _numbers(piece["seq"])
            found.append((places.tolist(), Receipt.of_columns(piece.num_rows, columns)))
    return found


def _measures(attempts: Set[str], uri: str) -> list[tuple[str, str]]:
    """Attempt and measures of those of these receipts that are in one file of the ledger and were measured."""
    found: list[tuple[str, str]] = []
    with storage.open_input(uri) as file, pq.ParquetFile(file) as parquet:
        if "measures" not in parquet.schema_arrow.names:  # of an older ledger
            return found
        for piece in parquet.iter_batches(SLICE_ROWS, columns=["attempt", "measures"], use_threads=False):
            pairs = zip(piece["attempt"].to_pylist(), piece["measures"].to_pylist(), strict=True)
            found += [(attempt, text) for attempt, text in pairs if text is not None and attempt in attempts]
    return found


def _column(rows: pa.RecordBatch, name: str, shared: dict[Any, Any]) -> list[Any]:
    column = rows[name]
    if name in _COUNTS:
        empty: Mapping[str, int] = {}
        return [dict(pairs) if pairs else empty for pairs in column.to_pylist()]
    if name in _LATE and column.null_count:
        return [_LATE[name] if value is None else value for value in column.to_pylist()]
    if name in _ALIKE:  # most of them once in this slice, and once in memory
        coded = column.dictionary_encode("encode")
        values = [shared.setdefault(value, value) for value in coded.dictionary.to_pylist()]
        return [values[at] for at in _numbers(coded.indices).tolist()]
    if column.null_count or not pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type):
        listed: list[Any] = column.to_pylist()
        return listed
    numbers: list[Any] = _numbers(column).tolist()
    return numbers


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """A column without nulls. Not by what pyarrow does with pandas, which it imports: a second, and 60 MB."""
    return np.from_dlpack(column)
