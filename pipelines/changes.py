"""Corpus against ledger: which rows of which shards are still to do, and why. No inference, no row is read."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pipelines.sink.receipt import Receipt, Redo
from pipelines.source.shards import Shard
from pipelines.source.units import Tail


class Reason(StrEnum):
    """Why a shard has work."""

    NEW = "new"  # no unit of it is committed
    PARTIAL = "partial"  # some units are
    CHANGED = "changed"  # what is committed was read from other bytes
    ASKED_ANEW = "asked anew"  # what is committed was asked something else
    RETRIED = "retried"  # some of its dead letters are to be asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shard with rows to do."""

    shard: Shard
    reason: Reason
    limit: int | None  # read no row from this one on; None: to the end
    ends_here: bool = False  # `limit` is that of source.limit: to this run, the shard goes no further
    done: tuple[tuple[int, int], ...] = ()  # row ranges that are committed and stay, in order
    redo: tuple[Redo, ...] = ()  # units that are done again, in order; all other rows are cut anew
    # Data files with answers to what was in the shard before, under whatever name: to be looked up by key.
    answered: tuple[str, ...] = ()
    leads: bool = False  # the first of the run: what is cut anew begins with small units
    tail: Tail | None = None  # what is cut anew becomes small towards the end of the run; None: it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a run would do."""

    todo: tuple[ShardWork, ...]
    unchanged: tuple[Shard, ...]  # every row is committed
    known: int  # shards that output and corpus both have
    removed: tuple[str, ...]  # shards that the output has and the corpus has no more, by path
    other_fingerprints: frozenset[str]  # of committed units of these shards that were asked something else
    other_rows: int  # rows of those units


def since(
    receipts: Iterable[Receipt],
    shards: Sequence[tuple[Shard, int | None]],
    *,
    fingerprint: str,
    retry: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> Changes:
    """What is left of `shards` (each with its row limit) after the committed `receipts`, in ledger order.

    `retry`: attempts whose dead letters are to be asked again, from `failed`. `elsewhere`: paths of
    shards that the corpus has besides, beyond `source.limit` or left out by globs: they are not gone.
    """
    by_shard: Mapping[str, list[Receipt]] = _grouped(receipts)
    todo: list[ShardWork] = []
    unchanged: list[Shard] = []
    others: set[str] = set()
    other_rows = 0
    here = {shard.path for shard, _ in shards}.union(elsewhere)
    gone = by_shard.keys() - here
    moved: Mapping[str, list[Receipt]] = defaultdict(list)  # what is gone, by what it was: it may have another name now
    for path in gone:
        for receipt in by_shard[path]:
            moved[receipt.identity].append(receipt)
    for shard, limit in shards:
        seen = by_shard.get(shard.path, [])
        for receipt in seen:
            if receipt.fingerprint != fingerprint and (limit is None or receipt.start < limit):
                others.add(receipt.fingerprint)
                other_rows += receipt.rows_in
        work = _work(shard, limit, seen, fingerprint, retry)
        if work is not None and not seen and shard.identity in moved:
            work = replace(work, answered=_answers(moved[shard.identity], fingerprint))
        if work is None:
            unchanged.append(shard)
        else:
            todo.append(work)
    todo[:1] = [replace(first, leads=True) for first in todo[:1]]
    return Changes(
        todo=tuple(todo),
        unchanged=tuple(unchanged),
        known=len(by_shard.keys() & here),
        removed=tuple(sorted(gone)),
        other_fingerprints=frozenset(others),
        other_rows=other_rows,
    )


def failed(receipts: Iterable[Receipt], *, fingerprint: str, types: Collection[str] | None) -> frozenset[str]:
    """Attempts under this fingerprint that left dead letters of these types, None for any."""
    return frozenset(
        receipt.attempt
        for receipt in receipts
        if receipt.fingerprint == fingerprint
        and receipt.rows_error
        and (types is None or any(kind in types for kind in receipt.errors_by_type))
    )


def _grouped(receipts: Iterable[Receipt]) -> dict[str, list[Receipt]]:
    by_shard: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        by_shard[receipt.shard].append(receipt)
    return by_shard


def _work(
    shard: Shard, limit: int | None, seen: Sequence[Receipt], fingerprint: str, retry: Collection[str]
) -> ShardWork | None:
    """What is to do in one shard; None: nothing."""
    asked = [r for r in seen if r.fingerprint == fingerprint]
    same = [r for r in asked if r.identity == shard.identity]
    retried = [r for r in same if r.attempt in retry]
    # In their old cuts: a reader then sees each unit's old answers or its new ones, and never waits for a whole shard.
    anew = [r for r in seen if r.identity == shard.identity and r.fingerprint != fingerprint]
    anew = [r for r in anew if r.rows_in and (limit is None or r.start < limit)]
    redo = sorted(
        [*map(_again, retried), *(Redo(start=r.start, stop=r.stop) for r in anew)], key=lambda unit: unit.start
    )
    done = tuple(sorted((r.start, r.stop) for r in same if r.stop > r.start and r.attempt not in retry))
    complete = _complete(same, tuple(sorted((r.start, r.stop) for r in same if r.stop > r.start)), limit)
    if complete and not redo:
        return None
    if limit is not None and redo:
        limit = max(limit, redo[-1].stop)  # a unit is done again as a whole
    ends_here = limit is not None
    if complete and limit is None and not any(r.last for r in retried):
        limit = redo[-1].stop  # what follows is done: no need to read on
    reason = Reason.RETRIED if complete else Reason.PARTIAL if same else Reason.CHANGED if asked else Reason.NEW
    if anew:
        reason = Reason.ASKED_ANEW
    elif seen and not same:
        reason = Reason.CHANGED
    return ShardWork(
        shard=shard,
        reason=reason,
        limit=limit,
        ends_here=ends_here,
        done=done,
        redo=tuple(redo),
        answered=_answers([r for r in asked if r.identity != shard.identity], fingerprint),
    )


def _answers(receipts: Iterable[Receipt], fingerprint: str) -> tuple[str, ...]:
    """The data files of these that hold answers to what is asked now."""
    return tuple(r.data_file for r in receipts if r.data_file and r.rows_ok and r.fingerprint == fingerprint)


def _again(receipt: Receipt) -> Redo:
    return Redo(
        start=receipt.start,
        stop=receipt.stop,
        replaces=receipt.attempt,
        data_file=receipt.data_file,
        errors_file=receipt.errors_file,
    )


def _complete(receipts: Sequence[Receipt], done: Sequence[tuple[int, int]], limit: int | None) -> bool:
    """Whether the ranges cover the shard from row 0 to its end, or to the limit."""
    covered = 0
    for start, stop in done:
        if start > covered:
            return False
        covered = max(covered, stop)
    end = max((r.stop for r in receipts if r.last), default=None)
    return (end is not None and covered >= end) or (limit is not None and covered >= limit)
