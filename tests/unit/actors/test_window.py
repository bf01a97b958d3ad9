"""Admission at row level, and busy time shared among rows."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.busy import BusyTime, StarvedTime
from actors.window import Admission, Window
from tests.unit.actors.crowd import Crowd


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 10)


async def test_a_row_enters_as_soon_as_another_leaves_and_in_the_order_of_coming() -> None:
    crowd = Crowd(Admission(Window(lookahead=0.5), max_num_seqs=2))

    await crowd.come("a", "b", "c", "d", "e")
    assert crowd.entered == ["a", "b", "c"]  # two that run and one ahead
    await crowd.go("b")

    assert crowd.entered == ["a", "b", "c", "d"]
    assert crowd.admission.waiting == 1
    await crowd.go("a", "c", "d", "e")
    assert crowd.admission.in_flight == 0


async def test_a_static_batch_enters_only_when_the_last_row_of_the_one_before_has_left() -> None:
    crowd = Crowd(Admission(Window(mode="static", batch_rows=2, wait_ms=60_000), max_num_seqs=8))

    await crowd.come("a", "b", "c", "d")
    assert set(crowd.entered) == {"a", "b"}
    await crowd.go("a")
    assert set(crowd.entered) == {"a", "b"}
    await crowd.go("b")

    assert set(crowd.entered[2:]) == {"c", "d"}
    await crowd.go("c", "d")


async def test_a_dynamic_batch_waits_to_be_full_but_not_for_those_before_it() -> None:
    crowd = Crowd(Admission(Window(mode="dynamic", batch_rows=2, wait_ms=60_000), max_num_seqs=4))

    await crowd.come("a", "b", "c")
    assert set(crowd.entered) == {"a", "b"}
    await crowd.come("d")
    assert set(crowd.entered[2:]) == {"c", "d"}
    await crowd.come("e", "f")
    assert crowd.admission.waiting == 2  # the engine is full

    await crowd.go("a", "b")
    assert set(crowd.entered[4:]) == {"e", "f"}
    await crowd.go("c", "d", "e", "f")


@pytest.mark.parametrize("mode", ["dynamic", "static"])
async def test_an_incomplete_batch_leaves_when_it_has_waited_long_enough(mode: str) -> None:
    crowd = Crowd(Admission(Window(mode=mode, batch_rows=4, wait_ms=200), max_num_seqs=4))  # type: ignore[arg-type]

    await crowd.come("a", "b", "c")
    assert crowd.entered == []
    await until(lambda: len(crowd.entered) == 3)
    await crowd.go("a", "b", "c")
    await crowd.come("d")
    assert len(crowd.entered) == 3  # the next one has its own time

    await until(lambda: crowd.entered[3:] == ["d"])
    await crowd.go("d")


async def test_who_wants_to_be_alone_waits_for_an_empty_engine_and_keeps_all_others_out() -> None:
    crowd = Crowd(Admission(Window(lookahead=0), max_num_seqs=4))

    await crowd.come("a", "b")
    await crowd.come("suspect", alone=True)
    await crowd.come("c")
    await crowd.go("a")
    assert crowd.entered == ["a", "b"]
    await crowd.go("b")
    assert crowd.entered == ["a", "b", "suspect"]
    await crowd.go("suspect")

    assert crowd.entered[3:] == ["c"]
    await crowd.go("c")


async def cancel(task: Awaitable[None]) -> None:
    assert isinstance(task, asyncio.Task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_row_that_is_cancelled_takes_no_place_whenever_that_happens() -> None:
    crowd = Crowd(Admission(Window(lookahead=0), max_num_seqs=2))
    await crowd.come("in")
    await crowd.come("suspect", alone=True)
    await crowd.come("waiting", "last")

    await cancel(crowd.tasks["waiting"])
    crowd.tasks["suspect"].cancel()
    await asyncio.sleep(0)
    # "last" has its place now, but has not run since: the moment at which a place could be lost
    await cancel(crowd.tasks["last"])

    assert crowd.entered == ["in"]
    assert crowd.admission.in_flight == 1
    await crowd.come("next")
    assert crowd.entered[-1] == "next"
    await crowd.go("in", "next")
    assert crowd.admission.in_flight == 0


async def test_when_all_who_wait_are_cancelled_together_the_next_one_enters() -> None:
    crowd = Crowd(Admission(Window(lookahead=0), max_num_seqs=2))
    await crowd.come("in")
    await crowd.come("suspect", alone=True)
    await crowd.come("a", "b", "c")

    for task in crowd.tasks.values():
        task.cancel()
    await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)
    await crowd.come("next")

    assert crowd.entered == ["in", "next"]
    assert crowd.admission.in_flight == 1
    await crowd.go("next")


events = st.lists(st.tuples(st.floats(0, 1e3), st.booleans(), st.integers(0, 30)), max_size=60)


@given(events=events, devices=st.integers(1, 8))
def test_the_shares_of_all_rows_add_up_to_the_busy_time_of_the_devices(
    events: list[tuple[float, bool, int]], devices: int
) -> None:
    now, busy_seconds, shares = 0.0, 0.0, 0.0
    inside: list[float] = []
    busy = BusyTime(devices, clock=lambda: now)

    for pause, comes, which in events:
        now += pause
        busy_seconds += pause if inside else 0.0
        if comes or not inside:
            inside.append(busy.enter())
        else:
            shares += busy.leave(inside.pop(which % len(inside)))
    shares += sum(busy.leave(mark) for mark in inside)

    assert busy.device_seconds == pytest.approx(busy_seconds * devices)
    assert shares == pytest.approx(busy_seconds * devices)


def test_two_rows_in_an_engine_bear_half_of_the_time_each() -> None:
    now = 0.0
    busy = BusyTime(clock=lambda: now)
    first = busy.enter()
    now = 10.0
    second = busy.enter()
    now = 14.0
    assert busy.leave(second) == pytest.approx(2.0)
    now = 15.0

    assert busy.leave(first) == pytest.approx(13.0)


async def test_rows_that_begin_alike_follow_one_another_whatever_came_first_and_all_get_their_turn() -> None:
    admission = Admission(Window(lookahead=0), max_num_seqs=1)
    entered: list[bytes] = []

    async def stay(order: bytes) -> None:
        async with admission.place(order):
            entered.append(order)
            await asyncio.sleep(0)

    rows = [b"m", b"c 1", b"b 1", b"c 2", b"a", b"b 2"]
    tasks = [asyncio.create_task(stay(order)) for order in rows]
    while len(entered) < 3:
        await asyncio.sleep(0)
    tasks += [asyncio.create_task(stay(order)) for order in (b"a 2", b"z", b"b 3")]
    await asyncio.gather(*tasks)

    # b"m" is in before the others come; then upwards and round again, with those that come meanwhile in their places
    assert entered == [b"m", b"a", b"b 1", b"b 2", b"b 3", b"c 1", b"c 2", b"z", b"a 2"]


@settings(max_examples=40)
@given(orders=st.lists(st.binary(max_size=2), min_size=1, max_size=200), arriving=st.integers(1, 12), dice=st.randoms())
def test_no_row_waits_for_more_than_four_entries_for_each_row_that_waits_whatever_the_corpus(
    orders: list[bytes], arriving: int, dice: random.Random
) -> None:
    for corpus in (orders, sorted(orders), [b"", *(bytes([2 + n // 250, n % 250]) for n in range(300))]):
        waited, most = asyncio.run(_waits(corpus, arriving, dice))
        assert max(waited) <= 4 * most


async def _waits(corpus: list[bytes], arriving: int, dice: random.Random) -> tuple[list[int], int]:
    """How many entered between each row's coming and its own entry, where up to `arriving` wait at a time; how many
    waited at a time at most."""
    admission = Admission(Window(lookahead=0), max_num_seqs=1)
    entered, most, waited = 0, 0, []

    async def stay(order: bytes) -> None:
        nonlocal entered
        came = entered
        async with admission.place(order):
            entered += 1
            waited.append(entered - came)

    left, tasks = list(reversed(corpus)), []
    async with admission.place(b"\1"):
        while left and admission.waiting < arriving:
            tasks.append(asyncio.create_task(stay(left.pop())))
            await asyncio.sleep(0)
    while left or admission.waiting:
        most = max(most, admission.waiting)
        before = entered
        while left and admission.waiting < arriving and dice.random() < 0.9:
            tasks.append(asyncio.create_task(stay(left.pop())))
            await asyncio.sleep(0)
            most = max(most, admission.waiting)
        while entered == before and admission.waiting:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return waited, max(most, 1)


async def test_unordered_rows_enter_as_they_came() -> None:
    admission = Admission(Window(lookahead=0, ordered=False), max_num_seqs=1)
    entered: list[bytes] = []

    async def stay(order: bytes) -> None:
        async with admission.place(order):
            entered.append(order)

    rows = [b"m", b"c", b"b", b"z", b"a"]
    await asyncio.gather(*(stay(order) for order in rows))

    assert entered == rows


def test_an_engine_starves_by_the_share_of_its_places_that_are_free_while_no_row_waits() -> None:
    now = 0.0
    starved = StarvedTime(4, clock=lambda: now)

    for seconds, taken, waiting in [(3.0, 1, 0), (5.0, 1, 2), (7.0, 4, 0), (2.0, 6, 0), (1.0, 0, 0)]:
        starved.see(taken, waiting)
        now += seconds

    assert starved.seconds == pytest.approx(3.0 * 0.75 + 1.0)


async def test_an_admission_starves_from_the_last_row_that_waits_to_the_next_one_that_comes() -> None:
    admission = Admission(Window(lookahead=0), max_num_seqs=1)
    now = 0.0
    admission.starved = StarvedTime(1, clock=lambda: now)
    crowd = Crowd(admission)

    await crowd.come("a", "b")
    now = 10.0
    await crowd.go("a")
    now = 20.0
    await crowd.go("b")
    now = 23.0
    await crowd.come("c")
    now = 30.0

    assert admission.starved.seconds == pytest.approx(3.0)
    await crowd.go("c")
