"""Alerts as a config says them: rules over figures of a run, whom to tell, through which channels.

A rule is data: a metric from a fixed table, a comparison from a fixed list, a threshold. A channel is the name of an
environment variable: the URL in it is a secret, and is in no config, so that no copy of a config can show it.
"""

import re
from dataclasses import field
from decimal import Decimal
from typing import Annotated, Literal, Self, get_args

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
CHANNEL_PREFIX = "PIPELINES_ALERT_"  # variables of no other name can be named, so that no config reads another secret
_VARIABLE = re.compile(rf"{CHANNEL_PREFIX}[A-Z0-9_]{{1,64}}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # of a rule or a channel: it becomes a file's name

Metric = Literal[
    # While the run is at work, and once more at its end:
    "usd_per_million_tokens",  # this run's dollars for a million tokens, prompt and output
    "usd_per_hour",  # what the devices that are held now cost
    "usd",  # spent by this run
    "budget_share",  # of budget.usd that is spent, 0..1, with earlier runs where budget.scope says so
    "error_rate",  # dead letters among this run's rows, 0..1
    "cache_hit_share",  # of the prompt tokens that needed no prefill, 0..1
    "accuracy",  # where the job names a gold column, 0..1
    # While the run is at work alone:
    "seconds_without_engine",  # since an engine last served, or since the run has its output
    "seconds_since_row",  # since an engine last ended a row; counts once one serves
    "rows_per_s",  # committed, over the last minute
    "busy_share",  # of the time of the engines, over the last minute, in which rows were in them, 0..1
    "gpu_utilization",  # as NVML tells it, mean over the GPUs, 0..1; absent without GPU
    "restarts",  # of engines in this run
    # At its end alone:
    "significant_psi",  # drift of labels, lengths or confidence that chance does not explain; 0 if it does
    "labels_psi",  # these three as they are, chance included
    "labels_js",  # bits, 0..1
    "lengths_js",
    "error_rate_change",  # against the run compared with, -1..1
    "refusal_rate",  # of free text, 0..1
    "refusal_rate_change",
    "accuracy_change",
    "panel_changed_share",  # of the rows looked at after each run, those with another answer than before, 0..1
    "calibration_error",  # of confidences against gold, 0..1
    "main_language_share",  # of free text that is long enough, the share in the language that most of it is in, 0..1
    "same_language_share",  # of those, answered in the language of their input, 0..1
    "sentiment",  # mean polarity of answers in free text, -1..1
    "relevance",  # mean share of such an answer's words that its input has, 0..1
    "gate_blocked",  # 1: publish=gate did not show readers what was done; 0: it did; absent without a gate
    "exit_code",  # 0 done, 1 failed, 2 refused, 3 too many errors, 4 stopped by budget, deadline or signal
]
Comparison = Literal["above", "at_least", "below", "at_most", "equal"]
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class AlertStep:
    """Whom to tell, and when."""

    to: Annotated[tuple[str, ...], Field(min_length=1)]  # channels
    after_s: Annotated[float, Field(ge=0)] = 0.0  # without acknowledgement, since the first step was told


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class AlertRule:
    """What is alarming, and whom it alarms."""

    metric: Metric
    comparison: Comparison
    threshold: Decimal
    for_s: Annotated[float, Field(ge=0)] = 0.0  # without a break, until it is raised; a run's end decides at once
    severity: Severity = "warning"
    path: tuple[AlertStep, ...] = ()  # empty: the path of the group
    repeat_s: Annotated[float, Field(gt=0)] = 3600.0  # told again no sooner; unacknowledged, it is told again each time


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class AlertsConfig:
    """All alerts of a run; none unless rules say so."""

    channels: dict[str, str] = field(default_factory=dict)  # name: variable that holds an apprise URL
    path: tuple[AlertStep, ...] = ()  # of the rules that name none
    rules: dict[str, AlertRule | None] = field(default_factory=dict)  # null: this one is off
    check_s: Annotated[float, Field(gt=0)] = 5.0  # between two looks at the figures, and for acknowledgements

    def live(self) -> dict[str, AlertRule]:
        """The rules that are on."""
        return {name: rule for name, rule in self.rules.items() if rule is not None}

    def path_of(self, rule: AlertRule) -> tuple[AlertStep, ...]:
        """The steps of a rule."""
        return rule.path or self.path

    @model_validator(mode="after")
    def _all_hangs_together(self) -> Self:
        for name in (*self.channels, *self.rules):
            if not _NAME.fullmatch(name):
                raise ValueError(f"alerts: the name {name[:80]!r} is not of lower-case letters, digits, _ and -")
        for name, variable in self.channels.items():
            if not _VARIABLE.fullmatch(variable):  # it may be a URL, so it is not shown
                raise ValueError(
                    f"alerts.channels.{name} is no name of an environment variable: a URL holds secrets, so put it "
                    f"into {CHANNEL_PREFIX}{name.upper().replace('-', '_')} and give that name here"
                )
        for name, rule in self.live().items():
            self._check_path(name, self.path_of(rule))
        return self

    def _check_path(self, name: str, path: tuple[AlertStep, ...]) -> None:
        if not path:
            raise ValueError(f"alerts.rules.{name} tells nobody: give it a path, or alerts.path for all rules")
        times = [step.after_s for step in path]
        if times[0] != 0 or sorted(set(times)) != times:
            raise ValueError(
                f"alerts.rules.{name}: the steps of its path come after {times} s: the first must come after 0 s, "
                "each later one after more than the one before"
            )
        unknown = [to for step in path for to in step.to if to not in self.channels]
        if unknown:
            known = ", ".join(self.channels) or "none"
            raise ValueError(f"alerts.rules.{name} tells {unknown[0]}, which is no channel; alerts.channels: {known}")


METRICS: tuple[str, ...] = get_args(Metric)
