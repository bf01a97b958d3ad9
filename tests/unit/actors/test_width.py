"""How many rows are let into an engine: fewer where its KV memory is short, more where it runs out of rows."""

import random
from dataclasses import replace

import pytest

from actors.engine import Answer, EngineLoad
from actors.lengths import LEAST_ROWS, Lengths
from actors.width import Width
from actors.window import Admission, Window
from benchmarks.admission import SEEN, Case, answered
from benchmarks.step_engine import Device
from benchmarks.tuning import CPU
from pipelines.tuning import Sizes
from tests.unit.actors.crowd import Crowd, settle

SLOW = Device(  # a step takes longer than a look
    name="slow", token_s=0.0, weights_s=0.0, kv_token_s=0.0, step_s=1.0, kv_tokens=10**9, most_tokens=10**9
)


def load(
    preemptions: int | None = 0, *, running: int = 8, waiting: int = 4, kv_tokens: int | None = None
) -> EngineLoad:
    return EngineLoad(running=running, waiting=waiting, preemptions=preemptions, kv_tokens=kv_tokens)


def answer(output: int, prompt: int = 100, cached: int = 0) -> Answer:
    return Answer(text="", finish_reason="stop", prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


async def test_the_window_narrows_while_the_engine_throws_rows_out_and_grows_back_when_it_has_been_calm() -> None:
    admission = Admission(Window(lookahead=0.5), max_num_seqs=8)
    crowd = Crowd(admission)
    await crowd.come(*map(str, range(20)))
    assert admission.in_flight == 12

    for preempted in (0, 3, 3, 4):
        admission.see(load(preempted))
    assert admission.limit == 7
    await crowd.go("0", "1", "2", "3", "4")
    assert admission.in_flight == 7  # nobody took their places
    for preempted in range(5, 30):
        admission.see(load(preempted))
    assert admission.limit == 2  # a quarter of max_num_seqs: never less

    for _ in range(20 * 20):
        admission.see(load(29))
    await settle()
    assert admission.limit == 12
    assert admission.in_flight == 12
    admission.see(load(None))  # an engine that cannot tell
    assert admission.limit == 12
    await crowd.go(*crowd.tasks)


def test_an_engine_that_starts_anew_counts_from_zero_and_that_narrows_nothing() -> None:
    width = Width(8, 0.5)
    width.see(load(5), rows_held_up=False)
    narrowed = width.rows

    width.see(load(0), rows_held_up=False)
    width.see(load(1), rows_held_up=False)

    assert width.rows == int(narrowed * 0.8)


async def test_the_window_widens_where_the_engine_has_nothing_left_and_the_window_alone_keeps_rows_from_it() -> None:
    admission = Admission(Window(lookahead=0.5), max_num_seqs=8)
    crowd = Crowd(admission)
    dry = load(running=3, waiting=0)
    await crowd.come(*map(str, range(40)))
    admission.see(dry)
    assert admission.limit == 12  # nothing has left it yet: its first step is under way

    for row, seen, limit in [
        ("0", load(running=8, waiting=0), 12),  # it is full
        ("1", load(running=3, waiting=1), 12),  # and so is its KV memory, or it would take that one
        ("2", dry, 14),
        ("3", dry, 16),
    ]:
        await crowd.go(row)
        admission.see(seen)
        await settle()
        assert (admission.limit, admission.in_flight) == (limit, limit)

    for row in map(str, range(4, 20)):
        await crowd.go(row)
        admission.see(dry)
        await settle()
    assert admission.limit == 24  # three times max_num_seqs: never more

    await crowd.go(*crowd.tasks)


async def test_a_window_that_waits_for_rows_or_for_kv_memory_and_one_without_lookahead_do_not_widen() -> None:
    dry = load(running=0, waiting=0)
    lengths = Lengths()
    for _ in range(LEAST_ROWS):
        lengths.see(answer(100))
    short_of_rows = Admission(Window(lookahead=0.5), max_num_seqs=4)
    short_of_memory = Admission(Window(lookahead=0.5), 4, lengths)
    without = Admission(Window(lookahead=0), max_num_seqs=4)
    batches = Admission(Window(mode="static", batch_rows=2), max_num_seqs=4)
    short_of_memory.see(load(kv_tokens=500))
    for admission, rows in ((short_of_rows, 5), (short_of_memory, 20), (without, 20), (batches, 20)):
        before = admission.limit
        crowd = Crowd(admission, prompt_tokens=100)
        await crowd.come(*map(str, range(rows)))
        for row in list(crowd.entered):
            await crowd.go(row)
            admission.see(replace(dry, kv_tokens=500 if admission is short_of_memory else None))
        assert admission.limit == before
        await crowd.go(*crowd.tasks)


async def test_rows_enter_as_far_as_they_fit_the_kv_memory_and_none_overtakes_one_that_does_not() -> None:
    lengths = Lengths(block=2)
    for _ in range(LEAST_ROWS):
        lengths.see(answer(20))  # 10 written on average, and one for a half of a block
    admission = Admission(Window(lookahead=0.5), 8, lengths)
    admission.see(load(kv_tokens=400))  # 380 of them are filled
    big, small = Crowd(admission, prompt_tokens=320), Crowd(admission, prompt_tokens=20)

    await small.come("a", "b")
    await big.come("c")
    await small.come("d")
    assert (small.entered, big.entered) == (["a", "b"], [])  # with c it were 31 + 31 + 331, and with d alone 93

    await small.go("a")
    assert (small.entered, big.entered) == (["a", "b"], ["c"])
    await small.go("b")
    assert (small.entered, big.entered) == (["a", "b", "d"], ["c"])
    await small.go("d")
    await big.go("c")


async def test_a_row_that_does_not_fit_the_kv_memory_enters_an_empty_engine() -> None:
    lengths = Lengths()
    for _ in range(LEAST_ROWS):
        lengths.see(answer(20))
    admission = Admission(Window(), 8, lengths)
    admission.see(load(kv_tokens=100))
    crowd = Crowd(admission, prompt_tokens=300)

    await crowd.come("a", "b")
    assert crowd.entered == ["a"]
    await crowd.go("a")
    assert crowd.entered == ["a", "b"]
    await crowd.go("b")


def test_kv_memory_is_predicted_from_answers_and_from_what_prompts_do_not_share() -> None:
    lengths = Lengths(block=16)
    assert lengths.kv_tokens(1, 100) is None
    for _ in range(LEAST_ROWS - 1):
        lengths.see(answer(30, prompt=100, cached=75))
    assert lengths.kv_tokens(1, 100) is None
    lengths.see(answer(30, prompt=100, cached=75))

    assert lengths.kv_tokens(4, 400) == pytest.approx(400 / 4 + 4 * (30 / 2 + 16 / 2))


def test_what_is_written_of_an_answer_at_some_moment_is_more_than_half_of_the_mean_where_answers_differ() -> None:
    lengths = Lengths(block=2)
    dice = random.Random(0)
    outputs = [dice.choice((10, 200)) for _ in range(1000)]
    for output in outputs:
        lengths.see(answer(output))
    # Watched for as long as all of them take one after the other, at each token of each:
    written = [token for output in outputs for token in range(output)]

    predicted = lengths.kv_tokens(1, 0)
    assert predicted is not None
    assert predicted - 1 == pytest.approx(sum(written) / len(written), rel=0.02)
    assert predicted - 1 > sum(outputs) / len(outputs) / 2 * 1.5


def test_an_engine_whose_kv_memory_is_short_throws_out_fewer_rows_and_takes_fewer_steps() -> None:
    case = Case("chat", CPU, Sizes(max_num_seqs=32, max_num_batched_tokens=2048), prompt=300, output=150, rows=300)

    fixed, narrower, predicted = (answered(case, SEEN[rule]) for rule in ("fixed", "narrower", "all"))

    assert predicted.thrown_out < 0.7 * narrower.thrown_out < 0.7 * fixed.thrown_out
    assert predicted.tokens_per_s > narrower.tokens_per_s > fixed.tokens_per_s


def test_an_engine_that_ends_all_its_rows_in_a_step_takes_as_few_steps_as_there_can_be_but_for_the_first() -> None:
    case = Case("labels", SLOW, Sizes(max_num_seqs=64, max_num_batched_tokens=8192), 25, 1, rows=64 * 60, most_output=1)

    assert answered(case, SEEN["predicted"]).steps >= 60 * 4 / 3 - 1  # 64 rows and 32, in turns
    assert answered(case, SEEN["all"]).steps <= 60 + 4
