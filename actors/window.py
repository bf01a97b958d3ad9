"""Which rows may be in an engine: admission at row level, over the borders of units."""

import asyncio
import bisect
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from actors.busy import StarvedTime
from actors.engine import EngineLoad
from actors.lengths import Lengths
from actors.width import Width

KV_FILLED = 0.95  # of the KV memory, by the rows in the engine as they are predicted to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How rows are let into an engine."""

    mode: Literal["continuous", "dynamic", "static"] = "continuous"
    lookahead: float = 0.5  # continuous: rows waiting in the engine, times max_num_seqs, at first; 0: never any
    batch_rows: int = 32  # dynamic, static: rows of one batch
    wait_ms: float = 50.0  # dynamic, static: an incomplete batch leaves after this
    ordered: bool = (
        True  # rows enter by how their prompts begin, so that those alike follow one another; else as they come
    )


@dataclass(slots=True, eq=False)
class _Place:
    """A row that waits, or is in the engine."""

    let_in: "asyncio.Future[None]"
    prompt_tokens: int = 0


class Admission:
    """An entry over the rows of all units: each waits here until the engine has room for it.

    They enter by `order`, upwards from the one that entered last and then from the start again, so that rows whose
    prompts begin alike follow one another; the first to come first among equals. No row waits for more than 4 entries
    for each row that waits at most at a time (`_Round`), whatever comes after it.

    continuous: a row enters when one has left, as far as all that are in are predicted to fit the engine's KV memory
    (lengths.py); a single one enters in any case. dynamic: rows enter in batches of `batch_rows`, or fewer after
    `wait_ms`, beside what is in the engine already. static: the same, but only into an empty engine, so that
    a batch lasts as long as its slowest row. Belongs to one event loop.
    """

    def __init__(self, window: Window, max_num_seqs: int, lengths: Lengths | None = None) -> None:
        """`lengths`: what tells how much KV memory rows take; None: nothing does."""
        self._window = window
        self._batch = 1 if window.mode == "continuous" else min(window.batch_rows, max_num_seqs)
        self._width = Width(max_num_seqs, window.lookahead if self._batch == 1 else 0.0)
        self._left = 0  # rows, since the last look
        self._kv_tokens: int | None = None  # of the engine; None: not known, or not looked at
        self._lengths = lengths
        self._prompt_tokens = 0  # of the rows that are in
        self._waiting = _Round()
        self._solitary: deque[_Place] = deque()
        self._alone = False
        self._ripe = False  # the oldest waiting row has waited for wait_ms
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0  # rows in the engine
        self.starved = StarvedTime(max_num_seqs)

    @property
    def waiting(self) -> int:
        """Rows that wait to enter."""
        return len(self._waiting) + len(self._solitary)

    @property
    def limit(self) -> int:
        """Rows that may be in the engine."""
        return self._width.rows

    def see(self, load: EngineLoad) -> None:
        """How the engine is, for how many rows are let in. To be called every now and then.

        Batches of a fixed size stay as they are.
        """
        if self._batch != 1:
            return
        self._kv_tokens = load.kv_tokens
        # What an engine tells is of its last step: before the first one has ended, that says nothing.
        held_up = self.in_flight >= self.limit and len(self._waiting) > 0 and not self._solitary and self._left > 0
        self._width.see(load, rows_held_up=held_up)
        self._left = 0
        self._admit()

    @asynccontextmanager
    async def place(self, order: bytes = b"", prompt_tokens: int = 0) -> AsyncIterator[None]:
        """A place in the engine, once there is room."""
        place = _Place(asyncio.get_running_loop().create_future(), prompt_tokens)
        await self._wait(order if self._window.ordered else b"", place)
        try:
            yield
        finally:
            self._leave(place)

    @asynccontextmanager
    async def solitude(self) -> AsyncIterator[None]:
        """The whole engine, once it is empty, and before anybody who waits for a place."""
        place = _Place(asyncio.get_running_loop().create_future())
        self._solitary.append(place)
        self._admit()
        try:
            await place.let_in
        except asyncio.CancelledError:
            if place.let_in.cancelled():
                self._forget_solitary(place)
                self._admit()
            else:
                self._leave(place)
            raise
        try:
            yield
        finally:
            self._leave(place)

    async def go_alone(self) -> None:
        """Exchange the place one has for the whole engine: waits until it is empty; nobody else enters till then."""
        alone = _Place(asyncio.get_running_loop().create_future())
        self._solitary.append(alone)  # before the place is given up, so that nobody slips in
        self._leave()  # its tokens, `place` takes off
        try:
            await alone.let_in
        except asyncio.CancelledError:
            if alone.let_in.cancelled():
                self._forget_solitary(alone)
                self.in_flight += 1  # what `place` gives back
            raise

    async def _wait(self, order: bytes, place: _Place) -> None:
        self._waiting.add(order, place)
        self._admit()
        try:
            await place.let_in
        except asyncio.CancelledError:
            if place.let_in.cancelled():
                self._waiting.forget(place)
                self._admit()
            else:
                self._leave(place)  # it had been let in, and goes without having used its place
            raise

    def _leave(self, place: _Place | None = None) -> None:
        self.in_flight -= 1
        self._left += 1
        self._prompt_tokens -= place.prompt_tokens if place else 0
        if self.in_flight == 0:
            self._alone = False
        self._admit()

    def _admit(self) -> None:
        self._let_in_who_may()
        self.starved.see(self.in_flight, self.waiting)

    def _let_in_who_may(self) -> None:
        if self._alone:
            return
        if self._solitary and self.in_flight == 0:
            self._let_in(self._solitary, 1)
            self._alone = self.in_flight > 0
        if self._solitary or self._alone:
            return
        if self._batch == 1:
            self._let_in(self._waiting, self.limit - self.in_flight)
            return
        while self._waiting and self._has_room() and (self._ripe or len(self._waiting) >= self._batch):
            self._let_in(self._waiting, self._batch)
            self._ripe = False
        self._set_timer()

    def _has_room(self) -> bool:
        taken = self.limit if self._window.mode == "static" and self.in_flight else self.in_flight
        return taken + self._batch <= self.limit

    def _let_in(self, queue: "deque[_Place] | _Round", most: int) -> None:
        while queue and most > 0:
            place = queue[0]
            if place.let_in.cancelled():  # and its task has not run since
                queue.popleft()
                continue
            if self.in_flight and not self._fits(place):
                return
            queue.popleft()
            place.let_in.set_result(None)
            self._prompt_tokens += place.prompt_tokens
            self.in_flight += 1
            most -= 1

    def _fits(self, place: _Place) -> bool:
        """Whether the KV memory has room for this row and those that are in, until their answers end."""
        if self._kv_tokens is None or self._lengths is None:
            return True
        wanted = self._lengths.kv_tokens(self.in_flight + 1, self._prompt_tokens + place.prompt_tokens)
        return wanted is None or wanted <= self._kv_tokens * KV_FILLED

    def _forget_solitary(self, place: _Place) -> None:
        if place in self._solitary:  # it may have been skipped already
            self._solitary.remove(place)

    def _set_timer(self) -> None:
        if not self._waiting and self._timer:
            self._timer.cancel()
            self._timer = None
        elif self._waiting and not self._ripe and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._window.wait_ms / 1000, self._ripen)

    def _ripen(self) -> None:
        self._timer = None
        self._ripe = True
        self._admit()


class _Round:
    """Places in order, round after round.

    A round lets in all that wait at its start, and of those that come during it and belong behind its last entry as
    many again: a corpus whose prompts ascend would else go on with one round for ever, and who is below would starve.
    """

    def __init__(self) -> None:
        # Sorted; the number makes each place different.
        self._now: list[tuple[bytes, int, _Place]] = []
        self._next: list[tuple[bytes, int, _Place]] = []
        self._number = 0
        self._last: tuple[bytes, int] = (b"", -1)
        self._late = 0  # that may still come into this round

    def __len__(self) -> int:
        return len(self._now) + len(self._next)

    def __getitem__(self, first: Literal[0]) -> _Place:
        """The one that `popleft` takes."""
        self._begin()
        return self._now[first][2]

    def add(self, order: bytes, place: _Place) -> None:
        joins = self._late > 0 and (order, self._number) > self._last
        self._late -= joins
        bisect.insort(self._now if joins else self._next, (order, self._number, place))
        self._number += 1

    def popleft(self) -> _Place:
        self._begin()
        order, number, place = self._now.pop(0)
        self._last = (order, number)
        return place

    def forget(self, place: _Place) -> None:
        self._now = [entry for entry in self._now if entry[2] is not place]
        self._next = [entry for entry in self._next if entry[2] is not place]

    def _begin(self) -> None:
        """The next round, where this one is over: at first, whoever comes may still come into it."""
        if not self._now:
            self._now, self._next = self._next, []
            self._late = len(self._now)
            self._last = (b"", -1)
