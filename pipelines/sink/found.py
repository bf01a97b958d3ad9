"""Found: an output as a start finds it, before anybody becomes its writer."""

from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink.committed import Committed
from pipelines.sink.decisions import Counting
from pipelines.sink.fenced import FencedTable, check_inside
from pipelines.sink.ledger import Ledger
from pipelines.sink.publications import Publications
from pipelines.sink.receipt import Receipt
from pipelines.source.schema import RESERVED


@dataclass(frozen=True, slots=True)
class Found:
    """An output as a start finds it, each of its tables opened once. Nothing is made, and nobody is fenced off."""

    ledger: Ledger
    data: FencedTable | None  # None: there is none yet
    errors: FencedTable | None
    publications: Publications

    @classmethod
    def at(cls, sink_uri: str) -> Self:
        """What lies at `sink_uri`. Of its ledger counts what readers see, until `candidate` is asked for.

        Raises:
            UserError: a folder of it leads out of it.
        """
        data, errors = (FencedTable.open(check_inside(sink_uri, name)) for name in ("data", "errors"))
        found = cls(Ledger.open(sink_uri, create=False), data, errors, Publications.open(sink_uri))
        found.ledger.count(found.publications.counting())
        return found

    def candidate(self, fingerprint: str, *, gate: bool) -> Committed:
        """What a run of this fingerprint would find done, from here on what counts of the ledger.

        Under a gate that is what is published and the fingerprint's own units that are not; without one, all that is
        committed from now on will be shown, and what waits is given up.
        """
        state, end = self.publications.state(), self.ledger.end()
        segments = state.candidate(fingerprint) if gate else state.followed(end)
        self.ledger.count(Counting(segments, self.publications.counting().since))
        return self.ledger.committed()

    def waiting(self) -> dict[str, list[Receipt]]:
        """Receipts that no reader sees and that may be published, by fingerprint."""
        until = self.publications.state().until
        found: dict[str, list[Receipt]] = {}
        if until is None:
            return found
        for place, receipt in self.ledger.entries():
            if place > until:
                found.setdefault(receipt.fingerprint, []).append(receipt)
        return found

    def chosen(self, run: str | None) -> tuple[str, list[Receipt]]:
        """The fingerprint whose candidate is meant, and its receipts; without `run` the newest.

        Raises:
            UserError: nothing waits, or not of that run.
        """
        waiting = self.waiting()
        if not waiting:
            raise UserError(f"{storage.shown(self.ledger.uri)}: nothing waits to be published; readers see all of it")
        newest = max(waiting, key=lambda one: waiting[one][-1].finished_at)
        of_run = {receipt.run: one for one, receipts in waiting.items() for receipt in receipts}
        of_run |= {one.run: one.fingerprint for one in self.publications.decisions() if one.fingerprint in waiting}
        if run is not None and run not in of_run:
            raise UserError(f"run={run}: nothing of it waits to be published; runs with something: {', '.join(of_run)}")
        fingerprint = newest if run is None else of_run[run]
        return fingerprint, waiting[fingerprint]

    def views(self, fingerprint: str) -> tuple[Committed, Committed]:
        """What readers see, and what they would see with the candidate of a fingerprint."""
        state, shown = self.publications.state(), self.publications.counting()
        entries = self.ledger.entries()
        candidate = Counting(state.candidate(fingerprint), shown.since)
        return self.ledger.fold(shown, entries), self.ledger.fold(candidate, entries)

    def input_schema(self) -> pa.Schema | None:
        """The input's columns in the output; None: there is no output yet."""
        if self.errors is None:
            return None
        return pa.schema([field for field in self.errors.schema() if field.name not in RESERVED])

    def check(self, data_schema: pa.Schema, errors_schema: pa.Schema) -> None:
        """See that rows of these columns can go into the tables, if there are any.

        Raises:
            UserError: a column there is missing here, or has another type.
        """
        for table, schema in ((self.data, data_schema), (self.errors, errors_schema)):
            if table is not None:
                table.check(schema, growing=True)
