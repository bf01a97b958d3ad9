"""What prompts share, seen one by one as they enter an engine, is what looking at all of them finds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.beginnings import Beginnings, different
from pipelines.accounts.reuse import Reuse

BLOCK = 4
prompts = st.lists(st.lists(st.sampled_from([1, 2]), max_size=17), max_size=30)


def seen(rows: list[list[int]]) -> Beginnings:
    found = Beginnings(BLOCK)
    for row in rows:
        found.enters(row)
    return found


def blocks(row: list[int]) -> list[tuple[int, ...]]:
    """Each full block with all before it, but for one that holds the last token."""
    return [tuple(row[:stop]) for stop in range(BLOCK, len(row), BLOCK)]


@given(prompts)
def test_each_block_is_counted_with_all_before_it(rows: list[list[int]]) -> None:
    found = seen(rows).so_far()

    every = [block for row in rows for block in blocks(row)]
    alike = sum(len(set(blocks(before)) & set(blocks(here))) for before, here in zip([[], *rows], rows, strict=False))
    assert found.tokens == sum(map(len, rows))
    assert found.in_blocks == len(every) * BLOCK
    assert found.after_one_alike == alike * BLOCK
    assert found.sketch == seen([[*block, 0] for block in set(every)]).so_far().sketch  # each of them, however often


def test_a_few_different_blocks_are_counted_one_by_one() -> None:
    found = seen([[number] * (BLOCK + 1) for number in range(20)] * 3)

    assert different([found.so_far().sketch]) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("count", [100, 5_000, 30_000])
def test_many_different_blocks_are_counted_to_a_few_percent_over_several_hosts(count: int) -> None:
    dice = random.Random(7)
    rows = [[dice.randrange(50_000) for _ in range(2 * BLOCK + 1)] for _ in range(count // 2)]
    one, other = seen(rows[: count // 3]), seen(rows[count // 4 :])  # some are seen by both

    assert different([one.so_far().sketch, other.so_far().sketch]) == pytest.approx(count, rel=0.06)


def test_sorted_prompts_capture_what_there_is_and_shuffled_ones_do_not() -> None:
    dice = random.Random(7)
    beginnings = [[dice.randrange(1000) for _ in range(5 * BLOCK)] for _ in range(20)]
    rows = [[*begin, number] for number, begin in enumerate(beginnings * 10)]

    shuffled = Reuse.of([seen(rows).so_far()], delivered=None)
    ordered = Reuse.of([seen(sorted(rows)).so_far()], delivered=0.5)

    assert shuffled is not None
    assert ordered is not None
    to_be_had = 180 * 5 * BLOCK / (200 * (5 * BLOCK + 1))  # all but the first with each beginning
    assert shuffled.available == pytest.approx(to_be_had, rel=0.02)
    assert ordered.available == pytest.approx(to_be_had, rel=0.02)
    assert shuffled.captured == 0
    assert ordered.captured == pytest.approx(to_be_had)
    assert ordered.words() == (
        "86 % of the prompt tokens were to be had (estimated), 86 % stood behind a prompt that begins alike, 50 % were "
        "in the engines' caches"
    )


def test_where_no_prompt_entered_an_engine_there_is_nothing_to_say() -> None:
    assert Reuse.of([Beginnings(None).so_far()], delivered=None) is None
