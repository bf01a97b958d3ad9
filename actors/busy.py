"""How an engine's time passes: busy, shared among the rows in it; and starved, with room that no row came for."""

import time
from collections.abc import Callable


class BusyTime:
    """Shares the time for which an engine is busy among the rows in it: of n rows, each bears dt/n.

    A virtual clock that runs at 1/n of the real one: a row's share is what the clock has gained between its entry
    and its exit, so an event costs no more with a thousand rows than with one, and the shares add up to the busy
    time (processor sharing).
    """

    def __init__(self, devices: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._devices = devices
        self._clock = clock
        self._virtual = 0.0
        self._last = 0.0
        self._rows = 0
        self._busy = 0.0

    def enter(self) -> float:
        """A row has entered; give the mark back to `leave`."""
        self._advance()
        self._rows += 1
        return self._virtual

    def leave(self, mark: float) -> float:
        """A row has left. Its share in device seconds."""
        self._advance()
        self._rows -= 1
        return (self._virtual - mark) * self._devices

    @property
    def rows(self) -> int:
        """Rows in the engine."""
        return self._rows

    @property
    def device_seconds(self) -> float:
        """Busy time up to now, times the devices: the sum of all rows' shares."""
        self._advance()
        return self._busy * self._devices

    def _advance(self) -> None:
        now = self._clock()
        if self._rows:
            elapsed = now - self._last
            self._busy += elapsed
            self._virtual += elapsed / self._rows
        self._last = now


class StarvedTime:
    """Time in which an engine had room and no row waited for it; a moment counts by the share of places free then."""

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._free = 1.0  # share of the places
        self._last = clock()
        self._seconds = 0.0

    def see(self, taken: int, waiting: int) -> None:
        """From now on so many places are taken, and so many rows wait for one."""
        self._advance()
        self._free = 0.0 if waiting else max(0, self._places - taken) / self._places

    @property
    def seconds(self) -> float:
        """Up to now."""
        self._advance()
        return self._seconds

    def _advance(self) -> None:
        now = self._clock()
        self._seconds += (now - self._last) * self._free
        self._last = now
