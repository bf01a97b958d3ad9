"""The host without Ray: units in, units out, drained when told."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from actors.engine import Answer, Constraint, EngineConfig, EngineLoad, EngineLost, ModelHere, Sampling, SimulatedFaults
from actors.exchange import ANSWERS, PROMPTS, from_ipc, to_ipc
from actors.host import EngineHost
from actors.host_stats import HostStats
from actors.window import Window

POISON, BAD, HANGS = 666, 4, 13


def host(max_num_seqs: int = 8, window: Window | None = None, **options: Any) -> EngineHost:
    faults = {"poison_token_id": POISON, "bad_token_id": BAD, "hang_token_id": HANGS, **options.pop("faults", {})}
    config = EngineConfig(
        kind="simulated",
        model="none",
        model_name="none",
        max_num_seqs=max_num_seqs,
        simulated=SimulatedFaults(**faults),
    )
    return EngineHost(
        engine=config,
        sampling=Sampling(max_tokens=4),
        constraint=Constraint(choices=("good", "bad")),
        alternatives=2,
        window=window or Window(lookahead=0),
        poll_s=3600,  # the tests call look() themselves
        **options,
    )


def unit(name: str, tokens: list[int | None]) -> pa.Table:
    """A unit of rows with one token each; None: a row that has an error already."""
    prompts = pa.table(
        {
            "_key": [None if token is None else f"{name}-{row}" for row, token in enumerate(tokens)],
            "_prompt": [None if token is None else [token, 2] for token in tokens],
            "_error_type": ["empty" if token is None else None for token in tokens],
            "_error": ["there is no text" if token is None else None for token in tokens],
        },
        schema=PROMPTS,
    )
    return pa.table(
        {
            "unit": [name],
            "rows": pa.array([b"not to be opened"], pa.large_binary()),
            "prompts": pa.array([to_ipc(prompts)], pa.large_binary()),
            "answers": pa.nulls(1, pa.large_binary()),
        }
    )


def answers_of(block: pa.Table) -> pa.Table:
    return from_ipc(block["answers"][0].as_buffer())


async def until(true: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 20)


async def test_every_row_has_its_answer_or_its_error_in_its_place() -> None:
    hosted = host()

    block = await hosted(unit("u", [1, None, BAD, 1]))

    answers = answers_of(block)
    assert answers.schema == ANSWERS
    assert answers["_error_type"].to_pylist() == [None, "empty", "engine", None]
    assert answers["_error"][1].as_py() == "there is no text"
    assert answers["_attempts"].to_pylist() == [1, 0, 1, 1]
    assert [text is not None for text in answers["_answer"].to_pylist()] == [True, False, False, True]
    assert answers["_prompt_tokens"].to_pylist() == [2, None, None, 2]
    options = answers["_alternatives"][0].as_py()[0]
    assert options[0]["text"] == answers["_answer"][0].as_py()
    assert options[0]["logprob"] == answers["_token_logprobs"][0].as_py()[0]
    hosted.close()


async def test_the_rest_of_a_unit_passes_through_and_its_token_ids_stay_behind() -> None:
    hosted = host()

    block = await hosted(unit("u", [1, None]))

    assert block.schema == unit("u", [1]).schema
    assert block["unit"].to_pylist() == ["u"]
    assert block["rows"].to_pylist() == [b"not to be opened"]
    prompts = from_ipc(block["prompts"][0].as_buffer())
    assert prompts.schema == PROMPTS
    assert prompts["_key"].to_pylist() == ["u-0", None]
    assert prompts["_prompt"].null_count == 2
    hosted.close()


async def test_a_block_without_a_unit_and_one_with_two_come_back_whole() -> None:
    hosted = host()
    two = pa.concat_tables([unit("a", [1]), unit("b", [1, 1])])

    assert (await hosted(two.slice(0, 0))).num_rows == 0
    block = await hosted(two)

    assert block["unit"].to_pylist() == ["a", "b"]
    assert [answers_of(block.slice(row, 1)).num_rows for row in range(2)] == [1, 2]
    hosted.close()


async def test_rows_of_the_next_unit_are_in_the_engine_before_the_last_of_this_one_is_done() -> None:
    hosted = host(max_num_seqs=4)
    slow = asyncio.create_task(hosted(unit("slow", [1, 1, HANGS])))

    quick = await asyncio.wait_for(hosted(unit("quick", [1] * 20)), 20)

    assert not slow.done()
    assert answers_of(quick)["_answer"].null_count == 0
    assert hosted.stats().rows_in_flight == 1
    assert hosted.stats().units == 1
    slow.cancel()
    hosted.close()


async def test_answers_do_not_depend_on_how_rows_are_batched_or_restarted() -> None:
    expected = None
    for mode in ("continuous", "dynamic", "static"):
        window = Window(mode=mode, batch_rows=3, wait_ms=1)
        hosted = host(max_num_seqs=4, window=window, max_restarts=100, faults={"die_every_rows": 17})
        blocks = await asyncio.gather(*(hosted(unit(name, [1] * 10)) for name in "abc"))
        said = [answers_of(block)["_answer"].to_pylist() for block in blocks]
        expected = expected or said
        assert said == expected
        hosted.close()


async def test_when_the_run_drains_what_is_begun_is_finished_and_the_rest_is_handed_back() -> None:
    draining = False
    hosted = host(max_num_seqs=2, stop=lambda: draining, faults={"latency_s": 0.05})
    begun = asyncio.create_task(hosted(unit("begun", [1] * 6)))
    await until(lambda: hosted.stats().rows_in_flight == 2)
    not_begun = asyncio.create_task(hosted(unit("not begun", [1] * 3)))
    await until(lambda: hosted.stats().units == 2)

    draining = True
    await hosted.look()
    back = await asyncio.wait_for(not_begun, 10)
    late = await hosted(unit("late", [1]))

    assert not begun.done()
    for block in (back, late):
        assert block["answers"].null_count == 1
        assert from_ipc(block["prompts"][0].as_buffer())["_prompt"].null_count == 0  # another can do it
    assert answers_of(await begun)["_answer"].null_count == 0
    assert hosted.stats().phase == "draining"
    hosted.close()


async def test_a_unit_that_is_not_done_within_the_grace_time_is_handed_back() -> None:
    draining = False
    hosted = host(stop=lambda: draining, grace_s=0)
    stuck = asyncio.create_task(hosted(unit("stuck", [1, HANGS])))
    await until(lambda: hosted.stats().rows_ended == 1)

    draining = True
    await hosted.look()

    assert (await asyncio.wait_for(stuck, 10))["answers"].null_count == 1
    assert hosted.stats().rows_in_flight == hosted.stats().rows_waiting == 0
    hosted.close()


async def test_an_engine_that_cannot_be_kept_alive_fails_every_unit_with_its_last_words() -> None:
    hosted = host(faults={"die_every_rows": 1})

    ended = await asyncio.gather(*(hosted(unit(name, [1, 1])) for name in "ab"), return_exceptions=True)

    assert [type(each) for each in ended] == [EngineLost] * 2
    assert "it dies every 1 rows" in str(ended[0])
    hosted.close()


async def test_an_engine_that_does_not_start_in_time_is_reported_by_the_constructor() -> None:
    with pytest.raises(EngineLost, match=r"did not start within 0\.01 s \(engine\.start_timeout_s\)"):
        EngineHost(
            engine=EngineConfig(
                kind="simulated",
                model="none",
                model_name="none",
                start_timeout_s=0.01,
                simulated=SimulatedFaults(start_s=60),
            ),
            sampling=Sampling(max_tokens=4),
            constraint=Constraint(),
            window=Window(),
        )


async def test_the_figures_reported_are_those_of_the_answers() -> None:
    reports: list[HostStats] = []
    hosted = host(devices=2, report=reports.append, faults={"latency_s": 0.001})

    blocks = await asyncio.gather(*(hosted(unit(name, [1, BAD, POISON, 1])) for name in "ab"))
    await hosted.look()

    rows = [row for block in blocks for row in answers_of(block).to_pylist()]
    assert reports[0].phase == "starting"
    last = reports[-1]
    assert last.rows_ended == len(rows)
    assert last.prompt_tokens == sum(row["_prompt_tokens"] or 0 for row in rows)
    assert last.output_tokens == sum(row["_output_tokens"] or 0 for row in rows)
    assert last.device_seconds == pytest.approx(sum(row["_device_seconds"] for row in rows))
    assert last.restarts > 0
    assert sorted({row["_error_type"] for row in rows if row["_error_type"]}) == ["engine", "poison"]
    hosted.close()


async def test_the_model_is_looked_for_on_the_node_and_its_folder_given_to_the_engine() -> None:
    with pytest.raises(RuntimeError, match="no such model here"):
        host(locate=_fails)


async def test_an_engine_is_opened_with_what_fits_the_device_of_its_node() -> None:
    seen: list[EngineLoad] = []
    hosted = host(fit=lambda engine: dataclasses.replace(engine, max_num_seqs=3), faults={"latency_s": 0.05})
    answering = asyncio.create_task(hosted(unit("a", [1] * 12)))
    while not answering.done():
        seen.append(hosted.stats().load or EngineLoad(running=0, waiting=0))
        await asyncio.sleep(0.01)

    assert max(load.running for load in seen) == 3
    hosted.close()


def _fails() -> ModelHere:
    raise RuntimeError("no such model here")


async def test_a_row_is_asked_again_until_its_answer_is_accepted_or_the_times_are_used_up() -> None:
    def again(token_ids: tuple[int, ...], answer: Answer) -> tuple[int, ...] | None:
        assert answer.text in ("good", "bad")
        wanted = {1: 2, 2: 3, 3: 99}[token_ids[0]]  # tokens of the prompt whose answer is accepted
        return None if len(token_ids) >= wanted else (*token_ids, 7)

    hosted = host(again=again, ask_again=2)

    answers = answers_of(await hosted(unit("u", [1, 2, 3, None, BAD])))

    assert answers["_asked_again"].to_pylist() == [0, 1, 2, 0, 0]
    assert answers["_attempts"].to_pylist() == [1, 2, 3, 0, 1]
    assert answers["_prompt_tokens"].to_pylist() == [2, 2 + 3, 2 + 3 + 4, None, None]
    assert answers["_output_tokens"].to_pylist() == [1, 2, 3, None, None]
    assert answers["_error_type"].to_pylist() == [None, None, None, "empty", "engine"]
    hosted.close()


async def test_nobody_is_asked_again_unless_the_job_says_so() -> None:
    hosted = host()
    assert answers_of(await hosted(unit("u", [1]))).schema.names == ANSWERS.names
    hosted.close()


async def test_units_of_one_row_fill_the_engine_as_large_ones_do_and_large_ones_wait_at_the_door() -> None:
    small = host(max_num_seqs=8, units_in_flight=2)
    crowd = [asyncio.create_task(small(unit(f"u{number}", [HANGS]))) for number in range(40)]
    await until(lambda: small.stats().rows_in_flight == 8 and small.stats().rows_waiting >= 4)  # to keep it full
    assert small.stats().units < 40

    large = host(max_num_seqs=8, units_in_flight=2)
    units = [asyncio.create_task(large(unit(f"u{number}", [HANGS] * 30))) for number in range(5)]
    await until(lambda: large.stats().rows_in_flight == 8)
    for _ in range(100):
        await asyncio.sleep(0)
    assert large.stats().units == 2

    for task in [*crowd, *units]:
        task.cancel()
    await asyncio.gather(*crowd, *units, return_exceptions=True)
    small.close()
    large.close()


async def test_units_that_gather_while_an_engine_starts_come_in_as_they_were_read_the_first_ends_first() -> None:
    # By how they begin, the last unit's prompts would be first.
    hosted = host(max_num_seqs=2, units_in_flight=3, faults={"latency_s": 0.01})

    def read(name: str, token: int, at: float) -> pa.Table:
        return unit(name, [token] * 12).append_column("read_at", pa.array([at]))

    ended: list[str] = []

    async def answered(block: pa.Table) -> None:
        ended.extend((await hosted(block))["unit"].to_pylist())

    crowd = [("later", 5, 3.0), ("last", 1, 4.0), ("second", 7, 2.0), ("first", 9, 1.0)]
    await asyncio.gather(*(answered(read(*one)) for one in crowd))

    assert ended[0] == "first"
    assert ended[-1] == "last"
    hosted.close()


class SlowNotes:
    """A book that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def note(self, unit: str, page: pa.Table) -> bool:
        return True

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        await asyncio.sleep(self.seconds)
        return {}


async def test_what_an_engine_waits_for_is_told_by_whether_the_rows_had_come() -> None:
    hosted = host(max_num_seqs=1, notes=SlowNotes(0.2))
    await asyncio.sleep(0.3)  # nobody comes

    await hosted(unit("first", [1]).append_column("read_seconds", pa.array([3.0])))

    stats = hosted.stats()
    assert stats.starved_seconds >= 0.3
    assert stats.feed_seconds >= 0.19
    assert (stats.read_seconds, stats.prepare_seconds) == (3.0, 0.0)
    assert (stats.units_ended, stats.longest) == (1, (1, 2))
    before = stats.starved_seconds + stats.feed_seconds
    await asyncio.sleep(0.1)  # after the last unit: nobody knows yet whether there is another
    assert hosted.stats().starved_seconds + hosted.stats().feed_seconds == before
    hosted.close()


async def test_a_row_that_does_not_come_back_while_others_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.overdue.LEAST_S", 0.0)
    watched, blind = host(overdue_times=2.0), host()
    stuck = [asyncio.create_task(each(unit("stuck", [1, 1, HANGS, 1]))) for each in (watched, blind)]

    for each in (watched, blind):
        await each(unit("others", [1] * 100))
    await until(lambda: bool(watched.stats().overdue))

    assert [(row.unit, row.line) for row in watched.stats().overdue] == [("stuck", 2)]
    assert blind.stats().overdue == ()
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    assert watched.stats().overdue == ()
    watched.close()
    blind.close()
