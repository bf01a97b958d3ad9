"""When alerts are raised, escalated, told again and resolved: a state machine without clock, thread or channel.

Raised: the condition held for `for_s` without a break. Told: the first step of the path at once, each later one
`after_s` after the first was told, as long as nobody acknowledged. Told again: to all who were told, `repeat_s` after
the last message. Resolved: when the condition does not hold any more, to all who were told. One that is raised again
within `repeat_s` of its last message is not told before that time is over, and told only if it still stands then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from pipelines.alert_config import AlertRule, AlertsConfig, AlertStep, Comparison, Severity

Kind = Literal["raised", "escalated", "repeated", "resolved"]
Value = Decimal | float | int | None  # None: not measured
_HOLDS: Mapping[Comparison, Callable[[Decimal, Decimal], bool]] = {
    "above": lambda value, threshold: value > threshold,
    "at_least": lambda value, threshold: value >= threshold,
    "below": lambda value, threshold: value < threshold,
    "at_most": lambda value, threshold: value <= threshold,
    "equal": lambda value, threshold: value == threshold,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Where one rule stands. Times are seconds since the epoch; None: not so."""

    rule: str
    holds_since: float | None = None  # the condition holds
    raised_at: float | None = None  # it is raised
    value: str | None = None  # of the metric, when it last held
    steps_told: int = 0  # of the path, since it was raised
    first_told_at: float | None = None  # since it was raised
    last_told_at: float | None = None  # ever, but for `resolved`: what repeat_s counts from
    acknowledged_by: str | None = None
    acknowledged_at: float | None = None
    resolved_at: float | None = None  # the last time
    carried_to: str | None = None  # the later run of this output that goes on with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What is to be told to whom. Nothing in it comes from a corpus."""

    rule: str
    kind: Kind
    to: tuple[str, ...]  # channels
    severity: Severity
    metric: str
    comparison: Comparison
    threshold: Decimal
    value: str | None
    raised_at: float
    step: int  # of the path, from 1: the last that has been told


def step(
    config: AlertsConfig, alerts: Mapping[str, Alert], observed: Mapping[str, Value], now: float, *, final: bool = False
) -> tuple[dict[str, Alert], list[Notification]]:
    """Where all rules stand now, and what is to be told.

    `observed`: figures by metric; one that is absent or None leaves a raised alert as it is, and ends the time for
    which a condition has held. `final`: the figures are those of the end, so that no condition has to last any longer,
    and an alert over a figure that only a run at work has is resolved.
    """
    standing: dict[str, Alert] = {}
    told: list[Notification] = []
    for name, rule in config.live().items():
        alert, one = _judged(rule, alerts.get(name, Alert(rule=name)), observed.get(rule.metric), now, final=final)
        if one is not None:
            told += _resolution(rule, config.path_of(rule), one)
        alert, some = _told(rule, config.path_of(rule), alert, now)
        standing[name] = alert
        told += some
    return standing, told


def acknowledged(alert: Alert, *, by: str, at: float) -> Alert:
    """The alert, acknowledged: it is told to nobody any more until it is resolved. The first one counts."""
    if alert.raised_at is None or alert.acknowledged_by is not None:
        return alert
    return replace(alert, acknowledged_by=by, acknowledged_at=at)


def _judged(rule: AlertRule, alert: Alert, value: Value, now: float, *, final: bool) -> tuple[Alert, Alert | None]:
    """The alert by what is observed now; and, if that resolves it, the alert as it was."""
    if value is None and not final:
        return (alert if alert.raised_at is not None else replace(alert, holds_since=None)), None
    exact = None if value is None else Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if exact is not None and _HOLDS[rule.comparison](exact, rule.threshold):
        since = now if alert.holds_since is None else alert.holds_since
        alert = replace(alert, holds_since=since, value=_short(exact))
        if alert.raised_at is None and (final or now - since >= rule.for_s):
            alert = replace(alert, raised_at=now)
        return alert, None
    ended = Alert(rule=alert.rule, last_told_at=alert.last_told_at, resolved_at=alert.resolved_at)
    if alert.raised_at is None:
        return ended, None
    return replace(ended, resolved_at=now), replace(alert, value=None if exact is None else _short(exact))


def _told(rule: AlertRule, path: tuple[AlertStep, ...], alert: Alert, now: float) -> tuple[Alert, list[Notification]]:
    """Tell whoever is due."""
    if alert.raised_at is None or alert.acknowledged_by is not None:
        return alert, []
    rested = alert.last_told_at is None or now - alert.last_told_at >= rule.repeat_s
    if alert.first_told_at is None and not rested:
        return alert, []
    first = now if alert.first_told_at is None else alert.first_told_at
    due = sum(step.after_s <= now - first for step in path)
    told: list[Notification] = []
    if rested and alert.steps_told:
        told.append(_message(rule, alert, "repeated", _channels(path[: alert.steps_told]), alert.steps_told))
    told += [
        _message(rule, alert, "escalated" if number else "raised", path[number].to, number + 1)
        for number in range(alert.steps_told, due)
    ]
    if not told:
        return alert, []
    return replace(alert, first_told_at=first, steps_told=max(due, alert.steps_told), last_told_at=now), told


def _resolution(rule: AlertRule, path: tuple[AlertStep, ...], alert: Alert) -> list[Notification]:
    to = _channels(path[: alert.steps_told])
    return [_message(rule, alert, "resolved", to, alert.steps_told)] if to else []


def _message(rule: AlertRule, alert: Alert, kind: Kind, to: tuple[str, ...], number: int) -> Notification:
    return Notification(
        rule=alert.rule,
        kind=kind,
        to=to,
        severity=rule.severity,
        metric=rule.metric,
        comparison=rule.comparison,
        threshold=rule.threshold,
        value=alert.value,
        raised_at=alert.raised_at or 0.0,
        step=number,
    )


def _channels(steps: tuple[AlertStep, ...]) -> tuple[str, ...]:
    """Each channel of these steps once."""
    return tuple(dict.fromkeys(to for step in steps for to in step.to))


def _short(value: Decimal) -> str:
    """For people: four digits, and all those before the point."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
