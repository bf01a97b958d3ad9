"""Tables: brings the Delta tables `data` and `errors` up to the ledger; takes over and cleans after a crash.

The files are there already and are never changed; a table only says which of them are current. Each of these steps
can be repeated at any time, and cut off at any point.
"""

import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from pipelines import storage
from pipelines.memory import give_back
from pipelines.sink.aside import WAITING, bring_back, names_aside
from pipelines.sink.committed import Change, Committed
from pipelines.sink.fenced import FencedTable, append_actions, check_inside
from pipelines.sink.receipt import FOOTER_KEY, Receipt
from pipelines.source.units import UNREADABLE_SHARD

log = logging.getLogger(__name__)

_OURS = re.compile(r"[A-Za-z0-9._-]+\.([0-9a-f]{10})\.parquet")  # as stages/write.py names them
_ASIDE = re.compile(r"\.[A-Za-z0-9._-]+\.part")  # as storage.put leaves them when it is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Both tables of an output, and the files that they hold now."""

    sink_uri: str
    epoch: int
    data: FencedTable
    errors: FencedTable
    data_files: set[str]
    errors_files: set[str]
    aside: frozenset[str]  # files that waited when this run began


def create_tables(
    sink_uri: str,
    data_schema: pa.Schema,
    errors_schema: pa.Schema,
    *,
    found: tuple[FencedTable | None, FencedTable | None] = (None, None),
) -> tuple[FencedTable, FencedTable]:
    """`data` and `errors` of an output, made empty if they are not there. Nobody is fenced off yet.

    `found`: those that were opened already.

    Raises:
        UserError: a table is there with columns that do not go with these, or its folder leads out of the output.
    """
    data = FencedTable.create(check_inside(sink_uri, "data"), data_schema, growing=True, found=found[0])
    errors = FencedTable.create(check_inside(sink_uri, "errors"), errors_schema, growing=True, found=found[1])
    return data, errors


def open_tables(
    sink_uri: str,
    data_schema: pa.Schema,
    errors_schema: pa.Schema,
    *,
    epoch: int,
    run: str = "",
    made: tuple[FencedTable, FencedTable] | None = None,
    view: Committed | None = None,
    growing: bool = True,
) -> Tables:
    """The tables of an output, `made` by `create_tables` (None: made here), with earlier writers fenced off.

    `view`: what the tables should hold, mostly. `growing`: they get the columns that they lack. Readers see these at
    once, so under a gate that is for `grow`.

    Raises:
        UserError: a table is there with other columns, or its folder leads out of the output.
        Fenced: a run with a later epoch has begun.
    """
    data, errors = made or create_tables(sink_uri, data_schema, errors_schema)
    files: list[set[str]] = []
    for table, schema, file_of in ((data, data_schema, _data_file), (errors, errors_schema, _errors_file)):
        current = () if view is None else view.current()
        # Before the epoch, which takes memory as well: of 10^5 names 40 MB, most of which are given back by then.
        names = table.names([name for one in current if (name := file_of(one).name) is not None])
        give_back()
        before = table.version()
        table.begin(epoch, run=run)
        files.append(names if table.version() == before + 1 else table.names())  # else somebody wrote in between
        if growing:
            table.grow(schema, epoch)
    return Tables(
        sink_uri=sink_uri,
        epoch=epoch,
        data=data,
        errors=errors,
        data_files=files[0],
        errors_files=files[1],
        aside=names_aside(sink_uri),
    )


def grow(tables: Tables, data_schema: pa.Schema, errors_schema: pa.Schema) -> None:
    """Add the columns that the tables lack."""
    tables.data.grow(data_schema, tables.epoch)
    tables.errors.grow(errors_schema, tables.epoch)


def follow(tables: Tables, view: Committed, change: Change | None = None) -> None:
    """Bring both tables up to the ledger, by at most one commit each.

    With `change`, what the last `Ledger.append` returned, only those files are looked at; without it, all: so at
    the start, and after a commit that failed.
    """
    new, gone = (list(view.current()), None) if change is None else (list(change.new), list(change.gone))
    bring_back(tables.sink_uri, new, tables.aside)
    # The order is free: a reader of both tables sees a row that was repaired in both for a moment, rather than in
    # none.
    for table, known, file_of in (
        (tables.data, tables.data_files, _data_file),
        (tables.errors, tables.errors_files, _errors_file),
    ):
        here = {name: receipt for receipt in new if (name := file_of(receipt).name) is not None}
        more = [_add(file_of(receipt), receipt.finished_at) for name, receipt in here.items() if name not in known]
        less = known - here.keys() if gone is None else known & {file_of(receipt).name for receipt in gone}
        if more or less:
            table.commit(tables.epoch, append_actions([*more, *_removes(less)]))
            known.difference_update(less)
            known.update(action.path for action in more)


@dataclass(frozen=True, slots=True)
class _File:
    """One of the files of a unit."""

    name: str | None  # None: the unit has none of this kind
    size: int
    rows: int


def _data_file(receipt: Receipt) -> _File:
    return _File(receipt.data_file, receipt.data_bytes, receipt.rows_ok)


def _errors_file(receipt: Receipt) -> _File:
    return _File(receipt.errors_file, receipt.errors_bytes, receipt.rows_error)


def _add(file: _File, written_at: float) -> AddAction:
    # A name needs no URL encoding: source/units.py makes it of safe characters.
    return AddAction(
        path=file.name,
        size=file.size,
        partition_values={},
        modification_time=int(written_at * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": file.rows}),
    )


def _removes(names: Iterable[Any]) -> list[RemoveAction]:
    now = int(time.time() * 1000)
    return [RemoveAction(path=name, data_change=True, deletion_timestamp=now, partition_values={}) for name in names]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file in an output that none of its current receipts names."""

    folder: str  # data or errors
    stored: storage.Stored

    @property
    def attempt(self) -> str | None:
        """Of the unit that it was written for; None: a file that `storage.put` left when it was killed."""
        name = _OURS.fullmatch(self.stored.path.removeprefix(f"{WAITING}/"))
        return None if name is None else name[1]

    @property
    def waits(self) -> bool:
        """Whether it lies aside."""
        return self.stored.path.startswith(f"{WAITING}/")


def leftovers(sink_uri: str, view: Committed) -> list[Leftover]:
    """Our files in data and errors that are not current, whatever the reason: for `take_over` and `clean`."""
    return stocktaking(sink_uri, view, view)[0]


def stocktaking(sink_uri: str, shown: Committed, view: Committed) -> tuple[list[Leftover], frozenset[str]]:
    """One look at all files of data and errors: the leftovers, and the attempts that count and have lost a file.

    `shown`: what readers see; `view`: what counts to the run, which is more under a gate.
    Not those of units without a row: their shard would be read again, and there is no row to be done.
    """
    current = {receipt.attempt for receipt in shown.current()}
    found: list[Leftover] = []
    lost: set[str] = set()
    for folder, file_of in (("data", _data_file), ("errors", _errors_file)):
        missing = {one.attempt for one in view.receipts() if one.rows_in and file_of(one).name is not None}
        names = [name for one in shown.current() if (name := file_of(one).name) is not None]
        for stored in storage.listing(storage.join(sink_uri, folder), missing_ok=True, expected=names):
            ours = _OURS.fullmatch(stored.path.removeprefix(f"{WAITING}/"))
            if ours is not None:
                missing.discard(ours[1])
            if (ours is None and _ASIDE.fullmatch(stored.path)) or (
                ours is not None and (ours[1] not in current or ours[0] != stored.path)
            ):
                found.append(Leftover(folder, stored))
        lost |= missing
    return found, frozenset(lost)


def take_over(
    sink_uri: str,
    view: Committed,
    *,
    fingerprint: str,
    identities: Mapping[str, str],
    left: Sequence[Leftover] | None = None,
) -> list[Receipt]:
    """Receipts of finished units that a crash kept out of the ledger, from the footers of their data files.

    Only those that answer what is asked now: of this fingerprint, and of shards whose identity (by path) is still
    the one that was read. Append them to the ledger to have them counted; the other leftovers are for `clean`.
    `left` is what `leftovers` found; None: it is listed here.
    """
    found: list[Receipt] = []
    for one in leftovers(sink_uri, view) if left is None else left:
        if one.folder != "data" or one.waits or one.attempt is None or view.knows(one.attempt):
            continue
        receipt = _evidence(one.stored)
        if receipt is None or receipt.attempt != one.attempt or receipt.fingerprint != fingerprint:
            continue
        if (
            identities.get(receipt.shard) == receipt.identity
            # That a shard could not be read, an overtaken run may have found while the shard was away for a moment.
            and UNREADABLE_SHARD not in receipt.errors_by_type
            and view.fits(receipt)
            and _errors_there(sink_uri, receipt)
        ):
            found.append(receipt)
    return sorted(found, key=lambda receipt: (receipt.finished_at, receipt.attempt))


def _evidence(stored: storage.Stored) -> Receipt | None:
    """The receipt in a data file's footer, completed by size and hash; None: the file is not whole, or not ours."""
    try:
        whole = storage.get(stored.uri)
        footer = pq.read_metadata(io.BytesIO(whole))
        receipt = Receipt.from_json(footer.metadata[FOOTER_KEY])
    except (FileNotFoundError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        log.warning("%s: not taken over (%s)", stored.uri, type(error).__name__)
        return None
    if receipt.data_file != stored.path or receipt.rows_ok != footer.num_rows:
        return None
    return replace(receipt, data_bytes=len(whole), data_sha256=hashlib.sha256(whole).hexdigest())


def _errors_there(sink_uri: str, receipt: Receipt) -> bool:
    if receipt.errors_file is None:
        return True
    try:
        errors = storage.get(storage.join(sink_uri, "errors", receipt.errors_file))
    except FileNotFoundError:
        return False
    return hashlib.sha256(errors).hexdigest() == receipt.errors_sha256


def clean(
    tables: Tables,
    view: Committed,
    *,
    retain_hours: float,
    now: float | None = None,
    left: Sequence[Leftover] | None = None,
    candidates: Collection[str] = (),
    known_alone: bool = False,
) -> int:
    """Remove files that are not current: replaced more than `retain_hours` ago, or left by a crash. How many.

    `view`: what readers see. `candidates`: attempts that they do not see yet, whose files stay wherever they lie.
    `known_alone`: what no receipt names stays too, for the job's next run to take over.

    For when no worker writes: at the start after `take_over`, at the end after `follow`. What a table still names,
    what waits for its shard to be whole, and files that are not ours by their name, stay. Of files aside, those that
    wait no more go: `follow` has brought back what is current. `left` is what `leftovers` found, be it before units
    were taken over; None: it is listed here.

    Raises:
        Fenced: another run has begun since.
    """
    left = leftovers(tables.sink_uri, view) if left is None else left
    current = {receipt.attempt for receipt in view.current()}
    # A run that was overtaken while it set files aside may have taken one that its successor had made current.
    back = {one.stored.path.removeprefix(f"{WAITING}/") for one in left if one.waits and one.attempt in current}
    bring_back(tables.sink_uri, view.current(), back)
    horizon = (time.time() if now is None else now) - retain_hours * 3600
    waiting = {receipt.attempt for receipt in view.waiting()}.union(candidates)
    keep = waiting | {attempt for attempt, at in view.replaced().items() if retain_hours and at > horizon}
    if any(not one.waits for one in left):  # some were taken over since they were listed
        keep |= current
    named = {"data": tables.data_files, "errors": tables.errors_files}
    doomed = [
        one.stored.uri
        for one in left
        if one.attempt not in (waiting | current if one.waits else keep) and one.stored.path not in named[one.folder]
        if not known_alone or (one.attempt is not None and view.knows(one.attempt))
    ]
    # A run that was overtaken does not know its successor's files, of which some may be leftovers that were taken over.
    # If it sleeps just behind this look, that is what a batch of them costs: the next start asks their rows again.
    for start in range(0, len(doomed), storage.DELETE_BATCH):
        tables.data.check_writer(tables.epoch)
        storage.delete_all(doomed[start : start + storage.DELETE_BATCH])
    return len(doomed)
