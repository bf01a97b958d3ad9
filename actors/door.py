"""The door of a host: how many units are in it, who waits to come in, and what an engine without rows waited for."""

import asyncio
import heapq
from collections.abc import Callable

from actors.window import Admission


class Door:
    """Lets units in, of those that wait the one that was read first. Belongs to one event loop.

    So many are inside at once, and further ones as soon as fewer rows than `fewest_waiting` wait for the engine: units
    of which many rows are in order end late, and all at once, and the next ones must be here before the last row of
    them has gone in, or the engine runs dry.
    """

    def __init__(self, admission: Admission, *, units: int, fewest_waiting: int) -> None:
        self._admission = admission
        self._most_units = units
        self._fewest_waiting = fewest_waiting
        self._inside = 0  # units
        self._coming: dict[object, int] = {}  # rows of units that have passed and do not wait for the engine yet
        self._outside: list[tuple[float, int, asyncio.Future[None]]] = []  # units: a heap; the number makes each differ
        self._number = 0
        self._entering = False  # one has been let in, and has not passed yet
        self._then: list[tuple[set[object], Callable[[], None]]] = []  # once all of these have come
        self._starved_told = 0.0  # of all starved time, as far as it is in these two
        self.starved_seconds = 0.0  # with room in the engine and no row for it, until the next unit came
        self.feed_seconds = 0.0  # likewise, while rows of a unit that is here were on their way to it
        self.kept_open = False  # whoever comes may go on, to be sent back

    async def come_in(self, read_at: float = 0.0) -> None:
        """Wait until this unit's rows are wanted. All that come in one turn of the loop are there before one is let in:
        while an engine starts, units gather, and Ray hands them over in no order."""
        self.tell_starved()
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        heapq.heappush(self._outside, (read_at, self._number, turn))
        self._number += 1
        loop.call_soon(self.open)
        try:
            await turn
        finally:
            if not turn.cancelled():
                self._entering = False
                loop.call_soon(self.open)  # once it has said how many rows it has

    def passed(self, rows: int) -> object:
        """A unit of so many rows is inside until `left`, and on its way in until `has_come`; a name for it."""
        unit = object()
        self._inside += 1
        self._coming[unit] = rows
        return unit

    def has_come(self, unit: object) -> None:
        """Its rows wait now, or are in the engine, or never will."""
        del self._coming[unit]
        for coming, _ in self._then:
            coming.discard(unit)
        self._call()
        self.open()

    def left(self) -> None:
        """A unit is inside no more."""
        self._inside -= 1
        self.open()

    def after_arrivals(self, then: Callable[[], None]) -> None:
        """Call this once all units that are on their way in have come."""
        self._then.append((set(self._coming), then))
        self._call()

    def open(self) -> None:
        """Let in who may come in, one after the other: how much room is left is known when it has passed."""
        while self._outside and (self.kept_open or (self._has_room() and not self._entering)):
            _, _, turn = heapq.heappop(self._outside)
            if not turn.done():
                turn.set_result(None)
                self._entering = True

    def tell_starved(self) -> None:
        """Put the time that the engine starved since the last call down to those who kept it waiting."""
        seconds = self._admission.starved.seconds
        if self._coming or self._outside:
            self.feed_seconds += seconds - self._starved_told
        else:
            self.starved_seconds += seconds - self._starved_told
        self._starved_told = seconds

    def _has_room(self) -> bool:
        wanted = self._admission.waiting + sum(self._coming.values()) < self._fewest_waiting
        return wanted or self._inside < self._most_units

    def _call(self) -> None:
        for coming, then in self._then:
            if not coming:
                then()
        self._then = [(coming, then) for coming, then in self._then if coming]
