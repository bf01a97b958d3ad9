"""What a report tells of a run: its manifest, its receipts, what it was billed, and the runs before it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Self

import pyarrow as pa

from pipelines import storage
from pipelines.accounts import run_summary
from pipelines.accounts.account import tokens_of
from pipelines.accounts.attribution import Parts
from pipelines.accounts.cost import PerMillion
from pipelines.accounts.run_summary import RunSummary
from pipelines.accounts.summary import Totals
from pipelines.config import UserError
from pipelines.sink.costs import Costs
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt

RUNS_SHOWN = 50  # in the trend
RUNS_LOOKED_AT = 1000  # back from a run, for those of its job
_NAMED = 5  # runs in an error
_PARTS = tuple(each.name for each in fields(Parts))
_USEFUL = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part of the devices' time cost."""

    name: str
    device_ns: int
    usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run was billed, as the table of costs has it; its parts add up to `usd`."""

    parts: tuple[Part, ...]
    device: str
    usd_per_hour: Decimal
    price_source: str
    price_date: str

    @property
    def usd(self) -> Decimal:
        return sum((part.usd for part in self.parts), Decimal(0))

    @property
    def device_ns(self) -> int:
        return sum(part.device_ns for part in self.parts)

    def per_million(self, totals: Totals, *, useful: bool = False) -> PerMillion:
        """Dollars per million of these tokens; `useful`: of prefill and decode alone."""
        usd = sum((part.usd for part in self.parts if part.name in _USEFUL), Decimal(0)) if useful else self.usd
        return PerMillion.of(usd, tokens_of(totals))

    @classmethod
    def by_run(cls, booked: pa.Table) -> dict[str, Self]:
        """Of each run in the table of costs."""
        lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in booked.to_pylist():
            lines[line["run"]].append(line)
        return {run: cls._of(of_run) for run, of_run in lines.items()}

    @classmethod
    def _of(cls, lines: Sequence[Mapping[str, Any]]) -> Self:
        ns: dict[str, int] = defaultdict(int)
        usd: dict[str, Decimal] = defaultdict(Decimal)
        for line in lines:
            ns[line["part"]] += line["device_ns"]
            usd[line["part"]] += line["usd"]
        order = [*(name for name in _PARTS if name in ns), *sorted(set(ns) - set(_PARTS))]
        newest = max(lines, key=lambda line: line["booked_at"])
        return cls(
            parts=tuple(Part(name=name, device_ns=ns[name], usd=usd[name]) for name in order),
            device=newest["device"],
            usd_per_hour=newest["usd_per_hour"],
            price_source=newest["price_source"],
            price_date=newest["price_date"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it has left itself beside the output. `receipts`: its own, each attempt once."""

    run_id: str
    manifest: Mapping[str, Any]
    receipts: tuple[Receipt, ...]
    totals: Totals
    spent: Spent | None  # None: nothing is booked, for it held no device or has not ended

    @property
    def summary(self) -> Mapping[str, Any]:
        """What it told at its end; empty: it has not ended in order."""
        return self.manifest.get("summary") or {}

    @property
    def job(self) -> str:
        return str(self.manifest["config"]["job"]["name"])

    @property
    def model(self) -> str:
        return str(self.manifest["config"]["model"]["name"])

    @property
    def rows_asked(self) -> int:
        """Rows that were put to an engine, or found unanswerable before."""
        return self.totals.rows_in - self.totals.rows_carried - self.totals.rows_shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A run in the trend. None: not measured, or it has not ended in order."""

    run_id: str
    job: str
    model: str
    started_at: str
    state: str
    exit_code: int | None
    rows_in: int | None
    error_rate: Decimal | None  # 0..1
    tokens_per_s: float | None
    usd: Decimal | None
    usd_per_million: Decimal | None  # tokens of both kinds, billed
    gold_rows: int | None
    gold_correct: int | None

    @classmethod
    def of(cls, run: RunSummary, spent: Spent | None) -> Self:
        """A line from a run's summary and its bill."""
        usd = None if spent is None else spent.usd
        return cls(
            **{name: getattr(run, name) for name in _OF_SUMMARY},
            error_rate=Decimal(run.rows_error) / run.rows_in if run.rows_in and run.rows_error is not None else None,
            usd=usd,
            usd_per_million=usd / run.tokens * 10**6 if usd is not None and run.tokens else None,
        )

    @property
    def accuracy(self) -> Decimal | None:
        """0..1."""
        return Decimal(self.gold_correct or 0) / self.gold_rows if self.gold_rows else None


_OF_SUMMARY = (
    "run_id", "job", "model", "started_at", "state", "exit_code", "rows_in", "tokens_per_s", "gold_rows",
    "gold_correct",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Beside:
    """What lies beside an output, read once: the bill of each run, and what it left as it is asked for."""

    sink_uri: str
    runs: Mapping[str, tuple[bool, int]]  # run_summary.runs
    spent: Mapping[str, Spent]

    @classmethod
    def of(cls, sink_uri: str) -> Self:
        """Of the output at `sink_uri`."""
        return cls(sink_uri, run_summary.runs(sink_uri), Spent.by_run(Costs(sink_uri).rows()))

    def run(self, run_id: str, receipts: Iterable[Receipt] | None = None) -> Run:
        """One run. `receipts`: the ledger's, where they are at hand.

        Raises:
            UserError: there is no such run; those that there are, are named.
        """
        if run_id not in self.runs:
            newest = sorted(self.runs, reverse=True)[:_NAMED]
            more = f" and {len(self.runs) - len(newest)} more" if len(self.runs) > len(newest) else ""
            there = f"its newest: {', '.join(newest)}{more}" if newest else "no run has been there"
            raise UserError(f"run={run_id}: {storage.shown(self.sink_uri)}/runs has no such run; {there}")
        if receipts is None:
            receipts = Ledger.open(self.sink_uri, create=False).receipts()
        own = {one.attempt: one for one in receipts if one.run == run_id and one.data_file is not None}
        return Run(
            run_id=run_id,
            manifest=self._manifest(run_id),
            receipts=tuple(own.values()),
            totals=Totals.of(own.values()),
            spent=self.spent.get(run_id),
        )

    def newest(self) -> str | None:
        """The newest run; a run id begins with its time."""
        return max(self.runs, default=None)

    def trend(self, run_id: str) -> list[Line]:
        """This run and those before it of the same job, oldest first, at most RUNS_SHOWN. No manifest is read."""
        own = next(self._summaries([run_id]), None)
        earlier = sorted((one for one in self.runs if one < run_id), reverse=True)
        lines = [] if own is None else [Line.of(own, self.spent.get(run_id))]
        for start in range(0, min(len(earlier), RUNS_LOOKED_AT), RUNS_SHOWN):
            for found in self._summaries(earlier[start : start + RUNS_SHOWN]):
                if len(lines) < RUNS_SHOWN and (own is None or found.job == own.job):
                    lines.append(Line.of(found, self.spent.get(found.run_id)))
            if len(lines) >= RUNS_SHOWN:
                break
        return lines[::-1]

    def _summaries(self, runs: Sequence[str]) -> Iterator[RunSummary]:
        """Those of runs from before there were summaries from their manifests, as far as these are not too much."""
        left = run_summary.MANIFEST_BYTES
        wanted: list[tuple[str, bool]] = []
        for run in runs:
            small, size = self.runs[run]
            left -= 0 if small else size
            if small or left >= 0 or not wanted:
                wanted.append((run, small))
        return run_summary.of_runs(self.sink_uri, wanted)

    def _manifest(self, run_id: str) -> Mapping[str, Any]:
        uri = storage.join(self.sink_uri, "runs", run_id, "manifest.json")
        try:
            found = json.loads(storage.get(uri))
            if not isinstance(found, dict) or found["run_id"] != run_id or "config" not in found:
                raise ValueError("of another kind")
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"{storage.shown(uri)} is no manifest of that run ({error}); choose another run") from None
        return found
