"""Rows with one key have one answer: in one host it is asked once, and what any host was told is in the run's book.

The first row to come with a key is asked; the others wait for it and share what it is told. Its answer is noted in the
book every now and then, with the row that paid for it: should this process die, that row gets its own answer back, with
its tokens and device seconds, while all others have theirs for nothing. Two hosts that meet a key at one moment both
ask it: what is not noted yet is known to one alone.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from actors.exchange import ANSWERS
from actors.outcome import Outcome, answered, answers_table

NOTED = pa.schema(
    [
        ("_key", pa.string()),
        ("_line", pa.int32()),
        ("_place", pa.string()),  # of the row that is to pay, where it is not the one that asked; null: it is
        ("_place_row", pa.int64()),
        ("_asked_again", pa.int32()),
        *ANSWERS,
    ]
)
Place = tuple[str, int]  # a row: of which place, and which of its rows


class Notes(Protocol):
    """Where answers outlive their host: pages of NOTED, by unit."""

    async def note(self, unit: str, page: pa.Table) -> bool:
        """Take in the answers of some rows of a unit; False: there is no room for more."""
        ...

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        """What is known under these keys, by the unit whose rows were asked."""
        ...


class Sharing:
    """What the rows of one host share. Belongs to one event loop."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._asked: dict[str, asyncio.Future[Outcome]] = {}  # by key, of units that are here
        self._keys: dict[str, list[str]] = defaultdict(list)  # those of them that a unit's rows were the first with
        self._fresh: dict[str, list[tuple[str, int, Place | None, Outcome]]] = defaultdict(
            list
        )  # not noted yet, by unit
        self.full = False  # there was no room for an answer: rows with its key may be asked by each host

    async def known(
        self, unit: str, keys: Sequence[str], first: Place | None = None
    ) -> dict[str, tuple[int | None, Outcome]]:
        """What is noted under these keys; with each, the line of this unit that paid for it, if it was one of its.

        `first`: the place of the unit's first row.
        """
        found: dict[str, tuple[int | None, Outcome]] = {}
        for owner, page in (await self._notes.find(keys)).items():
            for row in page.to_pylist():
                line = row["_line"] if owner == unit else None
                if first and row["_place"] == first[0]:
                    line = row["_place_row"] - first[1]
                found[row["_key"]] = line, answered(row, asked_again=row["_asked_again"])
        return found

    async def once(
        self, unit: str, line: int, key: str, ask: Callable[[], Awaitable[Outcome]], place: Place | None = None
    ) -> Outcome:
        """What `ask` is told, unless a row with this key is being asked already: then what that one is told.

        `place`: of the row that is to pay for it, where it is asked on behalf of one.
        """
        while (first := self._asked.get(key)) is not None:
            try:
                return shared(await asyncio.shield(first))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not first.cancelled() or (task and task.cancelling()):
                    raise
        future = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await ask()
        except BaseException:  # the next one in line asks
            del self._asked[key]
            future.cancel()
            raise
        future.set_result(outcome)
        self._keys[unit].append(key)
        if outcome.answer:
            self._fresh[unit].append((key, line, place, outcome))
        return outcome

    async def note(self, units: Iterable[str] | None = None) -> None:
        """Note what these units, or all, were told since they were last noted."""
        for unit in list(self._fresh) if units is None else list(units):
            if fresh := self._fresh.pop(unit, None):
                self.full |= not await self._notes.note(unit, _page(fresh))

    def forget(self, unit: str) -> None:
        """This unit is here no more: what it was told is in the book, or lost."""
        self._fresh.pop(unit, None)
        for key in self._keys.pop(unit, ()):
            self._asked.pop(key, None)


def shared(outcome: Outcome) -> Outcome:
    """What another row was told, for nothing."""
    return replace(outcome, shared=True, device_seconds=0.0)


def _page(fresh: Sequence[tuple[str, int, Place | None, Outcome]]) -> pa.Table:
    answers = answers_table([outcome for *_, outcome in fresh])
    columns = {
        "_key": pa.array([key for key, *_ in fresh], pa.string()),
        "_line": pa.array([line for _, line, *_ in fresh], pa.int32()),
        "_place": pa.array([place and place[0] for _, _, place, _ in fresh], pa.string()),
        "_place_row": pa.array([place and place[1] for _, _, place, _ in fresh], pa.int64()),
        "_asked_again": pa.array([outcome.asked_again for *_, outcome in fresh], pa.int32()),
    }
    return pa.table([*columns.values(), *answers.columns], schema=NOTED)
