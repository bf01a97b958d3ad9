"""Which stage the engines of a run waited for, by what their hosts report."""

import pytest

from actors.host_stats import HostStats
from pipelines.accounts.starvation import Starvation


def report(at: float, **seconds: float) -> HostStats:
    units = int(seconds.pop("units_ended", 0))
    return HostStats(replica="a:1", phase="serving", time=1000 + at, units_ended=units, **seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "stage"),
    [
        ({"starved_seconds": 60.0, "read_seconds": 70.0, "prepare_seconds": 20.0}, "read"),
        ({"starved_seconds": 60.0, "read_seconds": 20.0, "prepare_seconds": 70.0}, "tokenize"),
        ({"starved_seconds": 60.0, "read_seconds": 5.0, "prepare_seconds": 5.0}, "handling"),
        ({"starved_seconds": 20.0, "feed_seconds": 40.0, "read_seconds": 90.0}, "feed"),
        ({"starved_seconds": 60.0, "read_seconds": 90.0, "units_ended": 50.0}, "write"),
    ],
)
def test_the_stage_that_engines_waited_for_is_the_one_that_was_at_work_meanwhile(
    told: dict[str, float], stage: str
) -> None:
    starvation = Starvation(read_tasks=1, write_tasks=1)

    starvation.see([report(0)], received=0)
    starvation.see([report(100, **told)], received=1)

    found = starvation.found()
    assert found is not None and found.stage == stage
    assert found.share == pytest.approx(0.6)


def test_answers_whose_receipts_came_wait_for_no_writer() -> None:
    starvation = Starvation(read_tasks=1, write_tasks=1)

    starvation.see([report(0)], received=0)
    starvation.see([report(100, starved_seconds=60.0, read_seconds=90.0, units_ended=50.0)], received=49)

    found = starvation.found()
    assert found is not None and found.stage == "read"


def test_engines_that_did_not_wait_starved_of_nothing() -> None:
    starvation = Starvation(read_tasks=1, write_tasks=1)
    assert starvation.found() is None

    starvation.see([report(0)], received=0)
    starvation.see([report(100, read_seconds=90.0)], received=9)

    assert starvation.found() is None
    assert starvation.replicas() == pytest.approx(1.0)


def test_what_was_waited_for_in_the_last_minute_is_not_what_was_waited_for_before() -> None:
    starvation = Starvation(read_tasks=1, write_tasks=1)
    starvation.see([report(0)], received=0)
    starvation.see([report(60, starved_seconds=50.0, read_seconds=55.0)], received=1)
    before = starvation.waits()
    starvation.see([report(120, starved_seconds=53.0, feed_seconds=30.0, read_seconds=65.0)], received=1)

    lately, ever = starvation.waits().since(before).found(), starvation.found()

    assert lately is not None and lately.stage == "feed"
    assert lately.share == pytest.approx(33 / 60)
    assert ever is not None and ever.stage == "read"
    assert ever.share == pytest.approx(83 / 120)
