"""Which rows a sample draws."""

from collections import Counter

from pipelines.sample import drawn
from tests.receipts import receipt

UNITS = [
    receipt(start=0, stop=3),
    receipt(start=3, stop=5, rows_ok=0, rows_error=2),
    receipt(start=5, stop=12, rows_ok=6, rows_error=1),
]


def test_a_draw_is_of_answered_rows_each_at_most_once_and_the_same_for_the_same_seed() -> None:
    for seed in range(50):
        places = drawn(UNITS, 4, seed)

        assert len({(unit.start, line) for unit, line in places}) == 4
        assert all(line < unit.rows_ok for unit, line in places)
        assert places == drawn(list(reversed(UNITS)), 4, seed)


def test_a_draw_of_more_rows_than_there_are_is_all_of_them() -> None:
    assert [(unit.start, line) for unit, line in drawn(UNITS, 99, 0)] == [
        *((0, line) for line in range(3)),
        *((5, line) for line in range(6)),
    ]
    assert drawn([], 3, 0) == []


def test_every_answered_row_is_drawn_as_often_as_any_other() -> None:
    seen = Counter((unit.start, line) for seed in range(900) for unit, line in drawn(UNITS, 1, seed))

    assert len(seen) == 9
    assert all(60 < times < 145 for times in seen.values())
