"""Rows that are in an engine for long: found by what others took."""

import random

from actors.overdue import LEAST_ROWS, LEAST_S, MOST_TOLD, Overdue, Overdues


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watching(times: float | None = 10.0) -> tuple[Overdues, Clock]:
    clock = Clock()
    return Overdues(times, clock), clock


def takes(overdues: Overdues, clock: Clock, seconds: float, rows: int = 1) -> None:
    for number in range(rows):
        overdues.enters("others", number)
        clock.now += seconds
        overdues.leaves("others", number, ended=True)


def test_a_row_that_is_in_for_ten_times_what_others_took_is_overdue_until_it_leaves() -> None:
    overdues, clock = watching()
    takes(overdues, clock, 20.0, LEAST_ROWS)
    usual_s = overdues.usual_s()
    assert usual_s is not None
    overdues.enters("u", 7)

    clock.now += 10 * usual_s
    assert overdues.now() == ()
    clock.now += 1
    assert overdues.now() == (Overdue(unit="u", line=7, seconds=10 * usual_s + 1, usual_s=usual_s),)

    overdues.leaves("u", 7, ended=True)
    assert overdues.now() == ()


def test_what_rows_take_is_the_time_that_99_of_100_do_not_pass_to_ten_percent() -> None:
    overdues, clock = watching()
    took = [random.Random(number).lognormvariate(0, 1) for number in range(1000)]
    for seconds in took:
        takes(overdues, clock, seconds)

    assert sorted(took)[989] <= (overdues.usual_s() or 0.0) <= sorted(took)[989] * 1.1001


def test_nothing_is_overdue_within_a_minute_or_before_it_is_known_what_rows_take_or_switched_off() -> None:
    overdues, clock = watching()
    takes(overdues, clock, 0.01, LEAST_ROWS - 1)
    overdues.enters("u", 0)
    clock.now += 10_000
    assert overdues.now() == ()

    takes(overdues, clock, 0.01)
    overdues.enters("u", 0)  # once more: its engine died, and another one has it
    clock.now += LEAST_S
    assert overdues.now() == ()
    clock.now += 1
    assert len(overdues.now()) == 1

    off, clock = watching(None)
    takes(off, clock, 0.01, LEAST_ROWS)
    off.enters("u", 0)
    clock.now += 10_000
    assert off.now() == ()


def test_a_row_that_is_handed_back_tells_nothing_of_what_rows_take() -> None:
    overdues, clock = watching()
    takes(overdues, clock, 1.0, LEAST_ROWS - 1)

    overdues.enters("u", 0)
    overdues.leaves("u", 0, ended=False)
    assert overdues.usual_s() is None
    overdues.leaves("u", 1, ended=True)  # one that no engine has seen
    assert overdues.usual_s() is None


def test_of_many_overdue_rows_those_are_told_that_are_in_for_longest() -> None:
    overdues, clock = watching()
    takes(overdues, clock, 0.01, LEAST_ROWS)
    for number in range(100):
        overdues.enters("u", number)
        clock.now += 1
    clock.now += 1000

    assert [row.line for row in overdues.now()] == list(range(MOST_TOLD))
