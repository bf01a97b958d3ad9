"""Costs: what each run of an output was billed, by part and day, a Delta table at <sink>/costs; and the open accounts.

While a run holds devices, <sink>/runs/<run id>/cost.json says what it would have cost had it been killed that moment;
it is renewed every few seconds. Who ends in order books it into the table and removes the file; what a killed run has
left, the next start books. To book is to add what the table lacks: it can be repeated, and cut off at any point.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake

from pipelines import storage
from pipelines.sink.fenced import FencedTable, check_inside

log = logging.getLogger(__name__)

FILE = "cost.json"
COSTS = pa.schema(
    [
        ("run", pa.string()),
        ("job", pa.string()),
        ("model", pa.string()),
        ("day", pa.date32()),  # UTC
        ("part", pa.string()),
        ("device", pa.string()),
        ("device_ns", pa.int64()),  # nanoseconds of devices; below 0 where less was lost than had been booked
        ("usd", pa.decimal128(38, 18)),  # of these, at:
        ("usd_per_hour", pa.decimal128(38, 12)),
        ("price", pa.string()),  # conf/pricing/NAME.yaml
        ("price_source", pa.string()),
        ("price_date", pa.string()),
        ("booked_at", pa.float64()),  # seconds since the epoch
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A row of the table."""

    run: str
    job: str
    model: str
    day: date
    part: str
    device: str
    device_ns: int
    usd: Decimal
    usd_per_hour: Decimal
    price: str
    price_source: str
    price_date: str
    booked_at: float


class Costs:
    """The table. Without an epoch, that of the ledger, it is only read."""

    def __init__(self, sink_uri: str, *, epoch: int | None = None, run: str = "") -> None:
        self._sink_uri, self._epoch, self._run = sink_uri, epoch, run
        self.uri = check_inside(sink_uri, "costs")
        self._table: FencedTable | None = None
        self._begun = False

    def rows(self, columns: Sequence[str] = COSTS.names) -> pa.Table:
        """All that is booked; nothing where no run has been."""
        self._table = self._table or FencedTable.open(self.uri)
        if self._table is None:
            return COSTS.empty_table().select(list(columns))
        return self._table.read(columns)

    def usd(self) -> Decimal:
        """What all runs were billed."""
        return pc.sum(self.rows(["usd"])["usd"]).as_py() or Decimal(0)

    def booked(self, run: str) -> dict[tuple[date, str], int]:
        """Nanoseconds of devices of a run, by day and part."""
        found: dict[tuple[date, str], int] = {}
        rows = self.rows(["run", "day", "part", "device_ns"])
        for row in rows.filter(pc.equal(rows["run"], run)).to_pylist():
            key = (row["day"], row["part"])
            found[key] = found.get(key, 0) + row["device_ns"]
        return found

    def book(self, costs: Sequence[Cost]) -> None:
        """Add these, as one commit.

        Raises:
            Fenced: another run has begun since.
        """
        if self._epoch is None:
            raise RuntimeError(f"{self.uri}: opened to be read")
        if not costs:
            return
        self._table = self._table or FencedTable.create(self.uri, COSTS)
        if not self._begun:
            self._table.check(COSTS, growing=False)
            self._table.begin(self._epoch, run=self._run)
            self._begun = True
        columns = {each.name: [getattr(cost, each.name) for cost in costs] for each in fields(Cost)}
        rows = pa.table({name: pa.array(columns[name], COSTS.field(name).type) for name in COSTS.names}, schema=COSTS)
        self._table.commit(
            self._epoch,
            lambda table, properties: write_deltalake(table, rows, mode="append", commit_properties=properties),
        )


def keep_open(sink_uri: str, run: str, account: Mapping[str, Any]) -> None:
    """Renew what a run would have cost if it were killed now."""
    storage.put(_uri(sink_uri, run), json.dumps(account, indent=1, sort_keys=True).encode())


def closed(sink_uri: str, run: str) -> None:
    """All of it is booked."""
    storage.delete(_uri(sink_uri, run))


def open_accounts(sink_uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Run and account of each that nobody has booked in full."""
    for stored in storage.listing(storage.join(sink_uri, "runs"), missing_ok=True):
        if stored.path.endswith(f"/{FILE}") and stored.path.count("/") == 1:
            try:
                account = json.loads(storage.get(stored.uri))
            except FileNotFoundError:
                continue  # its run has ended while we looked
            except ValueError:
                log.warning("%s is not understood, and left alone", storage.shown(stored.uri))
                continue
            yield stored.path.partition("/")[0], account


def _uri(sink_uri: str, run: str) -> str:
    return storage.join(sink_uri, "runs", run, FILE)
