"""What a probe makes of reports: the rate of an engine whose rate is known, and what it is held for besides."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from pipelines.accounts.probed import Answered, Probed, Reading, steady

PROMPT, CACHED, OUTPUT = 40, 16, 2  # tokens of each row


@dataclass(frozen=True)
class Host:
    """As actors.host.HostStats, so far as a probe looks."""

    time: float
    rows_ended: int
    rows_in_flight: int = 20
    phase: str = "serving"

    @property
    def prompt_tokens(self) -> int:
        return PROMPT * self.rows_ended

    @property
    def cached_tokens(self) -> int:
        return CACHED * self.rows_ended

    @property
    def output_tokens(self) -> int:
        return OUTPUT * self.rows_ended

    @property
    def device_seconds(self) -> float:
        return self.time - 100.0


def reading(*hosts: Host) -> Reading:
    found = Reading.of(hosts)
    assert found is not None
    return found


def rows(some: Answered) -> float:
    return some.rows


def probed(readings: list[Reading], last: Reading, **changes: Any) -> Probed:
    found = Probed(
        asked_s=30.0,
        startup_s=12.0,
        held_s=50.0,
        devices=1.0,
        whole=replace(last.ended, seconds=last.busy_s),
        cut=False,
        steady=steady(readings),
        tokens_by_unit=(),
    )
    return replace(found, **changes)


def filled(rows_per_s: int, seconds: int, fills_s: int = 4) -> list[Reading]:
    """A report a second from 100 on: nothing ends while the engine fills, then so many rows a second."""
    return [reading(Host(100.0 + at, max(0, at - fills_s) * rows_per_s)) for at in range(seconds + 1)]


def test_neither_the_filling_of_an_engine_nor_its_emptying_is_in_its_rate() -> None:
    readings = filled(10, 30)
    emptied = reading(Host(140.0, readings[-1].ended.rows + 20, rows_in_flight=0))  # 20 rows in 10 s

    found = probed(readings, emptied)

    assert found.rate(rows).middle == pytest.approx(0.1)
    assert found.whole.rows == 280
    assert found.whole.seconds == 40.0
    assert found.besides_s(rows) == pytest.approx(50.0 - 28.0)  # start-up, and what both ends took longer
    assert "in 25 s of steady work" in found.words


def test_work_on_rows_that_did_not_end_is_not_taken_for_start_up() -> None:
    readings = filled(10, 30)
    stopped = reading(Host(145.0, readings[-1].ended.rows))  # 15 s on rows that it was not given the time for

    assert probed(readings, stopped, cut=True).besides_s(rows) == pytest.approx(50.0 - 45.0)
    assert probed(readings, stopped).besides_s(rows) == pytest.approx(50.0 - 26.0)


def test_an_engine_that_is_not_turned_over_twice_tells_by_all_that_it_did() -> None:
    readings = [replace(one, in_flight=200) for one in filled(10, 30)]
    emptied = reading(Host(140.0, 280, rows_in_flight=0))

    found = probed(readings, emptied)

    assert found.steady == ()
    assert found.rate(rows).middle == pytest.approx(40 / 280)
    assert found.besides_s(rows) == pytest.approx(10.0)
    assert "too few" in found.words


def test_stretches_add_up_to_the_steady_time_whatever_ends_when() -> None:
    ended = [0, 0, 7, 7, 7, 40, 41, 90, 90, 90, 90, 130, 131, 131, 131]  # in bursts, and nothing at the end
    readings = [reading(Host(100.0 + at, count)) for at, count in enumerate(ended)]

    found = steady(readings)

    assert sum(one.rows for one in found) == 131 - 7
    assert sum(one.prompt_tokens for one in found) == (131 - 7) * PROMPT
    assert sum(one.seconds for one in found) == pytest.approx(12.0)


def test_a_rate_that_moves_is_known_less_well_than_one_that_does_not() -> None:
    even = filled(40, 30)
    uneven = list(even)
    ended = 0
    for at in range(5, 31):
        ended += 10 if (at // 4) % 2 else 90
        uneven[at] = reading(Host(100.0 + at, ended))

    of_even, of_uneven = probed(even, even[-1]).rate(rows), probed(uneven, uneven[-1]).rate(rows)

    assert of_even.high / of_even.middle == pytest.approx(1.1)
    assert of_uneven.high / of_uneven.middle > 1.3


def test_engines_side_by_side_are_counted_together_and_those_that_start_not_at_all() -> None:
    found = reading(Host(100.0, 10), Host(101.0, 30), Host(0.0, 0, phase="starting"))

    assert (found.engines, found.in_flight, found.ended.rows) == (2, 40, 40)
    assert found.ended.seconds == 100.5
    assert Reading.of([Host(0.0, 0, phase="starting")]) is None


def test_a_rate_is_in_seconds_of_all_the_devices_that_were_held() -> None:
    readings = filled(10, 30)

    assert probed(readings, readings[-1], devices=4.0).rate(rows).middle == pytest.approx(0.4)
