"""A ledger of costs by hand: three engines, a kill over midnight, a successor that takes over, rows carried along.

Real tables, and a clock that is given.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.accounts.account import Account, book_left
from pipelines.accounts.allowance import CLOSE_S, REACTION_S, Allowance
from pipelines.accounts.summary import Totals
from pipelines.config import BudgetConfig, DevicePrice, EngineSettings
from pipelines.sink import costs as open_costs
from pipelines.sink.costs import Costs, open_accounts
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt
from tests.accounts_samples import HostReport, receipt, run_config, three_lives

BEGAN = datetime(2026, 11, 24, 23, 59, 29, 500_000, tzinfo=UTC).timestamp()
PRICE = DevicePrice(usd_per_hour=Decimal("3.60"), source="a list", date="2026-10-01")  # 0.1 cent a second
MICRO = Decimal("0.000001")  # dollars


class Clock:
    """Seconds since a start at BEGAN."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def ns(self) -> int:
        return round(self.seconds * 10**9)

    def wall(self) -> float:
        return BEGAN + self.seconds


def account(
    folder: Path,
    clock: Clock,
    run: str,
    *,
    allowance: Allowance | None = None,
    replicas: int | tuple[int, int] = 3,
    device: str | None = "NVIDIA H100",
) -> Account:
    config = replace(run_config(folder), engine=EngineSettings(kind="simulated", replicas=replicas))
    return Account(
        config,
        allowance or Allowance(grace_s=60),
        PRICE,
        run_id=run,
        sink_uri=f"{folder}/sink",
        device=device,
        devices_each=1,
        clock_ns=clock.ns,
        wall=clock.wall,
    )


def unit(number: int, device_seconds: float, **changes: Any) -> Receipt:
    """Ten rows, for which 30 tokens were read and 10 written."""
    values: dict[str, Any] = {
        "prompt_tokens": 30,
        "output_tokens": 10,
        "attempt": f"{number:010}",
        "device_seconds": device_seconds,
    }
    return receipt(10 * number, 10 * number + 10, **(values | changes))


def usd(costs: Costs, *by: str) -> dict[Any, Decimal]:
    found: defaultdict[Any, Decimal] = defaultdict(Decimal)
    for row in costs.rows().to_pylist():
        found[tuple(row[name] for name in by) if len(by) > 1 else row[by[0]]] += row["usd"]
    return {key: value.normalize() for key, value in found.items()}


def killed_at_60_s(folder: Path) -> Ledger:
    """The first run: it commits at 60 s, and is no more a moment later. One commit's answer was lost."""
    clock = Clock()
    ledger = Ledger.open(f"{folder}/sink", create=True)
    ledger.begin_epoch("run-1")
    first = account(folder, clock, "run-1")
    first.hold()
    for second in range(1, 61):
        clock.seconds = second
        first.see(three_lives(second))
    receipts = [unit(0, 40.0), unit(1, 6.0), unit(2, 8.0), unit(3, 8.0)]
    ledger.append([unit(9, 77.0, run="run-0"), *receipts])
    ledger.append(receipts[:1])
    first.committed(receipts[:1], took_s=0.1)
    first.committed(receipts[1:], took_s=0.1)
    assert first.parts().useful == 57 * 10**9
    return ledger


def test_for_those_who_watch_what_is_in_the_engines_is_work_and_not_lost(tmp_path: Path) -> None:
    clock = Clock()
    watched = account(tmp_path, clock, "run-1", replicas=1)
    watched.hold()
    for second in range(1, 61):  # it starts for ten seconds, and works since; two of them in vain
        clock.seconds = second
        busy = max(0, second - 10)
        phase = "serving" if busy else "starting"
        watched.see([HostReport("a", phase, second, int(busy > 0), float(busy), 2.0 if busy > 4 else 0.0)])
    shown = watched.parts_at_work(computed_prompt_tokens=36, output_tokens=12)

    assert watched.parts().failed == 50 * 10**9
    assert (shown.startup, shown.prefill, shown.decode, shown.failed) == (10 * 10**9, 36 * 10**9, 12 * 10**9, 2 * 10**9)
    assert shown.total == watched.parts().total == 60 * 10**9


def successor(folder: Path, ledger: Ledger, taken_over: Sequence[Receipt] = ()) -> Costs:
    """A start after it: it becomes the writer, takes over what the dead run had finished, and books what it left."""
    epoch = ledger.begin_epoch("run-2")
    ledger.append(taken_over)
    costs = Costs(f"{folder}/sink", epoch=epoch, run="run-2")
    book_left(costs, ledger, f"{folder}/sink", at=BEGAN + 100)
    return costs


def test_a_ledger_by_hand_with_a_kill_and_a_resume_is_equal_to_the_cent_and_beyond(tmp_path: Path) -> None:
    costs = successor(tmp_path, killed_at_60_s(tmp_path), [unit(4, 2.0, run="run-1")])
    clock = Clock()
    clock.seconds = 100
    second = account(tmp_path, clock, "run-2")
    second.hold()
    for at in range(1, 16):  # three engines start for 5 s, and work for 10 s
        clock.seconds = 100 + at
        phase = "serving" if at >= 5 else "starting"
        second.see([HostReport(name, phase, at, int(5 <= at < 15), float(max(0, at - 5))) for name in "abc"])
    receipts = [unit(5, 10.0, run="run-2"), unit(6, 10.0, run="run-2"), unit(7, 10.0, run="run-2", rows_carried=4)]
    second.received()
    second.committed(receipts, took_s=0.1)
    clock.seconds = 116
    second.give_back(done=True)
    second.book(costs)

    # Run 1: 180 s. 60 of start-up; 80 of work, of which 62 and the 2 taken over are in receipts, 5 of them in vain:
    # 59 useful, three quarters of it for tokens read. 20 without b's engine: 41 failed. c waited 20 s for its input.
    assert usd(costs, "run", "part") == {
        ("run-1", "startup"): Decimal("0.06"),
        ("run-1", "prefill"): Decimal("0.04425"),
        ("run-1", "decode"): Decimal("0.01475"),
        ("run-1", "idle"): Decimal("0.02"),
        ("run-1", "failed"): Decimal("0.041"),
        ("run-2", "startup"): Decimal("0.015"),
        ("run-2", "prefill"): Decimal("0.0225"),
        ("run-2", "decode"): Decimal("0.0075"),
        ("run-2", "shutdown"): Decimal("0.003"),
    }
    assert usd(costs, "run") == {"run-1": Decimal("0.18"), "run-2": Decimal("0.048")}
    assert costs.usd() == Decimal("0.228")
    # Run 1 was at it for 30 s before midnight and 30 s after.
    by_day = {day: spent.quantize(MICRO) for day, spent in usd(costs, "day").items()}
    assert by_day == {date(2026, 11, 24): Decimal("0.09"), date(2026, 11, 25): Decimal("0.138")}
    assert second.usd() == Decimal("0.048")
    assert list(open_accounts(f"{tmp_path}/sink")) == []
    (price,) = {(row["usd_per_hour"], row["price_source"], row["price_date"]) for row in costs.rows().to_pylist()}
    assert price == (Decimal("3.60"), "a list", "2026-10-01")


def test_the_bill_of_a_run_says_what_the_table_says(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.open(f"{tmp_path}/sink", create=True)
    run = account(tmp_path, clock, "run-1")
    run.hold()
    for second in range(1, 101):
        clock.seconds = second
        run.see(three_lives(second))
    receipts = [unit(0, 70.0), unit(1, 6.0), unit(2, 40.0), unit(3, 50.0)]
    run.received()
    run.committed(receipts, took_s=0.1)
    clock.seconds = 104
    run.give_back(done=True)
    costs = Costs(f"{tmp_path}/sink", epoch=ledger.begin_epoch("run-1"), run="run-1")
    run.book(costs)

    bill = run.bill(Totals.of(receipts))

    assert bill.usd == costs.usd() == Decimal("0.312")
    assert {name: bill.usd_of(ns) for name, ns in bill.parts.known() if ns} == usd(costs, "part")
    assert bill.usd_per_million_total == Decimal("0.312") / 160 * 10**6
    assert bill.useful_usd_per_million_total == Decimal("0.161") / 160 * 10**6


def test_to_book_is_repeatable_and_what_a_run_thought_dead_still_spent_is_booked_by_the_next(tmp_path: Path) -> None:
    ledger = killed_at_60_s(tmp_path)
    ((_, left),) = open_accounts(f"{tmp_path}/sink")
    successor(tmp_path, ledger)
    open_costs.keep_open(f"{tmp_path}/sink", "run-1", left)  # a successor that dies before it removes the account

    costs = successor(tmp_path, ledger)
    assert usd(costs, "run") == {"run-1": Decimal("0.18")}

    held = {**left["held"], "held_ns": 190 * 10**9, "engines_ns": 190 * 10**9, "startup_ns": 70 * 10**9}
    open_costs.keep_open(f"{tmp_path}/sink", "run-1", {**left, "held": held})
    costs = successor(tmp_path, ledger)
    assert usd(costs, "run") == {"run-1": Decimal("0.19")}
    assert usd(costs, "part")["startup"] == Decimal("0.07")


def test_work_that_is_taken_over_after_it_was_booked_as_failed_is_booked_over(tmp_path: Path) -> None:
    ledger = killed_at_60_s(tmp_path)
    ((_, left),) = open_accounts(f"{tmp_path}/sink")
    before = usd(successor(tmp_path, ledger), "part")
    open_costs.keep_open(f"{tmp_path}/sink", "run-1", left)

    after = usd(successor(tmp_path, ledger, [unit(4, 2.0, run="run-1")]), "part")

    assert before["failed"] - after["failed"] == Decimal("0.002")
    assert after["prefill"] + after["decode"] - before["prefill"] - before["decode"] == Decimal("0.002")


def test_a_run_that_was_overtaken_leaves_its_costs_to_the_next_one_and_does_not_fail_by_that(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.open(f"{tmp_path}/sink", create=True)
    mine = Costs(f"{tmp_path}/sink", epoch=ledger.begin_epoch("run-1"), run="run-1")
    run = account(tmp_path, clock, "run-1")
    run.hold()
    clock.seconds = 5
    run.see(three_lives(5))
    other = Ledger.open(f"{tmp_path}/sink", create=False)
    theirs = successor(tmp_path, other)  # books what there is till now
    clock.seconds = 8  # too early for another renewal
    run.see(three_lives(8))
    run.give_back(done=False)

    run.book(mine)

    assert [name for name, _ in open_accounts(f"{tmp_path}/sink")] == ["run-1"]
    assert theirs.usd() == Decimal("0.015")
    assert usd(successor(tmp_path, other), "run") == {"run-1": Decimal("0.024")}


def test_an_account_that_is_not_understood_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = killed_at_60_s(tmp_path)
    open_costs.keep_open(f"{tmp_path}/sink", "run-0", {"held": {"hours": 3}})

    costs = successor(tmp_path, ledger)

    assert usd(costs, "run") == {"run-1": Decimal("0.18")}
    assert [name for name, _ in open_accounts(f"{tmp_path}/sink")] == ["run-0"]
    assert "account of run run-0 is not understood" in caplog.text


def test_admission_stops_in_time_for_what_is_in_flight(tmp_path: Path) -> None:
    # 0.3 cents a second. Each engine ends 2 rows a second and has begun 20: 10 s, and 3 more to react, are 3.9 cents.
    clock = Clock()
    allowance = Allowance.of(BudgetConfig(usd=Decimal("0.20")), grace_s=60, started_at=BEGAN)
    run = account(tmp_path, clock, "run-1", allowance=allowance)
    assert run.usd_per_s() == Decimal("0.003")
    run.hold()
    told = None
    while told is None:
        clock.seconds += 1
        at = clock.seconds
        run.see([HostReport(name, "serving", at, 8, at, 0.0, int(2 * at), 20) for name in "abc"])
        told = run.reason_to_stop()

    assert clock.seconds == 54  # 16.2 cents, and 3.9 to come
    assert told == "budget.usd=0.20: $0.162 spent and about $0.039 to come for the rows in flight"
    assert run.grace_left_s() == 60


def test_a_pool_may_cost_as_much_as_its_most_engines_and_one_machine_no_more_than_itself(tmp_path: Path) -> None:
    pool = account(tmp_path, Clock(), "run-1", replicas=(1, 8))
    machine = account(tmp_path, Clock(), "run-2", replicas=(1, 8), device=None)

    assert (pool.usd_per_s(), pool.most_usd_per_s()) == (Decimal("0.001"), Decimal("0.008"))
    assert machine.usd_per_s() == machine.most_usd_per_s() == Decimal("0.001")


def test_a_run_is_measured_by_the_engines_that_it_really_had(tmp_path: Path) -> None:
    clock = Clock()
    grown = account(tmp_path, clock, "run-1", replicas=(1, 4))
    grown.hold()
    for second in range(1, 41):  # one engine for 20 s, then three
        clock.seconds = second
        names = "a" if second <= 20 else "abc"
        grown.see([HostReport(name, "serving", second, 1, float(second)) for name in names])
    grown.give_back(done=True)

    engines = grown.engines_at_work(39.0)

    assert engines == pytest.approx((39 + 2 * 19 - 2) / 39, abs=0.1)
    assert grown.engines_at_work(None) is None


def test_a_run_with_a_deadline_asks_for_the_engines_that_it_needs_and_one_without_for_all(tmp_path: Path) -> None:
    clock = Clock()
    free = account(tmp_path, clock, "run-1", replicas=(1, 8))
    late = Allowance(grace_s=60, finish_at=BEGAN + 1008 + REACTION_S + CLOSE_S)
    limited = account(tmp_path, clock, "run-2", replicas=(1, 8), allowance=late)
    for one in (free, limited):
        one.hold()
        assert one.most_engines(3000) == (8 if one is free else 1)  # before anything is known of its pace
        clock.seconds = 8
        # One engine that answers a row a second, after a start of 60 s: 3,600 s of work with the margin, in 1,000 s.
        one.see([HostReport("a", "serving", 8.0, 1, 100.0, rows_ended=100, start_seconds=60.0)])

    assert free.most_engines(3000) == 8
    assert limited.most_engines(3000) == 4
    assert limited.most_engines(300) == 1
