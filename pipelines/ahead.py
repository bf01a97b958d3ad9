"""What lies ahead of a run: shards, rows and units to do, by why, counted without reading a row's values.

Parquet tells its rows by its footer; of other formats lines are counted. Where there is too much to count, some shards
are counted, drawn by the seed, and the others' rows estimated by their bytes; `exact` says which it was.
"""

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipelines.changes import Changes, Reason, ShardWork
from pipelines.sink.receipt import Receipt
from pipelines.source.formats import Format
from pipelines.source.units import UnitSize
from pipelines.stages.read import count_rows

MOST_FOOTERS = 2000  # Parquet shards whose footers are read
MOST_BYTES = 2**30  # of shards of other formats, packed, whose lines are counted
COUNTED_AT_ONCE = 8
Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What is to do for one reason."""

    shards: int = 0
    rows: int = 0  # that are asked; of units that are done again for their dead letters, those alone
    units: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A shard with work, and its rows."""

    work: ShardWork
    rows: int  # of the shard, up to its limit
    exact: bool

    def todo(self) -> list[Range]:
        """Rows to do, as ranges in order; units to redo are ranges of their own."""
        taken = sorted([*self.work.done, *((unit.start, unit.stop) for unit in self.work.redo)])
        redo = {(unit.start, unit.stop) for unit in self.work.redo}
        found: list[Range] = []
        at = 0
        for start, stop in taken:
            if start > at:
                found.append((at, min(start, self.rows)))
            if (start, stop) in redo:
                found.append((start, stop))
            at = max(at, stop)
        if at < self.rows:
            found.append((at, self.rows))
        return [(start, stop) for start, stop in found if stop > start]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What a run would do."""

    shards: int  # of the corpus, as far as source.limit reaches
    counted: tuple[Counted, ...]  # those with work
    groups: Mapping[Reason, Group]
    rows: int  # that are asked
    units: int
    units_exact: bool  # False: a unit may end by its bytes before it has unit.rows, or rows are estimated
    rows_kept: int  # of units that are done again for their dead letters: answers that stay
    unchanged_shards: int
    unchanged_rows: int  # committed, and as they would be asked now
    removed_shards: int
    removed_rows: int  # in the output, of shards that are gone
    dead_letters: Mapping[str, int] = field(default_factory=dict)  # in the output, by type, that are not asked again

    @property
    def exact(self) -> bool:
        """Whether each shard's rows were counted."""
        return all(one.exact for one in self.counted)


def look_ahead(
    todo: Changes,
    receipts: Sequence[Receipt],
    *,
    shards: int,
    size: UnitSize,
    max_row_bytes: int,
    seed: int,
    retry: Sequence[str] | None = (),
) -> Ahead:
    """Count what is `todo`. `receipts`: all that count as done; `retry`: types of dead letters that are asked again.

    `retry` None: all types.
    """
    counted = _count(todo.todo, max_row_bytes, seed)
    by_attempt = {receipt.attempt: receipt for receipt in receipts}
    again = {unit.replaces for work in todo.todo for unit in work.redo if unit.replaces}
    groups: dict[Reason, Counter[str]] = defaultdict(Counter)
    kept = units = 0
    for one in counted:
        groups[one.work.reason]["shards"] += 1
        for reason, rows, cut in _parts(one, size):
            groups[reason]["rows"] += rows
            groups[reason]["units"] += cut
            units += cut
        for unit in one.work.redo:
            if unit.replaces:
                stays = unit.stop - unit.start - _asked_again(by_attempt[unit.replaces], retry)
                groups[Reason.RETRIED]["rows"] -= stays
                kept += stays
    left = {shard.path for shard in todo.unchanged}
    done = {(work.shard.path, work.shard.identity, *rows) for work in todo.todo for rows in work.done}
    unchanged = [r for r in receipts if r.shard in left or (r.shard, r.identity, r.start, r.stop) in done]
    gone = set(todo.removed)
    dead: Counter[str] = Counter()
    for receipt in unchanged:
        if receipt.attempt not in again:
            dead.update(receipt.errors_by_type)
    return Ahead(
        shards=shards,
        counted=tuple(counted),
        groups={reason: Group(**found) for reason, found in sorted(groups.items())},
        rows=sum(found["rows"] for found in groups.values()),
        units=units,
        units_exact=all(one.exact for one in counted),
        rows_kept=kept,
        unchanged_shards=len(todo.unchanged),
        unchanged_rows=sum(receipt.rows_in for receipt in unchanged),
        removed_shards=len(gone),
        removed_rows=sum(receipt.rows_in for receipt in receipts if receipt.shard in gone),
        dead_letters=dict(sorted(dead.items())),
    )


def fewer_rows_a_unit(ahead: Ahead, row_bytes: float, size: UnitSize) -> Ahead:
    """The same, where rows of `row_bytes` (decoded, on average) fill a unit by its bytes before it has `unit.rows`."""
    fits = max(1, int(size.bytes / row_bytes)) if row_bytes else size.rows
    if fits >= size.rows * 2:  # units are full by rows, however rows differ
        return ahead
    narrow = UnitSize(rows=min(fits, size.rows), bytes=size.bytes)
    units = sum(cut for one in ahead.counted for _, _, cut in _parts(one, narrow))
    return replace(ahead, units=units, units_exact=False)


def _parts(one: Counted, size: UnitSize) -> Iterable[tuple[Reason, int, int]]:
    """Rows of a shard, by why, and the units that they make: as `read_units` cuts them."""
    again = {(unit.start, unit.stop): unit for unit in one.work.redo}
    fresh = Reason.CHANGED if one.work.reason is Reason.CHANGED else Reason.NEW
    if one.work.reason is Reason.PARTIAL:
        fresh = Reason.PARTIAL
    ranges = one.todo()
    before = 0  # units that are cut anew
    for start, stop in ranges:
        redo = again.get((start, stop))
        if redo is None:
            units = size.units_of(start, stop, leads=one.work.leads, tail=one.work.tail, before=before)
            before += units
            yield fresh, stop - start, units
        else:
            yield Reason.RETRIED if redo.replaces else Reason.ASKED_ANEW, stop - start, 1
    # Read to its end, a shard has a unit that says that it ends there: one without rows, where no other can say it.
    if one.work.limit is None and (not ranges or ranges[-1][1] < one.rows):
        yield fresh, 0, 1


def _asked_again(receipt: Receipt, retry: Sequence[str] | None) -> int:
    return sum(count for kind, count in receipt.errors_by_type.items() if retry is None or kind in retry)


# ------------------------------------------------------------------------------------------------------ counting


def _count(works: Sequence[ShardWork], max_row_bytes: int, seed: int) -> list[Counted]:
    """The rows of each shard; where there are too many to count, of those drawn, and of the others by their bytes."""
    chosen = _chosen(works, seed)

    def rows(work: ShardWork) -> int:
        if work.reason is Reason.RETRIED and work.limit is not None:
            return work.limit  # its end is known from the ledger
        return count_rows(work.shard, work.limit or sys.maxsize, max_row_bytes=max_row_bytes)

    with ThreadPoolExecutor(COUNTED_AT_ONCE) as pool:
        found = dict(zip(chosen, pool.map(rows, [works[place] for place in chosen]), strict=True))
    by_format: dict[Format, list[tuple[int, int]]] = defaultdict(list)
    for place, count in found.items():
        if works[place].limit is None:
            by_format[works[place].shard.format].append((count, works[place].shard.size))
    counted = []
    for place, work in enumerate(works):
        if place in found:
            counted.append(Counted(work=work, rows=found[place], exact=True))
        else:
            counted.append(Counted(work=work, rows=_by_bytes(work, by_format[work.shard.format]), exact=False))
    return counted


def _chosen(works: Sequence[ShardWork], seed: int) -> list[int]:
    """Places of the shards to count: all, or as many as footers and bytes allow, in an order drawn by the seed."""
    order = list(range(len(works)))
    random.Random(seed).shuffle(order)  # noqa: S311
    footers = read = 0
    chosen = []
    for place in order:
        shard = works[place].shard
        parquet = shard.format is Format.PARQUET
        if parquet and footers < MOST_FOOTERS:
            footers += 1
        elif not parquet and (read + shard.size <= MOST_BYTES or not read):
            read += shard.size
        else:
            continue
        chosen.append(place)
    return sorted(chosen)


def _by_bytes(work: ShardWork, known: Sequence[tuple[int, int]]) -> int:
    """Rows of a shard that was not counted, from rows and bytes of others of its format. Estimated."""
    rows, size = sum(count for count, _ in known), sum(size for _, size in known)
    estimate = round(work.shard.size * rows / size) if size else 1
    return min(estimate, work.limit) if work.limit is not None else max(1, estimate)
