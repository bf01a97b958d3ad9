"""Committed: which receipts count, folded from the ledger in its order. A pure function of the ledger.

The rules, for one shard:
- A receipt seen before (same attempt) is no news: a commit whose answer was lost may be in the ledger twice.
- Of two receipts for the same rows, input and fingerprint the first counts, unless the second says that it
  `replaces` the first (its dead letters were tried again).
- Other fingerprint, same rows of the same input: the newer replaces the older, unit by unit.
- Other input: row numbers mean other rows, so the newer units wait until they cover the shard from its first row to
  its end (or to where `source.limit` ended the run), and then replace all the older ones at once.
- So they do where a run with a limit finds all before it done, by runs that went further or had no limit: it says so in
  a receipt without files.
- Other cuts of the same input never count: what is done again is done in its old cuts, so this is a run that was
  overtaken and had read its shard in its own way. Counted in part, its rows would be done and never be seen.
- A shard that is `removed` takes all its units with it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.sink.receipt import Receipt

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What some receipts did to the current files of an output."""

    new: tuple[Receipt, ...]
    gone: tuple[Receipt, ...]


@dataclass(slots=True)
class _Units:
    """Units of one shard of which no two have a row in common."""

    receipts: dict[Range, Receipt] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)  # of those with rows, sorted

    def free(self, wanted: Range) -> bool:
        """Whether none of them has rows in this range."""
        start, stop = wanted
        if start == stop:
            return True
        at = bisect_left(self.ranges, (start, start))
        before_ends = self.ranges[at - 1][1] if at else 0
        return before_ends <= start and (at == len(self.ranges) or self.ranges[at][0] >= stop)

    def put(self, receipt: Receipt) -> None:
        """Add one that is free, or replace the one of just these rows."""
        rows = (receipt.start, receipt.stop)
        if rows not in self.receipts and receipt.stop > receipt.start:
            insort(self.ranges, rows)
        self.receipts[rows] = receipt

    def whole(self) -> bool:
        """Whether they follow one another from row 0 to the end of the shard, or of what was asked for."""
        ends = [unit.stop for unit in self.receipts.values() if unit.last or unit.limited]
        if not ends:
            return False
        at = self.reached()
        return at in ends and (not self.ranges or self.ranges[-1][1] == at)

    def reached(self) -> int:
        """The first row that is in none of them."""
        at = 0
        for start, stop in self.ranges:
            if start != at:
                break
            at = stop
        return at


@dataclass(slots=True)
class _Shard:
    current: _Units = field(default_factory=_Units)
    waiting: dict[tuple[str, str], _Units] = field(default_factory=dict)  # by identity and fingerprint

    def reads(self, identity: str) -> bool:
        """Whether what is current, if anything is, was read from this input."""
        one = next(iter(self.current.receipts.values()), None)
        return one is None or one.identity == identity

    def waits(self, identity: str, fingerprint: str, *, before: int) -> _Units | None:
        """What waits of this input and fingerprint, if it has all rows before this one."""
        units = self.waiting.get((identity, fingerprint))
        return units if units is not None and units.reached() >= before else None

    def add(self, receipt: Receipt) -> tuple[list[Receipt], list[Receipt]]:
        """The receipts that this one makes current, and those that it replaces."""
        if receipt.removed:
            return [], self._instead(_Units())
        if receipt.data_file is None:
            waits = self.waits(receipt.identity, receipt.fingerprint, before=receipt.stop)
            return ([], []) if waits is None else (list(waits.receipts.values()), self._instead(waits))
        rows = (receipt.start, receipt.stop)
        if not self.reads(receipt.identity):
            return self._wait(receipt, rows)
        here = self.current.receipts.get(rows)
        if here is not None:
            if here.fingerprint == receipt.fingerprint and receipt.replaces != here.attempt:
                return [], []
            self.current.put(receipt)
            return [receipt], [here, *self._ends_before(receipt)]
        if not self.current.free(rows):
            return [], []
        self.current.put(receipt)
        return [receipt], self._ends_before(receipt)

    def _ends_before(self, receipt: Receipt) -> list[Receipt]:
        """A unit without rows that told the end of the shard; `receipt`, which is whole, now tells it with its rows."""
        end = (receipt.stop, receipt.stop)
        told = receipt.last and receipt.start < receipt.stop and end in self.current.receipts
        return [self.current.receipts.pop(end)] if told else []

    def _wait(self, receipt: Receipt, rows: Range) -> tuple[list[Receipt], list[Receipt]]:
        units = self.waiting.setdefault((receipt.identity, receipt.fingerprint), _Units())
        here = units.receipts.get(rows)
        if receipt.replaces == here.attempt if here is not None else units.free(rows):
            units.put(receipt)
        return (list(units.receipts.values()), self._instead(units)) if units.whole() else ([], [])

    def _instead(self, units: _Units) -> list[Receipt]:
        """Let these be the current ones, and nothing wait; what was current before."""
        gone = list(self.current.receipts.values())
        self.current, self.waiting = units, {}
        return gone


class Committed:
    """The receipts of an output that count, by shard."""

    def __init__(self) -> None:
        self._shards: dict[str, _Shard] = {}
        self._attempts: set[str] = set()
        self._replaced: dict[str, float] = {}  # attempt: since when readers see what replaced it

    def add(self, receipts: Iterable[Receipt], *, shown_at: float | None = None) -> Change:
        """Take in receipts that come next in ledger order. `shown_at`: to readers; None: once they were finished."""
        new: dict[str, Receipt] = {}
        gone: dict[str, Receipt] = {}
        for receipt in receipts:
            if receipt.attempt in self._attempts:
                continue
            self._attempts.add(receipt.attempt)
            shard = self._shards.get(receipt.shard)
            if shard is None:
                shard = self._shards[receipt.shard] = _Shard()
            more, less = shard.add(receipt)
            new.update((one.attempt, one) for one in more)
            for one in less:
                self._replaced[one.attempt] = receipt.finished_at if shown_at is None else shown_at
                if new.pop(one.attempt, None) is None:  # came and went within this very call
                    gone[one.attempt] = one
        return Change(new=tuple(new.values()), gone=tuple(gone.values()))

    def pass_over(self, receipt: Receipt) -> None:
        """Know of a receipt that does not count: of a candidate, or of a version that was given up."""
        self._attempts.add(receipt.attempt)

    def shown(self, attempts: Iterable[str], at: float) -> None:
        """Readers see since `at` what replaced these."""
        self._replaced.update(dict.fromkeys(attempts, at))

    def knows(self, attempt: str) -> bool:
        """Whether any receipt in the ledger, current or not, is of this attempt."""
        return attempt in self._attempts

    def fits(self, receipt: Receipt) -> bool:
        """Whether these rows could become current: no other cut of the same input is in their way."""
        shard = self._shards.get(receipt.shard, _Shard())
        rows = (receipt.start, receipt.stop)
        return not shard.reads(receipt.identity) or rows in shard.current.receipts or shard.current.free(rows)

    def waits(self, shard: str, identity: str, fingerprint: str, *, before: int) -> bool:
        """Whether a changed shard has all rows before this one, and readers do not see them yet."""
        there = self._shards.get(shard, _Shard())
        return there.waits(identity, fingerprint, before=before) is not None

    def replaced(self) -> Mapping[str, float]:
        """Attempts that were current once, and since when (epoch, in s) readers see what replaced them."""
        return self._replaced

    def current(self) -> Iterator[Receipt]:
        """Receipts whose files a reader should see."""
        for shard in self._shards.values():
            yield from shard.current.receipts.values()

    def waiting(self) -> Iterator[Receipt]:
        """Receipts of changed shards that are not yet whole: done and paid, but not yet to be seen."""
        for shard in self._shards.values():
            for units in shard.waiting.values():
                yield from units.receipts.values()

    def receipts(self) -> Iterator[Receipt]:
        """All that count as done: current and waiting."""
        yield from self.current()
        yield from self.waiting()
