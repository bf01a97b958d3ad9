"""Rules that give each row an order of its fields: what they spare, and that they go by the row alone."""

import json
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.job.field_order import best_order
from pipelines.job.row_order import Rule, Rules, best_rules, canonical, in_order, of_json, printed, to_json

NAMES = ("id", "terms", "story", "notes")
Row = Mapping[str, object]


def columns(rows: Sequence[Row], names: Sequence[str] = NAMES) -> list[list[str]]:
    return [[printed(name, row[name]) for row in rows] for name in names]


def lengths(rows: Sequence[Row], names: Sequence[str] = NAMES) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """A token for each letter."""
    return np.array([[len(printed(name, row[name])) for name in names] for row in rows], np.int64)


def spared(rows: Sequence[Row], orders: Sequence[Sequence[str]]) -> int:
    """Letters of fields that, once all rows are sorted, stand in a beginning that an earlier row has as well."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for row, order in zip(rows, orders, strict=True):
        beginning: tuple[str, ...] = ()
        for name in order:
            beginning = (*beginning, printed(name, row[name]))
            total += len(beginning[-1]) if beginning in seen else 0
            seen.add(beginning)
    return total


def found(rows: Sequence[Row], names: Sequence[str] = NAMES) -> Rules:
    return best_rules(names, columns(rows, names), lengths(rows, names)).rules


def sparse(count: int, seed: int = 1) -> list[Row]:
    """Each long field has one of a few texts in four rows of ten; in the others the row's own."""
    drawn = random.Random(seed)

    def text(name: str, number: int) -> str:
        return f"{name} {drawn.randrange(3)} " * 9 if drawn.random() < 0.4 else f"{name} of {number} " * 9

    return [{"id": n, **{name: text(name, n) for name in NAMES[1:]}} for n in range(count)]


def test_where_rows_share_different_fields_rules_spare_what_no_order_for_all_of_them_does() -> None:
    rows = sparse(600)
    best = best_order(columns(rows), lengths(rows), rows=len(rows)).order
    fixed = spared(rows, [[NAMES[place] for place in best]] * len(rows))
    rules = found(rows)

    by_rules = spared(rows, [in_order(rules, row) for row in rows])

    assert by_rules > 1.3 * fixed
    other = sparse(600, seed=2)  # that the rules were not found on
    assert spared(other, [in_order(rules, row) for row in other]) > 1.3 * fixed


def test_where_one_order_is_as_good_there_are_no_rules() -> None:
    rows = [
        {"id": n, "terms": f"terms {n % 7} " * 9, "story": f"story {n % 7} " * 9, "notes": "none"} for n in range(200)
    ]

    rules = found(rows)

    assert not isinstance(rules, Rule)
    assert rules[-1] == "id"
    assert in_order(rules, rows[0]) == rules


ROWS = st.lists(
    st.fixed_dictionaries({name: st.sampled_from(["a" * 9, "b" * 5, "c", None]) for name in NAMES}),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_each_row_has_all_of_its_fields_and_rules_spare_no_less_than_the_best_order_for_all_rows(
    rows: list[Row],
) -> None:
    names = NAMES[:3]
    best = best_rules(names, columns(rows, names), lengths(rows, names))
    total = int(lengths(rows, names).sum())

    orders = [in_order(best.rules, row) for row in rows]

    assert all(sorted(order) == sorted(names) for order in orders)
    assert best.shared >= best.shared_fixed
    assert spared(rows, orders) >= best.shared * total - 1e-6


def test_a_row_has_the_same_order_whichever_rows_are_beside_it_and_after_the_rules_were_written_and_read() -> None:
    rows = sparse(400)
    rules = found(rows)
    again = of_json(json.loads(json.dumps(to_json(rules))))

    assert again == rules
    assert canonical(again) == canonical(rules)
    assert hash(again) == hash(rules)
    assert [in_order(again, row) for row in rows] == [in_order(rules, row) for row in rows]
    assert len({in_order(rules, row) for row in rows}) > 2


def test_rules_hold_no_text_of_a_row() -> None:
    text = canonical(found(sparse(400)))

    assert "terms 1" not in text
    assert '"field":' in text


@pytest.mark.parametrize("names", [("terms",), ("id", "terms")])
def test_fields_that_are_few_or_empty_have_an_order_as_well(names: tuple[str, ...]) -> None:
    rows: list[Row] = [{"id": n, "terms": None} for n in range(20)]

    assert sorted(in_order(found(rows, names), rows[0])) == sorted(names)
    assert in_order(best_rules(names, [[] for _ in names], np.zeros((0, len(names)), np.int64)).rules, rows[0]) == names
