"""Publications: the log of decisions about an output, a Delta table at <sink>/publications, made by the first of them.

It is apart from the ledger, so that each line of that is a receipt and any SQL sums over it. To append a decision is to
publish or to roll back: the tables are brought up to it afterwards, by whoever comes next if need be.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from pipelines.sink.decisions import Action, Counting, Decision, Segments, State, from_text, shown_since, to_text
from pipelines.sink.fenced import FencedTable, check_inside

PUBLICATIONS = pa.schema(
    [
        ("epoch", pa.int64()),  # of the writer; of an approval: of the decision under which it was made
        ("seq", pa.int64()),
        ("at", pa.timestamp("us", "UTC")),
        ("action", pa.string()),
        ("run", pa.string()),
        ("fingerprint", pa.string()),
        ("by", pa.string()),
        ("reason", pa.string()),
        ("until", pa.int64()),  # the ledger's last place then: epoch * 2^40 + seq
        ("segments", pa.string()),  # JSON: what is shown from here on; null: as before
    ]
)
COMPACT_FILES = 64


class Publications:
    """All decisions so far. Readers and approvers need no epoch; who publishes begins one."""

    def __init__(self, uri: str, table: FencedTable | None) -> None:
        self.uri = uri
        self._table = table
        self._decisions: list[Decision] | None = None
        self._epoch: int | None = None
        self._seq = 0

    @classmethod
    def open(cls, sink_uri: str) -> Self:
        """The log of an output; one that is not there reads as empty."""
        uri = check_inside(sink_uri, "publications")
        return cls(uri, FencedTable.open(uri))

    @property
    def there(self) -> bool:
        """Whether anything was ever decided."""
        return self._table is not None

    def decisions(self) -> list[Decision]:
        """Every decision, in order; an approval stands behind the one that it was made under."""
        if self._decisions is None:
            rows = [] if self._table is None else self._table.read(PUBLICATIONS.names).to_pylist()
            self._decisions = sorted(map(_decision, rows), key=lambda one: (one.key, one.segments is None, one.at))
        return self._decisions

    def state(self) -> State:
        """What is shown now."""
        return State.of(self.decisions())

    def counting(self) -> Counting:
        """Which receipts readers see, and since when."""
        return Counting(self.state().segments, tuple(shown_since(self.decisions())))

    def epoch(self) -> int:
        """Of the last writer; 0: none was."""
        return 0 if self._table is None else self._table.epoch()

    def begin(self, epoch: int, *, run: str, create: bool) -> None:
        """Fence off earlier writers; without `create` only where there is a log."""
        if self._table is None:
            if not create:
                return
            self._table = FencedTable.create(self.uri, PUBLICATIONS)
        if self._table.epoch() < epoch:
            self._table.begin(epoch, run=run)
        self._epoch, self._seq, self._decisions = epoch, 0, None

    def decide(
        self, action: Action, *, run: str, fingerprint: str, by: str, reason: str, until: int, segments: Segments | None
    ) -> Decision:
        """Append a decision of the writer.

        Raises:
            Fenced: another run has begun since.
        """
        if self._epoch is None or self._table is None:
            raise RuntimeError(f"{self.uri}: begin first")
        self._seq += 1
        made = Decision(
            epoch=self._epoch,
            seq=self._seq,
            at=round(time.time(), 6),  # as the log can hold it
            action=action,
            run=run,
            fingerprint=fingerprint,
            by=by,
            reason=reason,
            until=until,
            segments=segments,
        )
        rows = _rows([made])

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(table, rows, mode="append", commit_properties=properties)

        self._table.commit(self._epoch, write)
        self.decisions().append(made)
        return made

    def approve(self, *, run: str, fingerprint: str, by: str, note: str, until: int) -> Decision:
        """Say that somebody answers for a candidate. It holds until what is shown changes; no writer is fenced off."""
        if self._table is None:
            raise RuntimeError(f"{self.uri}: nothing waits for approval")
        epoch, seq = self.state().key
        made = Decision(
            epoch=epoch,
            seq=seq,
            at=round(time.time(), 6),  # as the log can hold it
            action=Action.APPROVE,
            run=run,
            fingerprint=fingerprint,
            by=by,
            reason=note,
            until=until,
        )
        rows = _rows([made])

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(table, rows, mode="append", commit_properties=properties)

        # In the name of whoever writes now: nobody is fenced off, and a commit of theirs in between is made again.
        self._table.commit(self._table.epoch(), write)
        self._decisions = None
        return made

    def approval(self, fingerprint: str) -> Decision | None:
        """The newest approval of the candidate of this fingerprint that still holds."""
        key = self.state().key
        holds = [
            one
            for one in self.decisions()
            if one.action is Action.APPROVE and one.fingerprint == fingerprint and one.key == key
        ]
        return holds[-1] if holds else None

    def newest(self, fingerprint: str) -> Decision | None:
        """Why the candidate of this fingerprint is not shown: its last block, or a rollback since; None: neither."""
        said = [
            one
            for one in self.decisions()
            if one.action is Action.ROLLBACK or (one.action is Action.BLOCK and one.fingerprint == fingerprint)
        ]
        return said[-1] if said else None

    def tidy(self) -> None:
        """Join the small files that decisions leave."""
        if self._table is None or self._epoch is None or len(self._table.names()) < COMPACT_FILES:
            return

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            table.optimize.compact(commit_properties=properties)

        self._table.commit(self._epoch, write, always=False)


def _rows(decisions: Sequence[Decision]) -> pa.Table:
    plain: list[dict[str, Any]] = [
        asdict(one) | {"at": round(one.at * 1e6), "segments": to_text(one.segments)} for one in decisions
    ]
    columns = {
        name: pa.array([one[name] for one in plain], PUBLICATIONS.field(name).type) for name in PUBLICATIONS.names
    }
    return pa.table(columns, schema=PUBLICATIONS)


def _decision(row: dict[str, Any]) -> Decision:
    fields = {"at": row["at"].timestamp(), "action": Action(row["action"]), "segments": from_text(row["segments"])}
    return Decision(**row | fields)
