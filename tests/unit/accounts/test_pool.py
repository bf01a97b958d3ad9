"""How many engines a run should have: deadlines and budgets by hand, and what always holds."""

import random
from decimal import Decimal

import pytest

from pipelines.accounts.pool import LEAST_ROWS, MARGIN, Standing, most_engines

CENT = Decimal("0.01")


def standing(**changes: float | None) -> Standing:
    """One engine that has answered a row a second for 100 s, 3,000 rows before the end, after a start of 60 s."""
    values: dict[str, float | None] = {
        "engines": 1, "rows_ended": 100, "busy_engine_s": 100.0, "rows_left": 3000, "start_s": 60.0,
    }  # fmt: skip
    return Standing(**(values | changes))  # type: ignore[arg-type]


def engines(
    now: Standing,
    *,
    pool: tuple[int, int] = (1, 8),
    seconds_left: float | None = None,
    usd_left: Decimal | None = None,
) -> int:
    return most_engines(now, pool=pool, seconds_left=seconds_left, usd_left=usd_left, usd_per_engine_s=CENT)


def test_without_a_deadline_and_a_budget_a_pool_may_be_as_large_as_it_was_said() -> None:
    assert engines(standing()) == 8


def test_a_deadline_gets_as_many_engines_as_are_done_by_then_and_not_more() -> None:
    # 3,600 engine-seconds with the margin. In 1,000 s the one that is here does 1,000 of them, and each other one 940.
    assert engines(standing(), seconds_left=1000.0) == 1 + 3
    assert engines(standing(), seconds_left=3600.0) == 1
    assert engines(standing(engines=4, busy_engine_s=100.0), seconds_left=3600.0) == 1
    assert engines(standing(), seconds_left=300.0) == 8  # 15 would be needed: as many as there may be


def test_an_engine_that_would_come_after_the_deadline_is_not_started() -> None:
    assert engines(standing(), seconds_left=50.0) == 1


def test_a_budget_starts_no_engine_that_its_rows_leave_no_money_for() -> None:
    # $36 pay for the rows and their margin, and each start costs 60 cents.
    assert engines(standing(), usd_left=Decimal("37.30")) == 1 + 2
    assert engines(standing(), usd_left=Decimal("36.10")) == 1
    assert engines(standing(engines=5), usd_left=Decimal(3)) == 5  # what is started stays


def test_of_a_deadline_and_a_budget_the_smaller_pool_counts() -> None:
    assert engines(standing(), seconds_left=1000.0, usd_left=Decimal("36.70")) == 1 + 1


def test_until_a_pace_is_known_a_limited_run_keeps_to_what_it_has() -> None:
    new = standing(rows_ended=LEAST_ROWS - 1)

    assert engines(new, seconds_left=10.0) == 1
    assert engines(new, seconds_left=10.0, pool=(2, 8)) == 2
    assert engines(standing(engines=0, rows_ended=0, busy_engine_s=0.0), usd_left=Decimal(1)) == 1


def test_rows_that_nobody_has_counted_do_not_keep_a_pool_small_for_a_deadline() -> None:
    assert engines(standing(rows_left=None), seconds_left=1000.0) == 8


@pytest.mark.parametrize("seed", range(50))
def test_a_pool_stays_within_what_was_said_and_the_engines_for_a_deadline_do_meet_it(seed: int) -> None:
    rng = random.Random(seed)
    now = standing(
        engines=rng.randint(1, 6),
        rows_ended=rng.randint(LEAST_ROWS, 10_000),
        busy_engine_s=rng.uniform(1, 5_000),
        rows_left=rng.randint(0, 50_000),
        start_s=rng.uniform(0, 300),
    )
    pool = (rng.randint(1, 3), rng.randint(3, 30))
    seconds = rng.uniform(1, 20_000)

    found = engines(now, pool=pool, seconds_left=seconds)

    assert pool[0] <= found <= pool[1]
    work_s = (now.rows_left or 0) * (now.engine_s_per_row or 0) * MARGIN
    done_s = min(found, now.engines) * seconds + max(0, found - now.engines) * max(0.0, seconds - now.start_s)
    if found < pool[1] and seconds > now.start_s:
        assert done_s >= work_s * (1 - 1e-9)
    if found > max(pool[0], now.engines):  # one fewer would not do
        assert done_s - (seconds - now.start_s) < work_s
