"""Overdue rows: in an engine for many times as long as rows take, which is learnt from those that have left it.

An engine whose other rows go on does not hang, and nobody ends it: such a row is named, so that somebody may look.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

LEAST_ROWS = 100  # that have left, before it is known what rows take
LEAST_S = 60.0  # of short answers, whose 99th percentile is less than what a busy machine may cost
MOST_TOLD = 20  # at a time, those that are in for longest
_QUANTILE = 0.99
_STEP = 1.1  # from one class of durations to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A row that is in an engine for long."""

    unit: str  # as its host was told
    line: int  # of the unit, from 0
    seconds: float  # since it entered
    usual_s: float  # 99 % of the rows took no longer


class Overdues:
    """Watches the rows of one host. `times`: as long as 99 % of rows took, and one is overdue; None: none is."""

    def __init__(self, times: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._times = times
        self._clock = clock
        self._entered: dict[tuple[str, int], float] = {}  # the first one first
        self._took: Counter[int] = Counter()  # rows, by class

    def enters(self, unit: str, line: int) -> None:
        """An engine sees the row now, for the first time or once more."""
        self._entered.pop((unit, line), None)
        self._entered[unit, line] = self._clock()

    def leaves(self, unit: str, line: int, *, ended: bool) -> None:
        """It is in no engine any more. `ended`: it has its answer or error."""
        since = self._entered.pop((unit, line), None)
        if ended and since is not None:
            self._took[math.ceil(math.log(max(1e-3, self._clock() - since), _STEP))] += 1

    def usual_s(self) -> float | None:
        """99 % of the rows that have left took no longer, to 10 %. None: they are too few."""
        rows = self._took.total()
        if rows < LEAST_ROWS:
            return None
        longer = rows - math.ceil(rows * _QUANTILE)
        for step in sorted(self._took, reverse=True):
            longer -= self._took[step]
            if longer < 0:
                return _STEP**step
        return None

    def now(self) -> tuple[Overdue, ...]:
        """Those of this moment, the oldest first."""
        usual_s = self.usual_s() if self._times is not None else None
        if usual_s is None or self._times is None:
            return ()
        found: list[Overdue] = []
        now = self._clock()
        for (unit, line), since in self._entered.items():
            if len(found) == MOST_TOLD or now - since <= max(LEAST_S, self._times * usual_s):
                break
            found.append(Overdue(unit=unit, line=line, seconds=now - since, usual_s=usual_s))
        return tuple(found)
