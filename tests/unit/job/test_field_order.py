"""The order of fields that is chosen is the one that trying all of them would choose."""

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.job import field_order
from pipelines.job.field_order import best_order

WORDS = ("a", "bb", "ccc", "dddddd", "eeeeeeeeeeee")
tables = st.integers(1, 5).flatmap(
    lambda fields: st.lists(st.tuples(*[st.sampled_from(WORDS)] * fields), min_size=1, max_size=12)
)


def spared(rows: list[tuple[str, ...]], order: tuple[int, ...]) -> int:
    """Letters that sorted rows, their fields in this order, have in whole fields that the row before begins with."""
    total = 0
    for one, other in pairwise(sorted(tuple(row[place] for place in order) for row in rows)):
        for before, here in zip(one, other, strict=True):
            if before != here:
                break
            total += len(here)
    return total


def chosen(rows: Sequence[tuple[str, ...]], of: int | None = None) -> field_order.Best:
    columns = list(zip(*rows, strict=True))
    tokens = np.array([[len(value) for value in row] for row in rows], np.int64)
    return best_order(columns, tokens, rows=len(rows) if of is None else of)


@given(tables)
def test_no_order_of_the_fields_spares_more_than_the_one_chosen(rows: list[tuple[str, ...]]) -> None:
    found = chosen(rows)

    every = {order: spared(rows, order) for order in permutations(range(len(rows[0])))}
    assert every[found.order] == max(every.values())
    letters = sum(len(value) for row in rows for value in row)
    assert round(found.shared * letters) == every[found.order]
    assert round(found.shared_given * letters) == every[tuple(range(len(rows[0])))]


@given(tables)
def test_where_orders_spare_the_same_the_first_in_the_given_order_is_taken(rows: list[tuple[str, ...]]) -> None:
    every = {order: spared(rows, order) for order in permutations(range(len(rows[0])))}

    assert chosen(rows).order == min(order for order, most in every.items() if most == max(every.values()))


def test_a_long_value_that_comes_back_stands_before_a_short_one_that_comes_back_more_often() -> None:
    rows = [(f"id {n}", "x" if n % 2 else "y", ("long text " * 9) + str(n // 4)) for n in range(16)]

    assert chosen(rows).order == (2, 1, 0)


def test_with_many_fields_the_best_next_one_is_taken_again_and_again() -> None:
    count = field_order.MOST_EXACT + 2
    rows = [tuple(str(number // (field + 1)) * (field + 1) for field in range(count)) for number in range(100, 160)]

    found = chosen(rows)

    assert sorted(found.order) == list(range(count))
    assert spared(rows, found.order[:1]) == max(spared(rows, (field,)) for field in range(count))
    assert found.shared > found.shared_given


def test_in_a_small_sample_of_a_large_corpus_a_value_seen_once_is_thought_to_come_back() -> None:
    rows = [(f"{n:020}", "ab"[n % 2]) for n in range(8)]

    assert chosen(rows).shared == (8 - 2) / (8 * 21)  # these are all rows: the long values never come back
    assert chosen(rows, of=8 * 100).shared > 0.85  # a value seen once is one of ten such, not of a hundred
