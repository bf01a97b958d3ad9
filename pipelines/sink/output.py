"""Output: ledger and tables in the hands of the one run that writes them, in the order that keeps the promises.

Opening it fences off every earlier writer and brings the output to rest: tables up to the ledger, finished files
that a crash kept out of the ledger taken over, all other leftovers removed. It can be repeated at any time.
"""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink.aside import missing, schemas, set_aside
from pipelines.sink.committed import Change, Committed
from pipelines.sink.decisions import ALL, START, Action, Counting, Decision, Segments, Version
from pipelines.sink.found import Found
from pipelines.sink.ledger import Ledger
from pipelines.sink.publications import Publications
from pipelines.sink.receipt import Receipt
from pipelines.sink.tables import (
    Leftover,
    Tables,
    clean,
    create_tables,
    follow,
    grow,
    open_tables,
    stocktaking,
    take_over,
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Output:
    """An output that a run writes."""

    ledger: Ledger
    tables: Tables
    publications: Publications
    run: str
    fingerprint: str
    schemas: tuple[pa.Schema, pa.Schema]  # of data and errors
    taken_over: tuple[Receipt, ...] = ()  # units that an earlier run had finished and not committed
    lost: frozenset[str] = frozenset()  # attempts that count, of which a file is gone: to be done again
    published: Committed | None = None  # under a gate: what readers see. None: all that counts
    others: tuple[Receipt, ...] = ()  # under a gate: what waits of other fingerprints

    @classmethod
    def open(
        cls,
        sink_uri: str,
        *,
        data_schema: pa.Schema,
        errors_schema: pa.Schema,
        fingerprint: str,
        identities: Mapping[str, str],
        retain_hours: float,
        run: str = "",
        found: Found | None = None,
        gate: bool = False,
    ) -> Self:
        """Become the writer. `identities`: of the shards that the corpus has now, by their path.

        `run` is who an earlier writer is told to have been overtaken by. `found`: this output as it was found before;
        its ledger is read again only if something was appended since. `gate`: readers see nothing of what is
        committed before `publish`.

        Raises:
            UserError: the output's tables have other columns.
        """
        schemas = (data_schema, errors_schema)
        output = cls._begun(sink_uri, schemas, fingerprint, run=run, found=found or Found.at(sink_uri), gate=gate)
        left, output.lost = stocktaking(sink_uri, output.shown, output.view)
        taken = take_over(sink_uri, output.view, fingerprint=fingerprint, identities=identities, left=left)
        if taken:
            log.info("%s: took over %d finished units that no receipt named", sink_uri, len(taken))
            output.ledger.append(taken)
            output.taken_over = tuple(taken)
        # Not before: were the ledger lost, readers would see the tables emptied, and filled again.
        follow(output.tables, output.shown)
        output._clean(retain_hours, left=left)
        return output

    @classmethod
    def at_rest(cls, sink_uri: str, *, run: str, found: Found, fingerprint: str = "") -> Self:
        """Become the writer of an output without a job, to publish the candidate of a fingerprint or to roll back.

        What a killed run has left is the next run's to take over. The tables are brought up to what is published.

        Raises:
            UserError: files that the tables would name are gone.
        """
        shown, candidate = found.views(fingerprint)
        names = {receipt.attempt for receipt in shown.current()}
        new = [receipt for receipt in candidate.current() if receipt.attempt not in names]
        if gone := missing(sink_uri, new):
            raise UserError(f"{storage.shown(sink_uri)}: {len(gone):,} files are gone, {gone[0]} for one; run the job")
        there = {name: table.schema() for name, table in (("data", found.data), ("errors", found.errors)) if table}
        there |= schemas(sink_uri, new)
        output = cls._begun(sink_uri, (there["data"], there["errors"]), fingerprint, run=run, found=found, gate=True)
        follow(output.tables, output.shown)
        return output

    @classmethod
    def _begun(
        cls,
        sink_uri: str,
        schemas: tuple[pa.Schema, pa.Schema],
        fingerprint: str,
        *,
        run: str,
        found: Found,
        gate: bool,
    ) -> Self:
        ledger = found.ledger.made()
        # A start that is refused here fences nobody off.
        made = create_tables(sink_uri, *schemas, found=(found.data, found.errors))
        publications = found.publications
        epoch = ledger.begin_epoch(run, above=max(publications.epoch(), *(table.epoch() for table in made)))
        view = ledger.committed()
        tables = open_tables(sink_uri, *schemas, epoch=epoch, run=run, made=made, view=view, growing=not gate)
        publications.begin(epoch, run=run, create=gate)
        output = cls(ledger, tables, publications, run, fingerprint, schemas)
        if publications.there:
            output._admit(gate=gate)
        return output

    def _admit(self, *, gate: bool) -> None:
        """Let the log say whether what comes is shown at once, before anything comes."""
        state, end = self.publications.state(), self.ledger.end()
        if end == START and state.until not in (None, START):
            # Its places mean nothing any more. What was published is found again by its footers, what waits lies aside.
            self._decide(Action.FOLLOW, reason="the ledger was lost", segments=ALL)
        elif gate and state.follows:
            self._decide(Action.HOLD, reason="publish=gate", segments=state.held(end))
        elif not gate and not state.follows:
            self._decide(Action.FOLLOW, reason="publish=auto", segments=state.followed(end))
        self._look()

    def _look(self) -> None:
        """See what is shown and what waits, as the log says now."""
        state, shown = self.publications.state(), self.publications.counting()
        self.ledger.count(Counting(state.candidate(self.fingerprint), shown.since))
        until = state.until
        if until is None:
            self.published, self.others = None, ()
            return
        entries = self.ledger.entries()
        self.published = self.ledger.fold(shown, entries)
        self.others = tuple(one for place, one in entries if place > until and one.fingerprint != self.fingerprint)

    @property
    def view(self) -> Committed:
        """What counts to the run."""
        return self.ledger.committed()

    @property
    def shown(self) -> Committed:
        """What readers see."""
        return self.view if self.published is None else self.published

    def candidate(self) -> Change:
        """What `publish` would show, and what it would take away."""
        if self.published is None:
            return Change(new=(), gone=())
        here = {receipt.attempt for receipt in self.view.current()}
        there = {receipt.attempt for receipt in self.published.current()}
        return Change(
            new=tuple(one for one in self.view.current() if one.attempt not in there),
            gone=tuple(one for one in self.published.current() if one.attempt not in here),
        )

    def rolled_back(self) -> Decision | None:
        """The rollback that took away what the candidate would show again; None: it was never shown."""
        decision = self.publications.state().decision
        if decision is None or decision.action is not Action.ROLLBACK or self.published is None:
            return None
        before = {one.attempt for place, one in self.ledger.entries() if place <= decision.until}
        return decision if any(one.attempt in before for one in self.candidate().new) else None

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """The units of these receipts are done: in the ledger first, which is the commit, then in the tables.

        Under a gate readers do not see them yet.

        Raises:
            Fenced: another run has begun since.
            StoreFailed: the store stayed away; the next start knows what is committed.
        """
        change = self.ledger.append(receipts)
        if self.published is None:
            follow(self.tables, self.view, change)

    def publish(self, *, by: str, reason: str) -> None:
        """Show the candidate: by one commit to the log, which decides, then by one commit to each table.

        What waits of other fingerprints is given up: it was answered beside a version that is shown no more.

        Raises:
            Fenced: another run has begun since.
        """
        change, state = self.candidate(), self.publications.state()
        grow(
            self.tables, *self.schemas
        )  # first, for nobody would do it after a crash; a column without rows harms none
        segments = state.published(self.fingerprint, self.ledger.end(), alone=not self.others)
        made = self._decide(Action.PUBLISH, by=by, reason=reason, segments=segments)
        follow(self.tables, self.view)
        self.view.shown((receipt.attempt for receipt in change.gone), made.at)
        self.published, self.others = self.view, ()

    def block(self, reason: str) -> None:
        """Write down why the candidate was not published."""
        self._decide(Action.BLOCK, reason=reason, segments=None)

    def roll_back(self, version: Version, *, by: str, reason: str) -> None:
        """Show an earlier version again, as `publish` does. What it does not hold waits, and is not paid for again."""
        made = self._decide(Action.ROLLBACK, by=by, reason=reason, segments=version.segments, run=version.run)
        log.info("%s: rolled back to run %s (%s)", self.tables.sink_uri, made.run, made.reason)
        self._look()
        follow(self.tables, self.shown)

    def _decide(
        self, action: Action, *, reason: str, segments: Segments | None, by: str = "gate", run: str | None = None
    ) -> Decision:
        return self.publications.decide(
            action,
            run=self.run if run is None else run,
            fingerprint=self.fingerprint,
            by=by,
            reason=reason,
            until=self.ledger.end(),
            segments=segments,
        )

    def remove(self, shards: Sequence[str], *, fingerprint: str, run: str) -> None:
        """Take away what the output has of shards that the corpus has no more."""
        if shards:
            now = time.time()
            gone = [
                Receipt.removal(shard, fingerprint=fingerprint, run=run, attempt=secrets.token_hex(5), at=now)
                for shard in shards
            ]
            log.info("%s: %d shards are gone from the corpus, and their answers from the output", run, len(gone))
            self.commit(gone)

    def limit_reached(self, shard: str, identity: str, limit: int, *, fingerprint: str, run: str) -> None:
        """Nothing is left to do in the rows of a shard before `limit`: readers see them from now on.

        The unit that ends there tells it by itself, but for those that were cut by runs with another limit or none.
        """
        if self.view.waits(shard, identity, fingerprint, before=limit):
            told = Receipt.limit_reached(
                shard,
                identity=identity,
                limit=limit,
                fingerprint=fingerprint,
                run=run,
                attempt=secrets.token_hex(5),
                at=time.time(),
            )
            self.commit([told])

    def close(self, *, retain_hours: float, known_alone: bool = False) -> None:
        """Leave the output at rest, for readers of plain Parquet too. No worker may write any more.

        `known_alone`: what no receipt names stays, for the next run to take over.

        Raises:
            Fenced: another run has begun since.
        """
        follow(self.tables, self.shown)
        # To move files aside is no commit, which would be refused.
        unseen = [*self.shown.waiting(), *self._unseen()]
        set_aside(self.tables.sink_uri, unseen, lambda: self.tables.data.check_writer(self.tables.epoch))
        self._clean(retain_hours, known_alone=known_alone)
        self.ledger.compact()
        self.publications.tidy()

    def _unseen(self) -> list[Receipt]:
        """What waits to be published."""
        if self.published is None:
            return []
        there = {receipt.attempt for receipt in self.published.current()}
        return [one for one in (*self.view.receipts(), *self.others) if one.attempt not in there]

    def _clean(self, retain_hours: float, *, left: Sequence[Leftover] | None = None, known_alone: bool = False) -> None:
        unseen = {receipt.attempt for receipt in self._unseen()}
        clean(
            self.tables,
            self.shown,
            retain_hours=retain_hours,
            left=left,
            candidates=unseen,
            known_alone=known_alone,
        )
