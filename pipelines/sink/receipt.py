"""Receipt: what an attempt at a unit leaves behind, in the footer of its data file and in the ledger.

Two kinds have no files and tell something of a shard: that it was `removed`, because the corpus has it no more, or that
a run with a `source.limit` was done with it.
"""

import json
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import repeat
from typing import Any, Self

FOOTER_KEY = b"pipelines.receipt"
SHARED = ("shard", "identity", "fingerprint", "run")  # by many receipts, in each of which they take 350 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """All that the driver ever sees of a unit. Enough, with the files it names, to rebuild the tables."""

    shard: str  # path below source.uri
    identity: str  # of the shard that was read
    start: int  # first row, inclusive
    stop: int  # last row, exclusive
    last: bool  # the shard ends with this unit
    limited: bool = False  # source.limit ends with this unit: to this run, the shard goes no further
    fingerprint: str
    run: str  # run id
    attempt: str  # unique for each attempt; counted once, in rows and in money
    data_file: str | None  # name below <sink>/data; there even without rows: its footer is this receipt. None: no unit
    errors_file: str | None  # name below <sink>/errors; None: no dead letters
    data_bytes: int  # 0 in the footer, which is written before the file's size and hash are known
    data_sha256: str  # hex; empty in the footer
    errors_bytes: int
    errors_sha256: str
    rows_in: int
    rows_ok: int
    rows_error: int
    errors_by_type: dict[str, int]
    columns_left_out: dict[str, int] = field(default_factory=dict)  # the output has no such columns; rows with a value
    rows_carried: int = 0  # of rows_in, those that were taken from the output as it was: no engine was asked
    rows_shared: int = 0  # of rows_in, those that share the answer of another row with their key: asked once
    saved_prompt_tokens: int = 0  # of the carried and the shared rows: what the one took that was asked
    saved_output_tokens: int = 0
    prompt_tokens: int  # of the rows that were asked, as the engine counted, cached ones included
    cached_tokens: int  # those the engine did not have to prefill
    output_tokens: int
    device_seconds: float  # this unit's share of the time in which its engine was at work, times its devices
    started_at: float  # when the unit was read; seconds since the epoch, UTC
    finished_at: float
    gold_rows: int | None = None  # rows with a gold label that were answered; None: the job has no gold column
    gold_correct: int | None = None
    measures: str | None = None  # what the rows_ok say, measures.Counts as JSON; None: not measured, or not read back
    replaces: str | None = None  # the attempt whose rows this one does again on purpose; None: whatever stands there
    removed: bool = False  # the corpus has no such shard any more: whatever the output has of it is gone from here on

    def __post_init__(self) -> None:
        if self.rows_in != self.rows_ok + self.rows_error or self.rows_in != self.stop - self.start:
            counts = f"{self.rows_in} rows in, {self.rows_ok} ok + {self.rows_error} errors"
            raise ValueError(f"receipt of {self.shard} rows {self.start} to {self.stop}: {counts}; do the unit again")

    @classmethod
    def removal(cls, shard: str, *, fingerprint: str, run: str, attempt: str, at: float) -> Self:
        """That `shard` is gone from the corpus."""
        return cls(
            shard=shard,
            identity="",
            start=0,
            stop=0,
            last=False,
            fingerprint=fingerprint,
            run=run,
            attempt=attempt,
            data_file=None,
            errors_file=None,
            data_bytes=0,
            data_sha256="",
            errors_bytes=0,
            errors_sha256="",
            rows_in=0,
            rows_ok=0,
            rows_error=0,
            errors_by_type={},
            prompt_tokens=0,
            cached_tokens=0,
            output_tokens=0,
            device_seconds=0.0,
            started_at=at,
            finished_at=at,
            removed=True,
        )

    @classmethod
    def limit_reached(
        cls, shard: str, *, identity: str, limit: int, fingerprint: str, run: str, attempt: str, at: float
    ) -> Self:
        """That a run had nothing left to do in a shard of which it was to read the rows before `limit`."""
        told = cls.removal(shard, fingerprint=fingerprint, run=run, attempt=attempt, at=at)
        return replace(told, identity=identity, start=limit, stop=limit, removed=False, limited=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        told = json.loads(text)
        told |= {name: sys.intern(told[name]) for name in SHARED if name in told}
        return cls(**told)

    @classmethod
    def of_columns(cls, rows: int, columns: Mapping[str, Sequence[Any]]) -> list[Self]:
        """As many receipts as there are rows, from a column for each field; one that is absent has its default.

        A column is set as a whole, and nothing is checked again that was when the receipts were made: a frozen class
        called 10^5 times takes more than a second.
        """
        found = [object.__new__(cls) for _ in range(rows)]
        for each in fields(cls):
            values = columns[each.name] if each.name in columns else repeat(_default(each), rows)
            deque(map(getattr(cls, each.name).__set__, found, values), maxlen=0)  # of the slot, past the frozen class
        return found


def _default(of: Any) -> Any:
    if of.default_factory is not MISSING:
        return of.default_factory()
    if of.default is MISSING:
        raise ValueError(f"receipts without {of.name}: the ledger was written by something else")
    return of.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """A committed unit that is to be done again, in its own cut: what stands in its place is replaced as one."""

    start: int
    stop: int
    replaces: str | None = None  # retried: the attempt that this one replaces
    data_file: str | None = None  # retried: where its answers are, which are kept
    errors_file: str | None = None  # retried: where its dead letters are
