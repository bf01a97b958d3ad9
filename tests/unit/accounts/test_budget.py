"""When to stop and with which exit code. Signals are tried on real processes in tests/integration/test_stop.py."""

import signal
from pathlib import Path

import pytest

from pipelines.accounts.budget import Stop, too_many_errors
from pipelines.accounts.live import Live
from pipelines.accounts.live_file import kept, read
from pipelines.accounts.summary import Totals
from pipelines.config import Exit


def totals(rows_in: int, rows_error: int, shards_unreadable: int = 0) -> Totals:
    return Totals(
        units=1,
        rows_in=rows_in,
        rows_ok=rows_in - rows_error,
        rows_error=rows_error,
        errors_by_type={"unreadable_shard": shards_unreadable, "empty": rows_error - shards_unreadable},
    )


@pytest.mark.parametrize(
    ("rows_in", "rows_error", "limit", "verdict"),
    [
        (100, 7, 0.07, False),  # 0.07 * 100 is 7.000000000000001 in floats, and 0.29 * 100 is 28.999999999999996
        (100, 29, 0.29, False),
        (100, 30, 0.29, True),
        (10**9, 10**7, 0.01, False),
        (10**9, 10**7 + 1, 0.01, True),
        (5, 1, 0.0, True),
        (5, 0, 0.0, False),
        (0, 0, 0.0, False),
        (5, 5, 1.0, False),
    ],
)
def test_the_error_rate_is_judged_exactly_and_the_limit_itself_is_allowed(
    rows_in: int, rows_error: int, limit: float, verdict: bool
) -> None:
    assert too_many_errors(totals(rows_in, rows_error), limit) is verdict


def test_the_exit_code_follows_from_errors_unreadable_shards_and_requests() -> None:
    stop = Stop(grace_s=60, max_error_rate=0.1)

    assert stop.exit_code(totals(10, 1)) is Exit.DONE
    assert stop.exit_code(totals(10, 2)) is Exit.TOO_MANY_ERRORS
    assert stop.exit_code(totals(100, 1, shards_unreadable=1)) is Exit.TOO_MANY_ERRORS
    with stop.install():
        stop.request("budget.usd")
    assert stop.exit_code(totals(10, 2)) is Exit.STOPPED
    assert stop.exit_code(totals(10, 2), finished=True) is Exit.TOO_MANY_ERRORS
    assert stop.exit_code(totals(10, 0), finished=True) is Exit.DONE


def test_the_first_reason_counts_and_the_grace_runs_from_it() -> None:
    stop = Stop(grace_s=60, max_error_rate=0)
    assert (stop.requested(), stop.seconds_left()) == (False, None)

    with stop.install():
        stop.request("SIGTERM")
        stop.request("budget.usd")
        left = stop.seconds_left()

    assert stop.reason == "SIGTERM"
    assert left is not None
    assert 55 < left <= 60


def test_a_first_sigint_asks_a_second_one_interrupts() -> None:
    stop = Stop(grace_s=60, max_error_rate=0)
    with stop.install():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # not more than asked
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.reason == "SIGTERM"


def test_the_end_of_the_grace_interrupts_a_wait() -> None:
    stop = Stop(grace_s=0.05, max_error_rate=0)
    with pytest.raises(KeyboardInterrupt), stop.install():
        stop.request("SIGINT")
        signal.pause()  # for ever, but for a signal


def test_the_handlers_that_were_there_are_back_afterwards_also_after_an_exception() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with pytest.raises(ZeroDivisionError), Stop(grace_s=60, max_error_rate=0).install():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_sigterm_that_ray_turned_into_system_exit_is_a_stop_to_what_stands_between(tmp_path: Path) -> None:
    stop, live = Stop(grace_s=60, max_error_rate=0), Live()

    with pytest.raises(KeyboardInterrupt), stop.install(), kept(live, str(tmp_path), "r"), stop.heard():
        raise SystemExit(15)  # as ray.init is left

    last = read(str(tmp_path), "r")
    assert last is not None
    assert (last.state, last.exit_code) == ("ended", 4)


def test_a_sigterm_that_another_handler_turned_into_system_exit_is_a_stop_and_other_exits_stay() -> None:
    stop = Stop(grace_s=60, max_error_rate=0)
    with pytest.raises(KeyboardInterrupt), stop.install():
        raise SystemExit(15)
    assert stop.reason == "SIGTERM"

    with pytest.raises(SystemExit), Stop(grace_s=60, max_error_rate=0).install():
        raise SystemExit(2)
