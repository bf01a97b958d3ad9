"""Rows with one key are asked once: in a host, after it, and across hosts by way of the book."""

import asyncio
import concurrent.futures
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.book import AnswerBook, Book
from actors.engine import Answer, Constraint, EngineConfig, Sampling, SimulatedFaults
from actors.exchange import PROMPTS, from_ipc, to_ipc
from actors.host import EngineHost
from actors.outcome import Outcome
from actors.sharing import NOTED, Sharing
from actors.window import Window

BAD, HANGS = 4, 13


class Shelf:
    """A real book, without an actor around it."""

    def __init__(self, most_bytes: int = 2**30) -> None:
        self.book = Book(most_bytes)

    async def note(self, unit: str, page: pa.Table) -> bool:
        return self.book.note(unit, to_ipc(page))

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        return {unit: from_ipc(page) for unit, page in self.book.find(keys).items()}


def host(shelf: Shelf | None, **faults: Any) -> EngineHost:
    return EngineHost(
        engine=EngineConfig(
            kind="simulated",
            model="none",
            model_name="none",
            max_num_seqs=4,
            simulated=SimulatedFaults(bad_token_id=BAD, hang_token_id=HANGS, **faults),
        ),
        sampling=Sampling(max_tokens=4),
        constraint=Constraint(choices=("good", "bad")),
        alternatives=2,
        window=Window(),
        notes=shelf,
        poll_s=3600,  # the tests call look() themselves
    )


def unit(name: str, tokens: Sequence[int]) -> pa.Table:
    """A unit whose rows have the same key where they have the same token."""
    prompts = pa.table(
        {
            "_key": [f"{token:032x}" for token in tokens],
            "_prompt": [[token, 2] for token in tokens],
            "_error_type": pa.nulls(len(tokens), pa.string()),
            "_error": pa.nulls(len(tokens), pa.string()),
        },
        schema=PROMPTS,
    )
    return pa.table({"unit": [name], "prompts": pa.array([to_ipc(prompts)], pa.large_binary())})


def rows_of(block: pa.Table) -> list[dict[str, Any]]:
    return from_ipc(block["answers"][0].as_buffer()).to_pylist()  # type: ignore[no-any-return]


def paid(rows: Sequence[dict[str, Any]]) -> list[bool]:
    return [not row["_shared"] for row in rows]


async def test_of_rows_with_one_key_in_flight_together_the_first_is_asked_and_all_have_its_answer() -> None:
    hosted = host(Shelf(), latency_s=0.01)

    blocks = await asyncio.gather(hosted(unit("a", [1, 2, 1, 1])), hosted(unit("b", [2, 1, 3])))

    rows = [row for block in blocks for row in rows_of(block)]
    assert paid(rows) == [True, True, False, False, False, False, True]
    assert [row["_answer"] for row in rows] == [rows[at]["_answer"] for at in (0, 1, 0, 0, 1, 0, 6)]
    assert {row["_prompt_tokens"] for row in rows} == {2}
    assert sum(row["_device_seconds"] for row in rows if row["_shared"]) == 0
    assert hosted.stats().prompt_tokens == 2 * 3  # what the engine has read
    hosted.close()


async def test_without_notes_every_row_is_asked() -> None:
    hosted = host(None)

    rows = rows_of(await hosted(unit("a", [1, 1, 1])))

    assert paid(rows) == [True] * 3
    assert hosted.stats().prompt_tokens == 2 * 3
    hosted.close()


async def test_a_key_that_any_host_was_told_is_asked_by_none_that_comes_later() -> None:
    shelf = Shelf()
    first, second = host(shelf), host(shelf)
    told = rows_of(await first(unit("a", [1, 2])))

    rows = rows_of(await second(unit("b", [2, 1, 3])))

    assert paid(rows) == [False, False, True]
    assert [row["_answer"] for row in rows[:2]] == [told[1]["_answer"], told[0]["_answer"]]
    assert [row["_alternatives"] for row in rows[:2]] == [told[1]["_alternatives"], told[0]["_alternatives"]]
    first.close()
    second.close()


async def test_after_its_process_has_died_a_unit_gets_its_own_answers_back_with_what_they_cost() -> None:
    shelf = Shelf()
    dying, next_one = host(shelf, latency_s=0.01), host(shelf)
    lost = asyncio.create_task(dying(unit("a", [1, 2, HANGS, 2])))
    while dying.stats().rows_ended < 2:
        await asyncio.sleep(0.001)
    await dying.look()  # every now and then it notes what it was told
    lost.cancel()

    rows = rows_of(await next_one(unit("a", [1, 2, 5, 2])))

    assert paid(rows) == [True, True, True, False]
    assert all(row["_device_seconds"] > 0 for row in rows[:2])
    assert next_one.stats().prompt_tokens == 2  # of the one row that had no answer yet
    dying.close()
    next_one.close()


async def test_rows_with_the_key_of_one_that_cannot_be_answered_share_its_error() -> None:
    hosted = host(Shelf())

    rows = rows_of(await hosted(unit("a", [BAD, 1, BAD])))

    assert [row["_error_type"] for row in rows] == ["engine", None, "engine"]
    assert [row["_shared"] for row in rows] == [False, False, True]
    hosted.close()


async def test_where_the_first_row_is_given_up_the_next_one_with_its_key_asks() -> None:
    sharing = Sharing(Shelf())
    begun, asked = asyncio.Event(), []

    async def never() -> Outcome:
        begun.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def answer() -> Outcome:
        asked.append(1)
        return Outcome(
            answer=Answer(text="good", finish_reason="stop", prompt_tokens=2, cached_tokens=0, output_tokens=1)
        )

    first = asyncio.create_task(sharing.once("a", 0, "00", never))
    await begun.wait()
    others = [asyncio.create_task(sharing.once("b", line, "00", answer)) for line in range(3)]
    await asyncio.sleep(0)
    others[0].cancel()
    first.cancel()

    ended = await asyncio.gather(first, *others, return_exceptions=True)

    assert [isinstance(each, asyncio.CancelledError) for each in ended] == [True, True, False, False]
    assert asked == [1]
    assert [each.shared for each in ended[2:] if isinstance(each, Outcome)] == [False, True]


async def test_what_a_unit_leaves_behind_is_in_the_book_alone() -> None:
    shelf = Shelf()
    hosted = host(shelf)
    for number in range(5):
        await hosted(unit(f"u{number}", [number + 20, number + 100]))

    assert hosted._sharing is not None
    assert not hosted._sharing._asked and not hosted._sharing._keys and not hosted._sharing._fresh
    assert len(shelf.book.find([f"{number + 20:032x}" for number in range(5)])) == 5
    hosted.close()


def test_a_book_that_is_full_keeps_what_it_has_and_takes_in_no_more() -> None:
    page = pa.Table.from_pylist(
        [{"_key": f"{1:032x}", "_line": 0, "_answer": "x" * 500}, {"_key": f"{2:032x}", "_line": 1}], NOTED
    )
    other = page.set_column(0, NOTED.field(0), pa.array([f"{3:032x}", f"{4:032x}"]))
    book = Book(most_bytes=len(to_ipc(page)) + 10)

    assert book.note("a", to_ipc(page))
    assert not book.note("b", to_ipc(other))

    found = book.find([f"{number:032x}" for number in range(6)])
    assert list(found) == ["a"]
    assert from_ipc(found["a"])["_line"].to_pylist() == [0, 1]


async def test_a_host_says_when_the_book_has_taken_in_no_more() -> None:
    roomy, small = host(Shelf()), host(Shelf(most_bytes=10))

    for hosted in (roomy, small):
        assert not hosted.stats().book_full
        await hosted(unit("u", [20, 21]))

    assert [hosted.stats().book_full for hosted in (roomy, small)] == [False, True]
    roomy.close()
    small.close()


class Frozen:
    """An actor that takes calls and never answers them."""

    def __init__(self) -> None:
        self.calls = 0

    @property
    def note(self) -> "Frozen":
        return self

    find = note

    def remote(self, *arguments: Any) -> "Frozen":
        self.calls += 1
        return self

    def future(self) -> "concurrent.futures.Future[Any]":
        return concurrent.futures.Future()


async def test_a_book_that_does_not_answer_is_waited_for_once_and_rows_are_asked() -> None:
    frozen = Frozen()
    book = AnswerBook(frozen, patience_s=0.01)

    assert await book.find([f"{1:032x}"]) == {}
    assert await book.note("u", NOTED.empty_table())
    assert await book.find([f"{1:032x}"]) == {}

    assert frozen.calls == 1


@settings(max_examples=30)
@given(
    units=st.lists(st.lists(st.integers(20, 30), min_size=1, max_size=12), min_size=1, max_size=6),
    together=st.integers(1, 3),
    latency_s=st.sampled_from([0.0, 0.002]),
)
def test_however_rows_come_each_key_is_asked_once_and_the_answers_are_those_of_asking_each(
    units: list[list[int]], together: int, latency_s: float
) -> None:
    async def answers(hosted: EngineHost) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in range(0, len(units), together):
            some = enumerate(units[start : start + together], start)
            for block in await asyncio.gather(*(hosted(unit(f"u{number}", tokens)) for number, tokens in some)):
                rows += rows_of(block)
        hosted.close()
        return rows

    naive = asyncio.run(answers(host(None)))
    rows = asyncio.run(answers(host(Shelf(), latency_s=latency_s)))

    assert [row["_answer"] for row in rows] == [row["_answer"] for row in naive]
    assert sum(paid(rows)) == len({token for tokens in units for token in tokens})


class SlowShelf(Shelf):
    """A book whose answers to a question are under way for a while: what is noted meanwhile is not in them."""

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        found = await super().find(keys)
        await asyncio.sleep(0.02)
        return found


async def test_a_key_that_is_answered_while_another_unit_asks_the_book_for_it_is_asked_once() -> None:
    hosted = host(SlowShelf(), latency_s=0.005)
    first = asyncio.create_task(hosted(unit("first", [20, 21])))
    while not hosted.stats().rows_in_flight:
        await asyncio.sleep(0)
    second = asyncio.create_task(hosted(unit("second", [21, 22])))

    blocks = await asyncio.gather(first, second)

    assert [paid(rows_of(block)) for block in blocks] == [[True, True], [False, True]]
    assert not hosted._sharing._asked  # type: ignore[union-attr]
    hosted.close()


@pytest.mark.parametrize("keys", [[], [f"{9:032x}"]])
def test_a_book_says_nothing_of_keys_it_does_not_know(keys: list[str]) -> None:
    assert Book().find(keys) == {}


def test_a_book_whose_disk_is_full_forgets_what_it_had_and_takes_in_no_more() -> None:
    book, number = Book(), iter(range(10**6))

    def page() -> bytes:
        rows = [{"_key": f"{next(number):032x}", "_line": line, "_answer": "x" * 2000} for line in range(200)]
        return to_ipc(pa.Table.from_pylist(rows, NOTED))

    book.note("first", page())
    book._file.execute("PRAGMA max_page_count = 300")  # as a disk of so many pages would
    for _ in range(5):
        book.note("more", page())

    assert not book.note("later", page())

    assert book.find([f"{key:032x}" for key in range(next(number))]) == {}


def test_a_row_that_was_asked_on_behalf_of_another_is_paid_by_that_one_and_is_free_for_all_others() -> None:
    async def told() -> list[list[dict[str, Any]]]:
        shelf = Shelf()
        one = host(shelf)
        asked = from_ipc(unit("piece", [5, 6])["prompts"][0].as_buffer())
        asked = asked.append_column("_place", pa.array(["shard", "shard"]))
        asked = asked.append_column("_place_row", pa.array([101, 7], pa.int64()))
        piece = pa.table({"unit": ["piece"], "prompts": pa.array([to_ipc(asked)], pa.large_binary())})
        await one(piece)
        one.close()
        other = host(shelf)
        places = [("elsewhere", 100), ("shard", 100)]
        blocks = [
            unit(f"u{number}", [6, 5, 5])
            .append_column("place", pa.array([place]))
            .append_column("start", pa.array([start]))
            for number, (place, start) in enumerate(places)
        ]
        answers = [from_ipc((await other(block))["answers"][0].as_buffer()).to_pylist() for block in blocks]
        other.close()
        return answers

    elsewhere, there = asyncio.run(told())

    assert [row["_shared"] for row in elsewhere] == [True, True, True]
    assert [row["_shared"] for row in there] == [
        True,
        False,
        True,
    ]  # row 101 pays; the one of row 7 is not of this unit
    assert there[1]["_device_seconds"] > 0
    assert {row["_answer"] for row in elsewhere[1:]} == {row["_answer"] for row in there[1:]}
