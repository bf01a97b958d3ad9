"""Unit: a contiguous row range of one shard; where to cut, and what a unit is called.

A unit's name is part of the names of its files, so it must be safe on any store and file system, and two
shards must never share one: a readable tail of the shard's path, a hash of all of it, and the row range.
"""

import hashlib
import math
import re
from dataclasses import dataclass

UNREADABLE_SHARD = "unreadable_shard"  # error type of the one row that stands for what cannot be read of a shard

LEADING_ROWS = 32
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_TAIL = 60  # characters of the shard's path that stay readable


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSize:
    """Where a unit ends: at whichever bound is reached first."""

    rows: int
    bytes: int  # decoded, in memory

    def rows_of(self, number: int, row: int, *, leads: bool, tail: "Tail | None" = None) -> int:
        """Most rows of the unit that is cut as the `number`th, from 0, in reading a shard, and begins with `row`.

        The shard that leads a run begins with units of 32 rows, 64, 128 and so on up to `rows`: something is committed,
        and seen to be right or wrong, long before units of full size are through a slow engine.
        """
        most = min(self.rows, LEADING_ROWS << min(number, 32)) if leads else self.rows
        return min(most, tail.rows_at(row)) if tail else most

    def units_of(self, start: int, stop: int, *, leads: bool, tail: "Tail | None" = None, before: int = 0) -> int:
        """How many units these rows make behind `before` units of their shard, as far as bytes do not cut them."""
        units = 0
        while start < stop:
            most = self.rows_of(before + units, start, leads=leads, tail=tail)
            if most == self.rows:  # and so it is until the tail begins
                until = stop if tail is None else min(stop, max(start + 1, tail.begins(self.rows)))
                full = math.ceil((until - start) / self.rows)
                start, units = start + full * self.rows, units + full
            else:
                start, units = start + most, units + 1
        return units


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """How units become smaller towards the end of a run, seen from one of its shards."""

    ends_at: int  # the row of this shard that the run ended at if all that comes after the shard stood behind its rows
    shares: int  # a unit has no more rows than what is left over this,
    least: int  # but as many as this

    def rows_at(self, row: int) -> int:
        """Most rows of a unit that begins with this one."""
        return max(self.least, (self.ends_at - row) // self.shares)

    def begins(self, rows: int) -> int:
        """The first row of which a unit has fewer than `rows`."""
        return self.ends_at - rows * self.shares + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows `start` (inclusive) to `stop` (exclusive) of a shard, counted from 0."""

    shard: str  # path below source.uri
    identity: str  # of the shard when it was listed: what changes when its bytes change
    start: int
    stop: int
    last: bool  # the shard ends here
    limited: bool = False  # source.limit ends here

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return unit_name(self.shard, self.start, self.stop)


def unit_name(shard: str, start: int, stop: int) -> str:
    """A name of [A-Za-z0-9._-] only, at most 120 characters, different for every shard and range."""
    tail = _UNSAFE.sub("_", shard)[-_TAIL:].lstrip("._-")
    digest = hashlib.sha256(shard.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{tail or 'shard'}-{digest}.{start}-{stop}"
