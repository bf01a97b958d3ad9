"""One engine kept alive: rebuilt when lost, within caps, with the guilty row found and the innocent answered."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.engine import EngineConfig, EngineLost, Prompt, Sampling, SimulatedFaults
from actors.hang import FIRST_TOKEN_S, NO_TOKEN_S
from actors.outcome import Outcome
from actors.replica import Replica
from actors.simulated import SimulatedEngine
from actors.window import Window

POISON, BAD, HANGS = 666, 4, 13


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def replica(max_num_seqs: int = 4, clock: Callable[[], float] | None = None, **options: Any) -> Replica:
    faults: dict[str, Any] = {"poison_token_id": POISON, "bad_token_id": BAD, "hang_token_id": HANGS}
    faults |= {"latency_s": 0.001, **options.pop("faults", {})}
    config = EngineConfig(
        kind="simulated",
        model="none",
        model_name="none",
        max_num_seqs=max_num_seqs,
        simulated=SimulatedFaults(**faults),
    )
    opener = options.pop("opener", SimulatedEngine)
    options |= {"clock": clock} if clock else {}
    return Replica(lambda: opener(config), window=Window(), max_num_seqs=max_num_seqs, **options)


def prompt(key: str, token: int = 1) -> Prompt:
    return Prompt(key=key, token_ids=(token, 2), sampling=Sampling(max_tokens=4))


async def ask_all(asked: Replica, tokens: list[int]) -> list[Outcome]:
    rows = (asked.ask(prompt(str(number), token)) for number, token in enumerate(tokens))
    return await asyncio.wait_for(asyncio.gather(*rows), 30)


@pytest.mark.parametrize("place", [0, 3, 9])
async def test_a_poisonous_row_is_found_and_all_others_are_answered(place: int) -> None:
    asked = replica()
    tokens = [1] * 10
    tokens[place] = POISON

    outcomes = await ask_all(asked, tokens)

    assert [outcome.error_type for outcome in outcomes] == ["poison" if token == POISON else None for token in tokens]
    assert all(outcome.answer for outcome, token in zip(outcomes, tokens, strict=True) if token != POISON)
    assert "poison token" in str(outcomes[place].error)
    assert asked.restarts.here <= 4


async def test_rows_found_guilty_use_up_no_restart_of_the_replica() -> None:
    asked = replica(max_restarts=3)

    tokens = [1, 1, POISON, 1, 1, 1, POISON, 1, 1, 1, 1, 1, POISON, POISON, 1]

    outcomes = await ask_all(asked, tokens)

    assert [outcome.error_type for outcome in outcomes] == ["poison" if token == POISON else None for token in tokens]
    assert asked.restarts.here > 3


async def test_an_engine_that_dies_for_reasons_of_its_own_condemns_no_row() -> None:
    asked = replica(max_num_seqs=8, max_restarts=100, faults={"die_every_rows": 12})

    outcomes = await ask_all(asked, [1] * 60)

    assert all(outcome.answer for outcome in outcomes)
    assert asked.restarts.here > 1
    assert max(outcome.attempts for outcome in outcomes) > 1


async def test_a_suspect_is_not_condemned_by_engines_that_answer_nothing_at_all() -> None:
    deaths = iter([3, 3, 4, *[1] * 20])  # at which row each engine dies; from the fourth on at the first, whichever

    def open_next(config: EngineConfig) -> SimulatedEngine:
        return SimulatedEngine(replace(config, simulated=SimulatedFaults(latency_s=0.001, die_every_rows=next(deaths))))

    asked = replica(opener=open_next)

    ended = await asyncio.gather(*(asked.ask(prompt(str(row))) for row in range(3)), return_exceptions=True)

    assert {getattr(each, "error_type", "lost") for each in ended} == {None, "lost"}
    assert isinstance(ended[-1], EngineLost)


async def test_a_refused_row_takes_no_other_with_it_and_no_engine() -> None:
    asked = replica()

    outcomes = await ask_all(asked, [1, BAD, 1])

    assert [outcome.error_type for outcome in outcomes] == [None, "engine", None]
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 1]
    assert asked.restarts.here == 0


async def test_an_engine_for_which_every_row_is_poison_is_given_up_before_it_has_condemned_many() -> None:
    asked = replica()

    ended = await asyncio.gather(*(asked.ask(prompt(str(row), POISON)) for row in range(20)), return_exceptions=True)

    assert sum(isinstance(each, Outcome) for each in ended) <= 4
    assert "10 engines in a row were lost" in str(ended[-1])


async def test_an_engine_that_never_answers_is_given_up_after_two_restarts() -> None:
    opened = 0

    class DiesAtOnce(SimulatedEngine):
        def __init__(self, config: EngineConfig) -> None:
            nonlocal opened
            opened += 1
            super().__init__(config)

    asked = replica(opener=DiesAtOnce, max_restarts=100, faults={"die_every_rows": 1})

    ended = await asyncio.gather(*(asked.ask(prompt(str(number))) for number in range(6)), return_exceptions=True)

    assert {type(each) for each in ended} == {EngineLost}
    assert "3 engines in a row were lost before any row was answered" in str(ended[0])
    assert "it dies every 1 rows" in str(ended[0])
    assert opened == 3


async def test_the_restarts_of_a_replica_are_capped_however_much_it_gets_done_between_them() -> None:
    asked = replica(max_num_seqs=2, max_restarts=2, faults={"die_every_rows": 8})

    with pytest.raises(EngineLost, match=r"engine\.max_restarts allows 2"):
        await ask_all(asked, [1] * 60)

    assert 2 <= asked.restarts.here <= 4  # a death counts once every row that was there is acquitted
    with pytest.raises(EngineLost):
        await asked.ask(prompt("later"))


async def test_an_engine_that_does_not_start_again_ends_the_replica_with_both_reasons() -> None:
    opened = 0

    def open_once(config: EngineConfig) -> SimulatedEngine:
        nonlocal opened
        opened += 1
        if opened > 1:
            raise EngineLost("no memory left")
        return SimulatedEngine(config)

    asked = replica(opener=open_once, faults={"die_every_rows": 1})

    with pytest.raises(EngineLost, match=r"dies every 1 rows.*not started again: no memory left"):
        await asked.ask(prompt("a"))


async def until_in_engine(asked: Replica, rows: int) -> None:
    async def poll() -> None:
        while asked.busy.rows < rows:
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), 10)


async def test_a_hanging_engine_is_given_up_after_the_time_limit_and_the_row_that_hangs_it_is_named() -> None:
    clock = Clock()
    asked = replica(clock=clock)
    hanging = asyncio.create_task(asked.ask(prompt("a", HANGS)))

    for death in range(4):
        await until_in_engine(asked, 1)
        await asked.watch()
        clock.now += FIRST_TOKEN_S - 1
        await asked.watch()
        assert not hanging.done()
        assert asked.restarts.here == death
        clock.now += 2
        await asked.watch()

    outcome = await asyncio.wait_for(hanging, 10)
    assert outcome.error_type == "timeout"
    assert f"no token for {FIRST_TOKEN_S:.0f} s" in str(outcome.error)


async def test_an_engine_that_has_shown_its_pace_is_given_up_sooner() -> None:
    clock = Clock()
    asked = replica(clock=clock, max_num_seqs=8)
    hanging = asyncio.create_task(asked.ask(prompt("a", HANGS)))
    await until_in_engine(asked, 1)
    await asked.watch()
    for number in range(3):
        clock.now += 1.0
        await asked.ask(prompt(str(number)))
        await asked.watch()

    clock.now += NO_TOKEN_S + 1
    await asked.watch()
    assert not asked.engine.load().running
    await until_in_engine(asked, 1)  # asked again, of the next engine

    assert asked.restarts.here == 1
    hanging.cancel()


async def test_one_long_pause_does_not_give_an_engine_hours_to_hang() -> None:
    clock = Clock()
    asked = replica(clock=clock, max_num_seqs=8)
    hanging = asyncio.create_task(asked.ask(prompt("a", HANGS)))
    await until_in_engine(asked, 1)
    await asked.watch()
    clock.now += FIRST_TOKEN_S - 1  # the machine slept
    await asked.ask(prompt("b"))
    await asked.watch()

    clock.now += FIRST_TOKEN_S + 1
    await asked.watch()
    await until_in_engine(asked, 1)  # asked again, of the next engine

    assert asked.restarts.here == 1
    hanging.cancel()


async def test_an_idle_engine_does_not_hang() -> None:
    clock = Clock()
    asked = replica(clock=clock)
    await asked.watch()
    clock.now += 10 * FIRST_TOKEN_S
    await asked.watch()

    assert (await asked.ask(prompt("a"))).attempts == 1
    assert asked.restarts.here == 0


async def test_device_seconds_of_all_rows_add_up_whatever_the_engines_went_through() -> None:
    asked = replica(max_num_seqs=4, devices=2, max_restarts=100, faults={"die_every_rows": 9})

    outcomes = await ask_all(asked, [1, 1, BAD, 1, POISON, *[1] * 20])

    assert sum(outcome.device_seconds for outcome in outcomes) == pytest.approx(asked.busy.device_seconds)
