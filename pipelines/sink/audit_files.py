"""Audit of files: what the files of each unit hold, read from their bytes, against what its receipt says.

Nothing here is shared with the code that writes them. Memory: a few units at a time.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.sink.receipt import FOOTER_KEY, Receipt

SHOWN = 5  # findings of one check that are told by name; the rest is counted
UNITS_AT_ONCE = 8  # read and held in memory
ASIDE = "_waiting/"  # below data and errors: files of units that wait for their shard to be whole


@dataclass(slots=True)
class Check:
    """One thing that was looked at: how often, and what was found wrong."""

    name: str
    claim: str  # what holds if nothing was found
    of: str  # what was counted
    checked: int = 0
    found: int = 0
    findings: list[str] = field(default_factory=list)  # the first `SHOWN`
    notes: list[str] = field(default_factory=list)  # worth telling, and right

    def find(self, what: str) -> None:
        self.found += 1
        if self.found <= SHOWN:
            self.findings.append(what)


def named(receipt: Receipt) -> str:
    """A unit as people know it."""
    return f"{receipt.shard} rows {receipt.start} to {receipt.stop}"


@dataclass(slots=True)
class _Seen:
    """What the files of one unit hold, and what is wrong with them, by check."""

    wrong: list[tuple[str, str]] = field(default_factory=list)
    units: int = 0  # that are current
    files: int = 0
    data_rows: int = 0
    error_rows: int = 0
    schemas: dict[str, pa.Schema] = field(default_factory=dict)  # by file, "data/…" or "errors/…"


class Files:
    """The checks of files and rows, filled unit by unit."""

    def __init__(self) -> None:
        self.files = Check("files", "each is there, with the receipt's size and sha256", "files")
        self.counts = Check("counts", "files hold as many rows as their receipts say", "units")
        self.rows = Check("rows", "each row of a unit is in data or errors, once", "rows")
        self.footers = Check("footers", "a data file's own receipt is the ledger's", "data files")
        self.schema = Check("schema", "all files of a table have one schema, but for columns that came later", "files")
        self.columns: dict[str, dict[str, tuple[pa.Field, str]]] = {}  # of each table, by name; and its first file
        self.lacking: dict[str, set[str]] = {}  # of each table: columns that some file does not have
        self.data_rows = self.error_rows = 0

    @classmethod
    def of(cls, sink_uri: str, current: Sequence[Receipt], waiting: Sequence[Receipt], *, aside: bool = False) -> Self:
        """What the files of these units hold; of those that wait only whether they are there, as they were written.

        `aside`: the files of current ones may lie aside, too: they are a candidate.
        """
        files = cls()
        for seen in _inspected(sink_uri, current, partial(_inspect, aside=aside)):
            files.take(seen)
        for seen in _inspected(sink_uri, waiting, _inspect_waiting):
            files.take(seen)
        return files

    def checks(self) -> tuple[Check, ...]:
        return self.files, self.counts, self.rows, self.footers, self.schema

    def take(self, seen: _Seen) -> None:
        self.files.checked += seen.files
        self.counts.checked += seen.units
        self.footers.checked += seen.units
        self.data_rows += seen.data_rows
        self.error_rows += seen.error_rows
        self.rows.checked += seen.data_rows + seen.error_rows
        for name, schema in seen.schemas.items():
            self.schema.checked += 1
            self._compare(name, schema)
        for check, what in seen.wrong:
            getattr(self, check).find(what)

    def _compare(self, name: str, schema: pa.Schema) -> None:
        """With the columns of this table's files that were seen before; of one name they have one type."""
        table = name.partition("/")[0]
        before = self.columns.setdefault(table, {})
        lacking = self.lacking.setdefault(table, set())
        lacking |= before.keys() - set(schema.names)  # whether they came later, the table tells
        if before:
            lacking |= set(schema.names) - before.keys()
        for column in schema:
            first, of = before.setdefault(column.name, (column, name))
            if column.type != first.type:
                self.schema.find(f"{name} has other columns than {of}: {column.name} {first.type} / {column.type}")


def _inspected(sink_uri: str, receipts: Sequence[Receipt], inspect: Callable[[str, Receipt], _Seen]) -> Iterator[_Seen]:
    """Each unit's files, a few units at a time, in order."""
    with ThreadPoolExecutor(UNITS_AT_ONCE) as pool:
        for start in range(0, len(receipts), UNITS_AT_ONCE * 4):  # `map` alone would hold the units of all
            some = receipts[start : start + UNITS_AT_ONCE * 4]
            yield from pool.map(inspect, [sink_uri] * len(some), some)


def _inspect(sink_uri: str, receipt: Receipt, *, aside: bool) -> _Seen:
    """A current unit: its files, and the rows in them."""
    seen, unit = _Seen(units=1), named(receipt)
    opened = {file.table: _opened(sink_uri, file, unit, seen, aside=aside) for file in files_of(receipt)}
    data, errors = opened.get("data"), opened.get("errors")
    if data is None or (errors is None and "errors" in opened):
        return seen  # told already, as a file that is not there or cannot be read
    seen.data_rows = data.metadata.num_rows
    seen.error_rows = errors.metadata.num_rows if errors else 0
    if (seen.data_rows, seen.error_rows) != (receipt.rows_ok, receipt.rows_error):
        told = f"{receipt.rows_ok} ok + {receipt.rows_error} errors"
        seen.wrong.append(("counts", f"{unit}: {seen.data_rows} + {seen.error_rows} rows in its files, {told} told"))
    text = (data.metadata.metadata or {}).get(FOOTER_KEY)
    if not _same_receipt(text, receipt):
        seen.wrong.append(("footers", f"data/{receipt.data_file}: {'another receipt' if text else 'no receipt'}"))
    try:
        _rows(receipt, data, errors, seen)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        seen.wrong.append(("rows", f"{unit}: cannot be read ({_first_line(error)})"))
    return seen


def _inspect_waiting(sink_uri: str, receipt: Receipt) -> _Seen:
    """A unit that no reader sees yet: its files are there, or aside."""
    seen = _Seen()
    for file in files_of(receipt):
        _whole(sink_uri, file, named(receipt), seen, aside=True)
    return seen


@dataclass(frozen=True, slots=True)
class File:
    """One of a unit's files, as its receipt tells it."""

    table: str
    name: str
    size: int
    sha256: str

    @property
    def path(self) -> str:
        return f"{self.table}/{self.name}"


def files_of(receipt: Receipt) -> list[File]:
    """The data file, then that of the dead letters if there is one."""
    data = (receipt.data_file, receipt.data_bytes, receipt.data_sha256)
    errors = (receipt.errors_file, receipt.errors_bytes, receipt.errors_sha256)
    told = (("data", *data), ("errors", *errors))
    return [File(table, name, size, sha256) for table, name, size, sha256 in told if name is not None]


def _whole(sink_uri: str, file: File, unit: str, seen: _Seen, *, aside: bool = False) -> bytes | None:
    """The file's bytes, compared with what its receipt says; None: it is not there."""
    seen.files += 1
    for name in (file.name, *([f"{ASIDE}{file.name}"] if aside else [])):
        try:
            whole = storage.get(storage.join(sink_uri, file.table, name))
        except FileNotFoundError:
            continue
        if len(whole) != file.size:
            seen.wrong.append(("files", f"{file.path} has {len(whole):,} bytes, its receipt says {file.size:,}"))
        elif hashlib.sha256(whole).hexdigest() != file.sha256:
            seen.wrong.append(("files", f"{file.path} is not what was written: another sha256"))
        return whole
    seen.wrong.append(("files", f"{file.path} is not there; it holds {unit}; run the job's command again"))
    return None


def _opened(sink_uri: str, file: File, unit: str, seen: _Seen, *, aside: bool) -> pq.ParquetFile | None:
    """The file, if it is there and is Parquet, whether or not it is the one that the receipt tells."""
    whole = _whole(sink_uri, file, unit, seen, aside=aside)
    if whole is None:
        return None
    try:
        opened = pq.ParquetFile(io.BytesIO(whole))
        seen.schemas[file.path] = opened.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        seen.wrong.append(("files", f"{file.path} cannot be read ({_first_line(error)})"))
        return None
    return opened


def _same_receipt(text: bytes | None, receipt: Receipt) -> bool:
    # The footer is written before the file's own size and hash are known; the ledger's measures are not held in memory.
    try:
        told = None if text is None else replace(Receipt.from_json(text), measures=None)
        return told == replace(receipt, data_bytes=0, data_sha256="", measures=None)
    except (TypeError, ValueError):
        return False


def _rows(receipt: Receipt, data: pq.ParquetFile, errors: pq.ParquetFile | None, seen: _Seen) -> None:
    """Each row of the unit's range in exactly one of its two files, and the types of its errors as told."""
    parts = [data.read(["_shard", "_row"])]
    if errors is not None:
        dead = errors.read(["_shard", "_row", "_error_type"])
        parts.append(dead.select(["_shard", "_row"]))
        kinds = Counter(dead["_error_type"].to_pylist())
        if kinds != Counter(receipt.errors_by_type):
            told = f"{dict(receipt.errors_by_type)} told, {dict(kinds)} there"
            seen.wrong.append(("counts", f"{named(receipt)}: errors by type: {told}"))
    rows = pa.concat_tables(parts)
    others = [shard for shard in pc.unique(rows["_shard"]).to_pylist() if shard != receipt.shard]
    if others:
        seen.wrong.append(("rows", f"{named(receipt)}: rows of {others[0]} in its files"))
    numbers, times = np.unique(rows["_row"].to_numpy(), return_counts=True)
    inside = (numbers >= receipt.start) & (numbers < receipt.stop)
    wrong = (
        ("twice or more", numbers[times > 1].tolist()),
        ("in its files, but not of it", numbers[~inside].tolist()),
        ("missing", _missing(receipt, numbers[inside])),
    )
    for what, which in wrong:
        if which:
            more = f" and {len(which) - 1:,} more" if len(which) > 1 else ""
            seen.wrong.append(("rows", f"{named(receipt)}: row {which[0]}{more} {what}"))


def _missing(receipt: Receipt, there: Any) -> list[int]:
    if len(there) == receipt.rows_in:
        return []
    return np.setdiff1d(np.arange(receipt.start, receipt.stop), there).tolist()  # type: ignore[no-any-return]


def difference(one: pa.Schema, other: pa.Schema) -> str:
    """What tells two schemas apart; empty: nothing that a reader of either would notice."""
    types = [{part.name: str(part.type) for part in schema} for schema in (one, other)]
    names = [name for name in dict.fromkeys((*types[0], *types[1])) if types[0].get(name) != types[1].get(name)]
    return "; ".join(f"{name} {types[0].get(name, 'absent')} / {types[1].get(name, 'absent')}" for name in names[:3])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:100]
