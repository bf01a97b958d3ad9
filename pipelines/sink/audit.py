"""Audit: an output against its own ledger, receipt by receipt, file by file, row by row.

Of the writers' code it shares the fold of the ledger (`Committed`), which says what should be there; what is there it
reads anew, from listings, bytes and Delta logs. Memory: the receipts, the names of files, and a few units at a time.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import Schema

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink.audit_files import ASIDE, Check, Files, difference, files_of, named
from pipelines.sink.committed import Committed
from pipelines.sink.decisions import Counting
from pipelines.sink.fenced import FencedTable
from pipelines.sink.ledger import Ledger
from pipelines.sink.publications import Publications
from pipelines.sink.receipt import Receipt

_OURS = re.compile(r"[A-Za-z0-9._-]+\.([0-9a-f]{10})\.parquet")
_ALWAYS = ("_shard", "_row", "_key", "_model", "_finish_reason", "_error_type", "_error")  # of files that have rows
_PART = re.compile(r"\.[A-Za-z0-9._-]+\.part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found, and what the ledger says should be there."""

    checks: tuple[Check, ...]
    view: Committed | None  # what readers should see; None: the ledger is wrong in itself; no more was looked at
    data_rows: int  # counted in the files
    error_rows: int
    unseen: tuple[Receipt, ...] = ()  # what waits to be published


def audit(sink_uri: str, *, retain_hours: float = 0.0) -> Audit:
    """Look through the output at `sink_uri`, which no run may be writing.

    Raises:
        UserError: there is no output.
        StoreFailed: the store refused or stayed away.
    """
    _output_there(sink_uri)
    ledger = Ledger.open(sink_uri, create=False)
    receipts = _ledger_check(ledger.table())
    if receipts.found:
        return Audit(checks=(receipts,), view=None, data_rows=0, error_rows=0)
    view, unseen = _views(sink_uri, ledger)
    current, waiting = (sorted(some, key=_by_place) for some in (view.current(), [*view.waiting(), *unseen]))
    files = Files.of(sink_uri, current, waiting)
    tables = [_table_check(sink_uri, "data", current, files), _table_check(sink_uri, "errors", current, files)]
    return Audit(
        checks=(
            receipts,
            _ranges_check(current),
            *files.checks(),
            *tables,
            _strays(sink_uri, view, unseen, retain_hours),
        ),
        view=view,
        unseen=tuple(unseen),
        data_rows=files.data_rows,
        error_rows=files.error_rows,
    )


def _views(sink_uri: str, ledger: Ledger) -> tuple[Committed, list[Receipt]]:
    """What readers should see, and the units of each candidate that is not published."""
    decided = Publications.open(sink_uri)
    state, shown, entries = decided.state(), decided.counting(), ledger.entries()
    view, until = ledger.fold(shown, entries), state.until
    if until is None:
        return view, []
    seen = {receipt.attempt for receipt in view.receipts()}
    found: dict[str, Receipt] = {}
    for fingerprint in dict.fromkeys(receipt.fingerprint for place, receipt in entries if place > until):
        candidate = ledger.fold(Counting(state.candidate(fingerprint), shown.since), entries)
        found |= {one.attempt: one for one in candidate.receipts() if one.attempt not in seen}
    return view, list(found.values())


def _by_place(receipt: Receipt) -> tuple[str, int, int]:
    return receipt.shard, receipt.start, receipt.stop


def _output_there(sink_uri: str) -> None:
    uri = storage.join(sink_uri, "ledger")
    if not any(True for _ in storage.listing(uri, missing_ok=True)):
        raise UserError(f"sink.uri={storage.shown(sink_uri)}: there is no output, no ledger in it; check the path")


# ------------------------------------------------------------------------------------------------------ ledger


def _ledger_check(rows: pa.Table) -> Check:
    """The ledger by itself: every receipt adds up, and none was appended again."""
    check = Check("ledger", "every receipt: rows in = ok + errors; none twice", "receipts", rows.num_rows)
    numbers = {
        name: rows[name].to_numpy()
        for name in ("start", "stop", "rows_in", "rows_ok", "rows_error", "rows_carried", "epoch", "seq")
    }
    wrong = numbers["rows_in"] != numbers["rows_ok"] + numbers["rows_error"]
    wrong |= numbers["rows_in"] != numbers["stop"] - numbers["start"]
    wrong |= numbers["rows_carried"] > numbers["rows_in"]
    wrong |= np.minimum.reduce([numbers[name] for name in ("start", "rows_in", "rows_ok", "rows_error")]) < 0
    for line in np.flatnonzero(wrong).tolist():
        told = ", ".join(f"{name}={numbers[name][line]}" for name in ("rows_in", "rows_ok", "rows_error"))
        check.find(f"{rows['shard'][line]} from row {numbers['start'][line]}: {told}")
    counted = pc.value_counts(rows["attempt"].combine_chunks())
    twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    repeated = 0
    for attempt in twice.to_pylist():
        lines = np.flatnonzero(pc.equal(rows["attempt"], attempt).to_numpy(zero_copy_only=False))
        if len({(int(numbers["epoch"][line]), int(numbers["seq"][line])) for line in lines}) == 1:
            repeated += len(lines) - 1  # one commit, whose answer was lost, written twice: it counts once
        else:
            check.find(f"attempt {attempt} of {rows['shard'][int(lines[0])]} was counted {len(lines)} times")
    if repeated:
        check.notes.append(
            f"{repeated:,} receipts stand there twice, by one commit that was written twice; counted once"
        )
    return check


def _ranges_check(current: Sequence[Receipt]) -> Check:
    """No row belongs to two units. `current` is by shard and row."""
    check = Check("units", "no row is claimed by two current units", "units", len(current))
    for before, after in pairwise(one for one in current if one.rows_in):
        if before.shard == after.shard and after.start < before.stop:
            check.find(f"{named(before)} and {named(after)} overlap")
        if before.shard == after.shard and before.identity != after.identity:
            check.find(f"{named(before)} and {named(after)} were read from different versions of the shard")
    return check


# ------------------------------------------------------------------------------------------------------ tables


def _table_check(sink_uri: str, table: str, current: Sequence[Receipt], files: Files) -> Check:
    """The Delta table names the files of the current receipts and no other, as large and with as many rows."""
    check = Check(f"table {table}", "names exactly the files of the current receipts", "files")
    opened = FencedTable.open(storage.join(sink_uri, table))
    if opened is None:
        check.find(f"there is no Delta table {table}; run the job's command again, which makes it")
        return check
    adds = pa.table(opened.table.get_add_actions(flatten=True)).select(["path", "size_bytes", "num_records"])
    listed = {path: (size, rows) for path, size, rows in zip(*(c.to_pylist() for c in adds.columns), strict=True)}
    check.checked = adds.num_rows
    wanted = {
        file.name: (file.size, one.rows_ok if table == "data" else one.rows_error)
        for one in current
        for file in files_of(one)
        if file.table == table
    }
    for name in sorted(listed.keys() - wanted.keys()):
        check.find(f"names {name}, which is of no current receipt")
    for name in sorted(wanted.keys() - listed.keys()):
        check.find(f"does not name {name}, which is current; run the job's command again")
    for name in sorted(name for name in wanted.keys() & listed.keys() if wanted[name] != listed[name]):
        check.find(f"tells {listed[name]} bytes and rows of {name}, its receipt {wanted[name]}")
    if columns := files.columns.get(table):
        image = pa.schema(Schema.from_arrow(pa.schema([field for field, _ in columns.values()])).to_arrow())
        _columns_check(pa.schema(opened.table.schema().to_arrow()), image, files.lacking[table], check)
    return check


def _columns_check(declared: pa.Schema, files: pa.Schema, lacking: Collection[str], check: Check) -> None:
    """A table declares every column of its files. One that some of them lack joined it later, and may be null."""
    known = [field for field in declared if field.name in files.names]
    if apart := difference(pa.schema(known), files):
        check.find(f"has other columns than its files: {apart}")
    if late := [name for name in declared.names if name in lacking or name not in files.names]:
        if due := [name for name in late if name in _ALWAYS]:
            check.find(f"has files without {', '.join(due)}, which each row must have")
        told = f"{', '.join(late[:3])}{' and others' if len(late) > 3 else ''}"
        check.notes.append(f"{told} joined later; null in the rows of older files")


# ------------------------------------------------------------------------------------------------------ strays


def _strays(sink_uri: str, view: Committed, unseen: Sequence[Receipt], retain_hours: float) -> Check:
    """Every file in data and errors is somebody's: current, replaced, or waiting for its shard or its gate."""
    check = Check("strays", "no file in data or errors that nobody accounts for", "files")
    current = {file.path for one in view.current() for file in files_of(one)}
    waiting = {file.path for one in view.waiting() for file in files_of(one)}
    candidates = {file.path for one in unseen for file in files_of(one)}
    replaced, kept, waits, behind = view.replaced(), 0, 0, 0
    for table in ("data", "errors"):
        for stored in storage.listing(storage.join(sink_uri, table), missing_ok=True):
            if stored.path.startswith("_delta_log/"):
                continue
            check.checked += 1
            path = stored.path
            ours = _OURS.fullmatch(path.removeprefix(ASIDE))
            if f"{table}/{path}" in current:
                continue
            if f"{table}/{path.removeprefix(ASIDE)}" in waiting:
                waits += 1
            elif f"{table}/{path.removeprefix(ASIDE)}" in candidates:
                behind += 1
            elif ours and ours[1] in replaced and retain_hours and not path.startswith(ASIDE):
                kept += 1
            else:
                check.find(f"{table}/{path}: {_whose(path, ours, view)}")
    if kept:
        check.notes.append(f"{kept:,} files were replaced and are kept for {retain_hours:g} h (sink.retain_hours)")
    if behind:
        check.notes.append(
            f"{behind:,} files wait to be published; python -m pipelines.diff says what they would change"
        )
    if waits:
        check.notes.append(f"{waits:,} files are of changed shards that are not whole yet; run again to finish them")
    return check


def _whose(path: str, ours: re.Match[str] | None, view: Committed) -> str:
    if ours and view.knows(ours[1]):
        return "replaced, or the second of two attempts at a unit; the next run removes it"
    if ours:
        return "of no receipt; the next run takes it over if it is a finished unit, or else removes it"
    if _PART.fullmatch(path):
        return "half a file, left by a killed writer; the next run removes it"
    return "not written by a run; take it away"
