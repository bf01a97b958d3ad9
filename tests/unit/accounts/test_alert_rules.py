"""When alerts are raised, escalated, told again and resolved: by example, and whatever a run tells."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.accounts.alert_rules import Alert, Notification, Value, acknowledged, step
from pipelines.alert_config import AlertRule, AlertsConfig, AlertStep

PATH = (AlertStep(to=("oncall",)), AlertStep(to=("lead", "boss"), after_s=900))
T0 = 1_700_000_000.0


def alarming(**over: Any) -> AlertsConfig:
    """One rule, `stalled`: no row for 100 s, unless told otherwise."""
    rule: dict[str, Any] = {"metric": "seconds_since_row", "comparison": "at_least", "threshold": Decimal(100)}
    return AlertsConfig(
        channels={name: f"PIPELINES_ALERT_{name.upper()}" for name in ("oncall", "lead", "boss")},
        path=PATH,
        rules={"stalled": AlertRule(**{**rule, **over})},
    )


class Course:
    """A rule's course: what it was told at which second, and who was notified."""

    def __init__(self, config: AlertsConfig) -> None:
        self.config = config
        self.alerts: dict[str, Alert] = {}
        self.told: list[tuple[float, Notification]] = []

    def at(self, second: float, value: Value, *, final: bool = False) -> list[tuple[str, tuple[str, ...]]]:
        """Kind and channels of what is told at this second."""
        self.alerts, told = step(self.config, self.alerts, {"seconds_since_row": value}, T0 + second, final=final)
        self.told += [(second, one) for one in told]
        return [(one.kind, one.to) for one in told]

    @property
    def alert(self) -> Alert:
        return self.alerts["stalled"]


def test_an_alert_is_raised_once_its_condition_has_held_for_so_long_and_not_before() -> None:
    course = Course(alarming(for_s=60))

    assert course.at(0, 150) == []
    assert course.at(59.9, 150) == []
    assert course.at(60, 150) == [("raised", ("oncall",))]
    assert course.at(61, 150) == []


@pytest.mark.parametrize("gap", [50, None])
def test_the_time_begins_again_when_the_condition_does_not_hold_or_is_not_measured_in_between(gap: int | None) -> None:
    course = Course(alarming(for_s=60))

    course.at(0, 150)
    course.at(30, gap)
    assert course.at(61, 150) == []
    assert course.at(120, 150) == []
    assert course.at(121, 150) == [("raised", ("oncall",))]


def test_an_alert_that_nobody_acknowledges_goes_to_the_next_of_its_path_once() -> None:
    course = Course(alarming(repeat_s=10_000))

    course.at(0, 150)
    assert course.at(899, 200) == []
    assert course.at(900, 200) == [("escalated", ("lead", "boss"))]
    assert course.at(901, 200) == []


def test_an_acknowledged_alert_goes_to_nobody_any_more_until_it_is_resolved() -> None:
    course = Course(alarming(repeat_s=300))

    course.at(0, 150)
    course.alerts["stalled"] = acknowledged(course.alert, by="Ada", at=T0 + 10)
    assert [course.at(second, 150) for second in (300, 900, 5000)] == [[], [], []]
    assert course.at(5001, 1) == [("resolved", ("oncall",))]
    assert course.alert.acknowledged_by is None


def test_the_first_to_acknowledge_an_alert_is_the_one_who_has_it_and_one_that_is_not_raised_cannot_be() -> None:
    course = Course(alarming(for_s=60))
    course.at(0, 150)
    assert acknowledged(course.alert, by="Ada", at=T0).acknowledged_by is None

    course.at(60, 150)
    seen = acknowledged(acknowledged(course.alert, by="Ada", at=T0 + 61), by="Bob", at=T0 + 62)

    assert (seen.acknowledged_by, seen.acknowledged_at) == ("Ada", T0 + 61)


def test_a_resolved_alert_is_told_once_to_all_who_were_told_and_to_no_other() -> None:
    early, late = Course(alarming()), Course(alarming())
    early.at(0, 150)
    for second in (0, 900):
        late.at(second, 150)

    assert early.at(10, 1) == [("resolved", ("oncall",))]
    assert early.at(11, 1) == []
    assert late.at(1000, 1) == [("resolved", ("oncall", "lead", "boss"))]


def test_an_alert_that_stands_is_told_again_after_repeat_s_to_all_who_were_told() -> None:
    course = Course(alarming(repeat_s=1000))

    for second in (0, 900):
        course.at(second, 150)
    assert course.at(1899, 150) == []
    assert course.at(1900, 150) == [("repeated", ("oncall", "lead", "boss"))]


def test_a_flapping_alert_is_told_again_only_after_repeat_s_and_only_if_it_still_stands() -> None:
    course = Course(alarming(repeat_s=600))

    course.at(0, 150)
    course.at(1, 1)
    assert course.at(2, 150) == []
    assert course.at(3, 1) == []  # nobody was told of it, so nobody of its end
    assert course.at(4, 150) == []
    assert course.at(600, 150) == [("raised", ("oncall",))]
    assert course.at(1199, 150) == []
    assert course.at(1200, 150) == [("repeated", ("oncall",))]


def test_whoever_comes_next_comes_so_long_after_the_first_was_told_and_not_after_the_alert_was_raised() -> None:
    course = Course(alarming(repeat_s=2000))

    course.at(0, 150)
    course.at(1, 1)
    course.at(2, 150)
    assert course.at(2000, 150) == [("raised", ("oncall",))]
    assert course.at(2899, 150) == []
    assert course.at(2900, 150) == [("escalated", ("lead", "boss"))]


def test_a_figure_that_is_not_measured_any_more_leaves_a_raised_alert_as_it_is() -> None:
    course = Course(alarming())
    course.at(0, 150)

    assert course.at(10, None) == []
    assert course.alert.raised_at == T0
    assert course.at(900, None) == [("escalated", ("lead", "boss"))]


def test_the_end_of_a_run_decides_without_waiting_and_resolves_what_only_a_run_at_work_has() -> None:
    pending, raised = Course(alarming(for_s=600)), Course(alarming())
    pending.at(0, 150)
    raised.at(0, 150)

    assert pending.at(1, 150, final=True) == [("raised", ("oncall",))]
    assert raised.at(1, None, final=True) == [("resolved", ("oncall",))]


@pytest.mark.parametrize(
    ("comparison", "alarms"),
    [("above", [101]), ("at_least", [100, 101]), ("below", [99]), ("at_most", [99, 100]), ("equal", [100])],
)
def test_each_comparison_means_its_word(comparison: str, alarms: list[int]) -> None:
    raised = [value for value in (99, 100, 101) if Course(alarming(comparison=comparison)).at(0, value)]

    assert raised == alarms


def test_a_share_that_is_a_float_is_compared_as_it_is_written() -> None:
    course = Course(alarming(comparison="above", threshold=Decimal("0.1")))

    assert course.at(0, 0.1) == []
    assert course.at(1, 0.1000001) == [("raised", ("oncall",))]


def test_a_rule_that_is_off_tells_nobody() -> None:
    config = AlertsConfig(channels={}, rules={"stalled": None})

    assert step(config, {}, {"seconds_since_row": 1e9}, T0) == ({}, [])


SECONDS = st.lists(
    st.tuples(st.integers(1, 400), st.sampled_from([None, 1, 150]), st.booleans()), min_size=1, max_size=60
)


@given(SECONDS, st.sampled_from([0, 60, 300]), st.sampled_from([60, 700, 5000]))
def test_whatever_happens_nobody_is_told_more_often_than_said_and_each_alarm_ends_once(
    steps: list[tuple[int, int | None, bool]], for_s: int, repeat_s: int
) -> None:
    course = Course(alarming(for_s=for_s, repeat_s=repeat_s))
    second, held_since, open_to = 0, None, set[str]()
    last_told: dict[str, int] = defaultdict(lambda: -(10**9))
    for pause, value, acknowledge in steps:
        second += pause
        if value == 150:
            held_since = second if held_since is None else held_since
        elif value is not None or course.alerts.get("stalled", Alert(rule="x")).raised_at is None:
            held_since = None
        was_acknowledged = bool(course.alerts) and course.alert.acknowledged_by is not None
        for kind, to in course.at(second, value):
            if kind == "resolved":
                assert set(to) == open_to and value == 1
                open_to = set()
                continue
            assert not was_acknowledged
            assert held_since is not None and second - held_since >= for_s
            for channel in to:
                assert second - last_told[channel] >= repeat_s
                last_told[channel] = second
            if kind == "raised":
                assert open_to == set()
            if kind == "repeated":
                assert set(to) <= open_to
            open_to |= set(to)
        if value == 1:
            assert open_to == set()
        if acknowledge:
            course.alerts["stalled"] = acknowledged(course.alert, by="Ada", at=T0 + second)
