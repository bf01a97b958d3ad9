"""Money and time that a run may take, with every moment given: by hand."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from pipelines.accounts.allowance import CLOSE_S, REACTION_S, WAIT_S, Allowance, Pace
from pipelines.config import BudgetConfig, UserError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class Host:
    """A host's report, as far as the pace looks at it."""

    time: float
    rows_ended: int
    rows_begun: int
    replica: str = "a"


def reason(allowance: Allowance, **changes: Any) -> str | None:
    values: dict[str, Any] = {
        "now": NOON,
        "spent_usd": Decimal(0),
        "usd_per_s": Decimal("0.01"),
        "drain_s": 0.0,
        "slowest_commit_s": 0.0,
    }
    return allowance.reason_to_stop(**(values | changes))


def test_without_limits_nothing_stops_a_run() -> None:
    assert reason(Allowance(grace_s=60), spent_usd=Decimal(10**9), now=NOON * 9, drain_s=1e9) is None


def test_admission_ends_when_what_is_in_flight_would_spend_the_rest() -> None:
    # A cent a second, 20 s of rows in flight, 3 s to react: 23 cents are needed.
    allowance = Allowance(usd=Decimal("5.00"), grace_s=60)

    assert REACTION_S == 3
    assert reason(allowance, spent_usd=Decimal("4.76"), drain_s=20.0) is None
    assert reason(allowance, spent_usd=Decimal("4.77"), drain_s=20.0) == (
        "budget.usd=5.00: $4.77 spent and about $0.23 to come for the rows in flight"
    )


def test_the_grace_bounds_what_a_drain_is_expected_to_take() -> None:
    allowance = Allowance(usd=Decimal(5), grace_s=10)

    assert reason(allowance, spent_usd=Decimal("4.86"), drain_s=1e6) is None  # 13 s are needed
    assert reason(allowance, spent_usd=Decimal("4.87"), drain_s=1e6) is not None
    assert allowance.overshoot(Decimal("0.01")) == Decimal("0.13")


def test_earlier_runs_count_against_the_budget_of_an_output() -> None:
    allowance = Allowance(usd=Decimal(5), spent_before_usd=Decimal("4.50"), grace_s=60)

    assert allowance.left_usd(Decimal("0.20")) == Decimal("0.30")
    assert allowance.left_usd(Decimal("0.60")) == 0
    assert reason(allowance, spent_usd=Decimal("0.46")) is None
    assert reason(allowance, spent_usd=Decimal("0.47")) == "budget.usd=5: $0.47 spent after $4.50 by earlier runs"


def test_a_duration_counts_from_the_start_and_a_time_is_that_of_its_zone() -> None:
    def ends(text: str) -> float | None:
        return Allowance.of(BudgetConfig(finish_by=text), grace_s=60, started_at=NOON).finish_at

    assert ends("1h30m") == NOON + 5400
    assert ends("2d") == NOON + 2 * 86400
    assert ends("2026-11-24T14:00+01:00") == NOON + 3600
    assert ends("2026-11-24T12:00:01Z") == NOON + 1


@pytest.mark.parametrize("passed", ["2026-11-24T12:00Z", "2026-11-24T12:30+01:00", "0s"])
def test_a_deadline_that_has_passed_is_refused(passed: str) -> None:
    with pytest.raises(UserError, match="give a later time"):
        Allowance.of(BudgetConfig(finish_by=passed), grace_s=60, started_at=NOON)


def test_a_deadline_leaves_time_to_end_what_is_in_flight_and_to_close() -> None:
    # 20 s of rows in flight, 3 s to react, 5 s to close and three commits of 2 s: 34 s before the hour.
    allowance = Allowance(finish_at=NOON + 3600, grace_s=60)

    assert CLOSE_S == 5
    assert reason(allowance, now=NOON + 3565.9, drain_s=20.0, slowest_commit_s=2.0) is None
    assert reason(allowance, now=NOON + 3566, drain_s=20.0, slowest_commit_s=2.0) == (
        "budget.finish_by: 2026-11-24 13:00:00 UTC is 34 s away"
    )
    assert allowance.grace_left_s(now=NOON + 3566, slowest_commit_s=2.0) == 23
    assert allowance.grace_left_s(now=NOON, slowest_commit_s=2.0) == 60
    assert allowance.grace_left_s(now=NOON + 3599, slowest_commit_s=2.0) == 0


def test_the_pace_is_that_of_the_rows_that_ended_and_the_slowest_host_counts() -> None:
    pace = Pace()
    assert pace.drain_s([Host(0, 0, 0), Host(0, 0, 0, "b")]) == 0

    # a: 10 rows in 5 s, 4 are begun. b: 5 rows in 5 s, 6 are begun.
    assert pace.drain_s([Host(5, 10, 4), Host(5, 5, 6, "b")]) == 6
    assert pace.drain_s([Host(6, 12, 4), Host(6, 6, 0, "b")]) == 2


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    for second in range(101):  # a row in a second, and from the 41st second on two
        drain_s = pace.drain_s([Host(second, second + max(0, second - 40), 10)])

    assert drain_s == 5


def test_rows_that_take_longer_than_a_minute_have_a_pace_too() -> None:
    pace = Pace()
    for second, ended in [(0, 0), (90, 1), (180, 2), (270, 3), (300, 3), (355, 3)]:
        drain_s = pace.drain_s([Host(second, ended, 2)])

    assert drain_s == 2 * (355 - 180)  # one row since 180


def test_the_start_of_an_engine_is_no_pace() -> None:
    pace = Pace()
    for second in range(100):
        assert pace.drain_s([Host(second, 0, 0)]) == 0

    assert pace.drain_s([Host(101, 4, 8)]) == 4


def test_rows_of_which_none_has_ended_are_expected_to_take_as_long_again() -> None:
    pace = Pace()
    assert pace.drain_s([Host(10, 0, 0)]) == 0  # the engine answers, and nothing is in it

    assert pace.drain_s([Host(15, 0, 8)]) == 0
    assert pace.drain_s([Host(27, 0, 8)]) == 12
    assert pace.drain_s([Host(31, 8, 4)]) == 10.5  # 8 rows in 21 s


def test_the_promise_says_the_limit_and_by_how_much_it_may_be_passed() -> None:
    allowance = Allowance(usd=Decimal(5), spent_before_usd=Decimal(2), grace_s=57)
    known: dict[str, Any] = {"usd_per_s": Decimal("0.001"), "units": 8, "unit_rows": 512, "engines": 2}

    (known_rate,) = allowance.promise(scope="output", usd_per_row=Decimal("0.000001"), **known)
    assert known_rate == (
        "budget: $5.00 for this output, $2.00 of it spent by earlier runs; passed by the rows in flight at most: "
        "8,192 rows, about $0.00819 (estimated), and no more than $0.06, for grace_s=57 ends them"
    )
    (unknown,) = allowance.promise(scope="run", usd_per_row=None, **known)
    assert "estimated" not in unknown
    assert Allowance(grace_s=60).promise(scope="run", usd_per_row=None, **known) == []


def test_a_start_waits_for_hardware_no_longer_than_its_deadline() -> None:
    assert Allowance(grace_s=60, finish_at=1_000.0).seconds_left(400.0) == 600.0
    assert Allowance(grace_s=60, finish_at=1_000.0).seconds_left(2_000.0) == 0.0
    assert Allowance(grace_s=60).seconds_left(400.0) == WAIT_S
