"""Allowance: the money and the time that a run may take, and when to admit no more rows so that it keeps within them.

No new rows are admitted from the moment at which

    spent + (seconds until the rows that are begun have ended + REACTION_S) x dollars per second  >=  budget.usd
    now   +  seconds until the rows that are begun have ended + REACTION_S + the closing          >=  budget.finish_by

How long the rows that are begun will take is told by how fast rows ended in the last minute (`Pace`), and never more
than `grace_s`, after which the run is interrupted whatever is in the engines. So a run may go over budget.usd by what
the rows in flight take longer than told, and by no more than `grace_s` of all devices; see `overshoot`.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

from pipelines.accounts.closing import money
from pipelines.config import BudgetConfig, UserError, finish_by

REACTION_S = 3.0  # the driver looks up each second, engines' hosts twice a second, and the last unit is to be written
CLOSE_S = 5.0  # for tables, manifest and summary; and so many times the slowest commit:
CLOSE_COMMITS = 3
WAIT_S = 86_400.0  # for hardware, by a run that has no deadline
_WINDOW_S = 60.0  # over which the pace is measured
_OUTPUT = "output"


class Busy(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def replica(self) -> str: ...
    @property
    def time(self) -> float: ...  # of the report, by the host's clock
    @property
    def rows_ended(self) -> int: ...  # since it started
    @property
    def rows_begun(self) -> int: ...  # of units that an engine has begun, and not ended: what a drain finishes


class Pace:
    """How long the rows that are begun will take."""

    def __init__(self) -> None:
        self._ended: dict[str, deque[tuple[float, int]]] = {}  # by replica: time, rows ended
        self._begun_at: dict[str, float] = {}  # by replica: since when rows are in, and none has ended

    def drain_s(self, hosts: Iterable[Busy]) -> float:
        """Seconds until the last of these hosts has ended the rows that it has begun; 0: nothing is begun.

        Where no row has ended yet, they are expected to take as long again as they have been in.
        """
        return max((self._of(host) for host in hosts), default=0.0)

    def _of(self, host: Busy) -> float:
        seen = self._ended.setdefault(host.replica, deque())
        if not host.rows_begun and not host.rows_ended:
            seen.clear()  # the pace is not that of an engine that is being started
        seen.append((host.time, host.rows_ended))
        while len(seen) > 2 and host.time - seen[1][0] >= _WINDOW_S and seen[1][1] < host.rows_ended:
            seen.popleft()
        if not host.rows_begun:
            self._begun_at.pop(host.replica, None)
            return 0.0
        since, ended = seen[0]
        if host.rows_ended > ended:
            self._begun_at.pop(host.replica, None)
            return host.rows_begun * (host.time - since) / (host.rows_ended - ended)
        return host.time - self._begun_at.setdefault(host.replica, host.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a run may take. None: no limit."""

    usd: Decimal | None = None
    spent_before_usd: Decimal = Decimal(0)  # of it, by earlier runs
    finish_at: float | None = None  # seconds since the epoch
    grace_s: float

    @classmethod
    def of(cls, budget: BudgetConfig, *, grace_s: float, started_at: float) -> "Allowance":
        """What the config allows a run that was started at `started_at` (seconds since the epoch).

        Raises:
            UserError: the deadline has passed.
        """
        if budget.finish_by is None:
            return cls(usd=budget.usd, grace_s=grace_s)
        ends = finish_by(budget.finish_by)
        finish_at = started_at + ends.total_seconds() if isinstance(ends, timedelta) else ends.timestamp()
        if finish_at <= started_at:
            ago = timedelta(seconds=round(started_at - finish_at))
            raise UserError(
                f"budget.finish_by={budget.finish_by} was {ago} ago: give a later time, or a duration as 6h"
            )
        return cls(usd=budget.usd, finish_at=finish_at, grace_s=grace_s)

    def seconds_left(self, now: float) -> float:
        """To the deadline, or a day: how long a start may wait for hardware. `now` in seconds since the epoch."""
        return WAIT_S if self.finish_at is None else max(0.0, min(WAIT_S, self.finish_at - now))

    def seconds_to_work(self, now: float, *, slowest_commit_s: float) -> float | None:
        """Until rows must have ended, so that what follows is done by the deadline; None: there is none."""
        if self.finish_at is None:
            return None
        return max(0.0, self.finish_at - now - REACTION_S - _close_s(slowest_commit_s))

    def left_usd(self, spent_usd: Decimal) -> Decimal | None:
        """What may still be spent by a run that spent so much, at least 0; None: there is no limit."""
        return None if self.usd is None else max(Decimal(0), self.usd - self.spent_before_usd - spent_usd)

    def reason_to_stop(
        self, *, now: float, spent_usd: Decimal, usd_per_s: Decimal, drain_s: float, slowest_commit_s: float
    ) -> str | None:
        """Why no more rows should be admitted, in words; None: go on. `now` in seconds since the epoch."""
        drain_s = min(drain_s, self.grace_s)
        left = self.left_usd(spent_usd)
        needed = Decimal(repr(drain_s + REACTION_S)) * usd_per_s
        if left is not None and left <= needed:
            rows = f" and about {money(needed)} to come for the rows in flight" if drain_s else ""
            before = f" after {money(self.spent_before_usd)} by earlier runs" if self.spent_before_usd else ""
            return f"budget.usd={self.usd}: {money(spent_usd)} spent{before}{rows}"
        if self.finish_at is not None and now + drain_s + REACTION_S + _close_s(slowest_commit_s) >= self.finish_at:
            return f"budget.finish_by: {_clock(self.finish_at)} is {max(0.0, self.finish_at - now):.0f} s away"
        return None

    def grace_left_s(self, *, now: float, slowest_commit_s: float) -> float:
        """How long what is in flight may take at most, once the run is asked to stop: `grace_s`, or to the deadline."""
        if self.finish_at is None:
            return self.grace_s
        return min(self.grace_s, max(0.0, self.finish_at - now - _close_s(slowest_commit_s)))

    def overshoot(self, usd_per_s: Decimal) -> Decimal:
        """By how much a run may go over budget.usd at the very most: the grace of all its devices."""
        return Decimal(repr(self.grace_s + REACTION_S)) * usd_per_s

    def promise(
        self, *, scope: str, usd_per_s: Decimal, units: int, unit_rows: int, engines: int, usd_per_row: Decimal | None
    ) -> list[str]:
        """What is said before the start, in lines: the limit, and by how much it may be passed.

        `units` of at most `unit_rows` are in each of `engines` at once; `usd_per_row`, of rows that were answered
        before, is what the engines' work took; None: there are none.
        """
        lines = []
        if self.usd is not None:
            whose = "this output" if scope == _OUTPUT else "this run"
            before = f", {money(self.spent_before_usd)} of it spent by earlier runs" if self.spent_before_usd else ""
            rows = units * unit_rows * engines
            most = self.overshoot(usd_per_s)
            by_rows = None if usd_per_row is None else rows * usd_per_row
            guess = f", about {money(by_rows)} (estimated)" if by_rows is not None and by_rows < most else ""
            lines.append(
                f"budget: {money(self.usd)} for {whose}{before}; passed by the rows in flight at most: {rows:,} rows"
                f"{guess}, and no more than {money(most)}, for grace_s={self.grace_s:g} ends them"
            )
        if self.finish_at is not None:
            away = timedelta(seconds=round(self.finish_at - time.time()))
            lines.append(
                f"deadline: {_clock(self.finish_at)}, in {away}; rows are admitted as long as they can be done"
            )
        return lines


def _close_s(slowest_commit_s: float) -> float:
    return CLOSE_S + CLOSE_COMMITS * slowest_commit_s


def _clock(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
