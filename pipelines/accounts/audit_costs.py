"""Audit of money: the table of costs against what each run said that it was billed, and against its receipts.

What was billed is seconds of devices at a price, split into parts, of which `prefill`, `decode` and `rejected` are the
work that receipts tell of, each with its unit's share. So three records must agree: lines, bills, receipts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa

from pipelines.accounts import run_summary
from pipelines.accounts.attribution import NS
from pipelines.accounts.run_summary import RunSummary
from pipelines.sink.audit_files import Check
from pipelines.sink.costs import Costs, open_accounts
from pipelines.sink.ledger import Ledger

TOLERANCE = Decimal("0.001")  # of what was billed
# Of each device: what an engine did after it last reported is in a receipt at times, and in no part; and a run that was
# killed is billed up to the last renewal of its account, 5 s and a commit before (account.py).
SLACK_S = Decimal(10)
_NS_PER_HOUR = 3600 * NS
_WORK = ("prefill", "decode", "rejected")  # what was guessed in vain was computed with what was not (attribution.py)
_LAST_DIGIT = Decimal(1).scaleb(-17)  # of the table's dollars, and what rounding may make of it


@dataclass(slots=True)
class _Billed:
    """A run in the table of costs."""

    device: str = ""
    usd: Decimal = Decimal(0)
    ns: int = 0
    ns_by_part: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def audit_costs(sink_uri: str, ledger: Ledger) -> list[Check]:
    """Two checks, of runs and of receipts. Raises StoreFailed."""
    costs = Check("costs", "what each run was billed is the sum of its parts, at its price, within 0.1 %", "runs")
    shares = Check("shares", "what receipts say of the devices' time is what was billed for work", "receipts")
    billed = _lines(Costs(sink_uri).rows(), costs)
    left = run_summary.runs(sink_uri)
    said = {
        one.run_id: one for one in run_summary.of_runs(sink_uri, [(run, small) for run, (small, _) in left.items()])
    }
    open_ = {run for run, _ in open_accounts(sink_uri)}
    work = _work(ledger, shares)
    costs.checked = len(billed.keys() | {run for run, one in said.items() if one.billed_usd is not None})
    for run in sorted(billed.keys() | said.keys() | work.keys()):
        if run in open_:
            costs.notes.append(f"run {run} is at work, or was killed: the next run books what it is still to be billed")
        else:
            _bill(run, billed.get(run), said.get(run), work.get(run, Decimal(0)), costs)
            _shares(run, billed.get(run), said.get(run), work.get(run, Decimal(0)), shares)
    return [costs, shares]


def _lines(rows: pa.Table, check: Check) -> dict[str, _Billed]:
    """By run; each line's dollars are its seconds at its price."""
    found: dict[str, _Billed] = defaultdict(_Billed)
    for line in rows.to_pylist():
        run = found[line["run"]]
        run.device, run.usd, run.ns = line["device"], run.usd + line["usd"], run.ns + line["device_ns"]
        run.ns_by_part[line["part"]] += line["device_ns"]
        exact = line["usd_per_hour"] * line["device_ns"] / _NS_PER_HOUR
        if abs(line["usd"] - exact) > abs(exact) * TOLERANCE + _LAST_DIGIT:
            seconds = Decimal(line["device_ns"]) / NS
            told = f"{seconds:.1f} device-seconds at ${line['usd_per_hour'].normalize():f} an hour are ${_short(exact)}"
            check.find(f"run {line['run']}, {line['part']} on {line['day']}: ${_short(line['usd'])}, but {told}")
    return found


def _bill(run: str, billed: _Billed | None, said: RunSummary | None, work_s: Decimal, check: Check) -> None:
    bill = None if said is None else said.billed_usd
    if billed is None:
        if bill or work_s > _slack_s(said):
            worked = f"said that it was billed ${_short(bill)}" if bill else f"did {work_s:.1f} device-seconds of work"
            check.find(f"run {run} {worked}, and the table of costs has nothing of it")
        return
    if billed.usd < 0 or billed.ns < 0:
        check.find(
            f"run {run} was billed ${_short(billed.usd)} for {Decimal(billed.ns) / NS:.1f} device-seconds: below 0"
        )
    if bill is not None and abs(billed.usd - bill) > bill * TOLERANCE:
        check.find(
            f"run {run} was billed ${_short(bill)}; its parts in the table of costs add up to ${_short(billed.usd)}"
        )


def _shares(run: str, billed: _Billed | None, said: RunSummary | None, work_s: Decimal, check: Check) -> None:
    """Receipts tell of all work that was billed as such, and of no more than was billed as such or as failed."""
    if billed is None:
        return
    useful_s, failed_s, held_s = (
        Decimal(ns) / NS
        for ns in (
            sum(billed.ns_by_part[part] for part in _WORK),
            billed.ns_by_part["failed"],
            billed.ns,
        )
    )
    # Engines on CPU share one machine, of which each bears a part: how many they were at a time, nobody wrote down.
    shared = 1 if said is None or billed.device != "cpu" else said.devices_most or 1
    rounding_s = held_s * TOLERANCE
    if useful_s > work_s + rounding_s:
        check.find(f"run {run} was billed {useful_s:.1f} device-seconds of work, its receipts tell of {work_s:.1f}")
    if work_s > shared * (useful_s + failed_s) + _slack_s(said) + rounding_s:
        most = f"{useful_s + failed_s:.1f} were billed as work or failed"
        check.find(f"run {run} has receipts of {work_s:.1f} device-seconds, of which {most}")


def _slack_s(said: RunSummary | None) -> Decimal:
    return SLACK_S * (1 if said is None else said.devices_most or 1)


def _work(ledger: Ledger, check: Check) -> Mapping[str, Decimal]:
    """Device-seconds that each run's receipts tell of, an attempt once; each receipt by itself is possible."""
    work: dict[str, Decimal] = defaultdict(Decimal)
    for receipt in _once(ledger):
        check.checked += 1
        seconds = receipt["device_seconds"]
        if not 0 <= seconds < float("inf"):
            check.find(f"{receipt['shard']} from row {receipt['start']}: {seconds} device-seconds")
            continue
        if not 0 <= receipt["cached_tokens"] <= receipt["prompt_tokens"]:
            told = f"{receipt['cached_tokens']:,} of {receipt['prompt_tokens']:,} prompt tokens cached"
            check.find(f"{receipt['shard']} from row {receipt['start']}: {told}")
        if seconds:
            work[receipt["run"]] += Decimal(repr(seconds))
    return work


def _once(ledger: Ledger) -> Iterator[dict[str, Any]]:
    columns = ["shard", "start", "run", "attempt", "device_seconds", "prompt_tokens", "cached_tokens"]
    seen: set[str] = set()
    for batch in ledger.table(columns).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            if row["attempt"] not in seen:
                seen.add(row["attempt"])
                yield row


def _short(usd: Decimal) -> str:
    return f"{Decimal(f'{usd:.6g}').normalize():f}"
