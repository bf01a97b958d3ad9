"""Pool: how many engines a run should have, for its deadline and within its budget.

Ray adds an engine whenever rows wait, and has no notion of time or money. What it may have at most is this:

    no deadline, no budget      the most that engine.replicas=[min,max] allows
    budget.finish_by            as many as are done in time at the pace that was measured, MARGIN more, and not more
    budget.usd                  no engine more whose start-up the money does not pay for, besides the rows that are left

Until a pace is known, a run with a deadline or a budget keeps to the fewest: an engine that was not needed has been
paid for a start-up. What has been started is not taken away again for money's sake: its start-up is spent.
"""

import math
from dataclasses import dataclass
from decimal import Decimal

MARGIN = 1.2  # the pace of the last minute may not last, and no two engines end together
LEAST_ROWS = 32  # that have ended, before a pace is believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run at one moment. None: not known."""

    engines: int  # that serve now
    rows_ended: int  # by them
    busy_engine_s: float  # that these rows took: seconds since each of them serves, added up
    rows_left: int | None
    start_s: float  # of one engine

    @property
    def engine_s_per_row(self) -> float | None:
        """What a row takes of an engine that has enough of them."""
        return self.busy_engine_s / self.rows_ended if self.rows_ended >= LEAST_ROWS else None


def most_engines(
    now: Standing,
    *,
    pool: tuple[int, int],
    seconds_left: float | None,
    usd_left: Decimal | None,
    usd_per_engine_s: Decimal,
) -> int:
    """How many engines the run may have, of a `pool` of fewest and most. None: there is no deadline, no budget."""
    fewest, most = pool
    if seconds_left is None and usd_left is None:
        return most
    per_row = now.engine_s_per_row
    if per_row is None:
        return max(fewest, min(most, now.engines))
    wanted = most
    if seconds_left is not None and now.rows_left is not None:
        wanted = _in_time(now.rows_left * per_row * MARGIN, seconds_left, now)
    if usd_left is not None and usd_per_engine_s > 0:
        wanted = min(wanted, _paid_for(float(usd_left / usd_per_engine_s), per_row, now))
    return max(fewest, min(most, wanted))


def _in_time(work_s: float, seconds_left: float, now: Standing) -> int:
    """Those that are here work all the time that is left, those that come work after their start-up."""
    if work_s <= now.engines * seconds_left:
        return math.ceil(work_s / seconds_left) if seconds_left > 0 else now.engines
    after_start_s = seconds_left - now.start_s
    if after_start_s <= 0:
        return now.engines  # whoever is started now comes too late
    return now.engines + math.ceil((work_s - now.engines * seconds_left) / after_start_s)


def _paid_for(engine_s: float, per_row: float, now: Standing) -> int:
    """Those here, and as many more as the money can start that is not needed for the rows."""
    spare_s = engine_s - (now.rows_left or 0) * per_row * MARGIN
    if spare_s <= 0:
        return now.engines
    return now.engines + (math.floor(spare_s / now.start_s) if now.start_s > 0 else 10**6)
