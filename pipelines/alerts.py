"""Alerts of an output: list, acknowledge, escalate, test a channel: python -m pipelines.alerts key=value …

sink.uri=… lists them; with ack=RULE by=NAME it says that somebody sees to one, from any machine that reaches the
output; with escalate=true it tells whoever is due by now of alerts whose run has ended, for a scheduler to call each
few minutes. test=CHANNEL sends a message, through the channel as alerts=NAME or the newest run of sink.uri has it.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, field
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import storage
from pipelines.accounts import alert_files
from pipelines.accounts.alert_rules import Alert, Notification, step
from pipelines.accounts.alerts import About, changes, message
from pipelines.accounts.channels import Message, Outbox, opened
from pipelines.accounts.summary import printable, without_secrets
from pipelines.alert_config import AlertsConfig
from pipelines.cli import command_of_few_keys
from pipelines.compose import compose, recorded
from pipelines.config import STRICT, Exit, Place, RunConfig, UserError
from pipelines.config_keys import nearest

MOST_RESOLVED = 20  # are listed
KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "ack": "a rule whose alert somebody sees to: it goes to nobody else, until it is resolved",
    "by": "who that is",
    "run": "the run of the alert, if not the newest that has it raised",
    "escalate": "true: tell whoever is due of alerts whose run has ended",
    "test": "a channel to send a message through",
    "alerts": "the option of conf/alerts that has the channel",
    "config_dir": "a folder of yours beside conf/, with DIR/alerts/NAME.yaml",
    "format": "table (the default), or json: one document on stdout",
}
EXITS = {
    Exit.DONE: "done; for a test: delivered",
    Exit.FAILED: "something could not be delivered",
    Exit.USAGE: "bad usage, or there is no such output, rule or channel; nothing was sent",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AlertsSink:
    uri: Place | None = None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AlertsAsked:
    """Everything that the command is told."""

    sink: AlertsSink = field(default_factory=AlertsSink)
    ack: str | None = None
    by: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    run: str | None = None
    escalate: bool = False
    test: str | None = None
    alerts: str | None = None
    config_dir: str | None = None
    format: Literal["table", "json"] = "table"


def alerts(asked: AlertsAsked) -> Exit:
    """Do the one thing that is asked."""
    if asked.test is not None:
        return _test(asked, asked.test)
    if asked.sink.uri is None:
        raise UserError(
            "sink.uri is missing: say sink.uri=…, the output whose alerts you mean, or test=CHANNEL alerts=…"
        )
    sink_uri = storage.absolute(asked.sink.uri)
    if next(storage.listing(storage.join(sink_uri, "runs"), missing_ok=True), None) is None:
        raise UserError(f"sink.uri={asked.sink.uri}: no run has left anything there; check the path")
    found = [(run, alert) for run, alert in alert_files.kept(sink_uri) if alert.carried_to is None]
    found = [(run, alert) for run, alert in found if asked.run in (None, run)]
    if asked.ack is not None:
        return _acknowledge(asked, asked.ack, sink_uri, found)
    if asked.by is not None:
        raise UserError(f"by={asked.by} says who sees to an alert: say ack=RULE as well")
    if asked.escalate:
        return _escalate(sink_uri, found)
    if asked.format == "json":
        print(json.dumps(without_secrets([{"run": run, **asdict(alert)} for run, alert in found])))  # noqa: T201
    else:
        _show(asked.sink.uri, found)
    return Exit.DONE


def _acknowledge(asked: AlertsAsked, rule: str, sink_uri: str, found: Sequence[tuple[str, Alert]]) -> Exit:
    if asked.by is None:
        raise UserError(f"ack={rule}: say who sees to it, by=NAME")
    raised = [(run, alert) for run, alert in found if alert.raised_at is not None]
    mine = [(run, alert) for run, alert in raised if alert.rule == rule]
    if not mine:
        rules = sorted({alert.rule for _, alert in raised})
        raise UserError(
            f"ack={rule}: no such alert is raised{nearest(rule, rules)}; raised: {', '.join(rules) or 'none'}"
        )
    run, alert = mine[-1]
    if alert.acknowledged_by is not None:
        _say(f"{rule} of run {run} was acknowledged by {alert.acknowledged_by} at {_clock(alert.acknowledged_at)}")
        return Exit.DONE
    alert_files.acknowledge(sink_uri, run, alert, by=asked.by, at=time.time())
    _say(f"{rule} of run {run} is acknowledged by {asked.by}; it goes to nobody else until it is resolved")
    return Exit.DONE


def _escalate(sink_uri: str, found: Sequence[tuple[str, Alert]]) -> Exit:
    """As the run would have done, had it gone on; a run at work does so itself."""
    lines: list[str] = []
    due: list[Notification] = []
    for run in dict.fromkeys(run for run, alert in found if alert.raised_at is not None):
        if storage.exists(storage.join(sink_uri, "runs", run, "alive.json")):
            _say(f"run {run} is at work, or was killed and waits for the next run: it is left alone")
            continue
        config = _recorded(sink_uri, run)
        before = {alert.rule: alert for of, alert in found if of == run}
        now, told = step(config.alerts, before, {}, time.time())
        if not told:
            continue
        about = About(run=run, job=config.job.name, model=config.model.name, sink_uri=sink_uri)
        outbox = Outbox(opened(config.alerts.channels), say=_say)
        for one in told:
            outbox.post(message(one, about), one.to)
        for alert in changes(before, now):
            alert_files.keep(sink_uri, run, alert)
        lines += outbox.close()
        for one in told:
            _say(f"{one.rule} of run {run}: {one.kind}, to {', '.join(one.to)}")
        due += told
    for line in lines:
        _say(line)
    if not due:
        _say("nobody is due to be told of anything")
    return Exit.FAILED if lines else Exit.DONE


def _test(asked: AlertsAsked, name: str) -> Exit:
    config = _config(asked)
    if name not in config.channels:
        known = ", ".join(config.channels) or "none"
        raise UserError(f"test={name}: there is no such channel{nearest(name, config.channels)}; there are: {known}")
    (channel,) = opened({name: config.channels[name]}).values()
    words = (
        f"A test of channel {name}, sent by python -m pipelines.alerts. Nothing is wrong, and nothing is to be done."
    )
    reason = channel.send(Message(title=f"[info] test of channel {name}", body=words, tone="info"))
    _say(f"channel {name}: {'delivered' if reason is None else f'not delivered ({reason})'}")
    return Exit.DONE if reason is None else Exit.FAILED


def _config(asked: AlertsAsked) -> AlertsConfig:
    if asked.alerts is not None:
        folder = [] if asked.config_dir is None else ["--config-dir", asked.config_dir]
        (config,) = compose(["+job=classify", f"alerts={asked.alerts}", *folder])
        return config.alerts
    if asked.sink.uri is None:
        raise UserError(
            f"test={asked.test}: say alerts=NAME, the option of conf/alerts with that channel, or sink.uri=…"
        )
    sink_uri = storage.absolute(asked.sink.uri)
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    runs = [stored.path.split("/")[0] for stored in listed if stored.path.endswith("/config.yaml")]
    if not runs:
        raise UserError(f"sink.uri={asked.sink.uri}: no run left its config there; say alerts=NAME")
    return _recorded(sink_uri, max(runs)).alerts


def _recorded(sink_uri: str, run: str) -> RunConfig:
    uri = storage.join(sink_uri, "runs", run, "config.yaml")
    try:
        return recorded(storage.get(uri).decode(), storage.shown(uri))
    except FileNotFoundError:
        raise UserError(f"{storage.shown(uri)} is not there: the run left no config") from None


def _show(sink_uri: str, found: Sequence[tuple[str, Alert]]) -> None:
    raised = [(run, alert) for run, alert in found if alert.raised_at is not None]
    over = [(run, alert) for run, alert in reversed(found) if alert.raised_at is None and alert.resolved_at is not None]
    title = Text(f"alerts of {printable(sink_uri)}: {len(raised)} raised, {len(over)} resolved")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("rule", "state", "since", "told", "value", "run"):
        table.add_column(name, overflow="fold", no_wrap=name in ("since", "run"))
    for run, alert in [*raised, *over[:MOST_RESOLVED]]:
        state, since = _state(alert)
        told = f"{alert.steps_told} step{'s' * (alert.steps_told != 1)}" if alert.raised_at is not None else ""
        cells = (alert.rule, state, _clock(since), told, alert.value or "", run)
        table.add_row(*(Text(printable(cell)) for cell in cells), style="bold red" if state == "raised" else None)
    Console(highlight=False).print(table if found else title)


def _state(alert: Alert) -> tuple[str, float | None]:
    if alert.raised_at is None:
        return "resolved", alert.resolved_at
    return (f"acknowledged by {alert.acknowledged_by}" if alert.acknowledged_by else "raised"), alert.raised_at


def _clock(epoch_s: float | None) -> str:
    return "" if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%MZ")


def _say(text: str) -> None:
    print(printable(text), flush=True)  # noqa: T201


def words(argv: Sequence[str]) -> list[str]:
    """The command line, with --config-dir DIR, as the other commands have it, for the key config_dir."""
    found = list(argv)
    for flag in ("--config-dir", "-cd"):
        if flag in found[:-1]:
            at = found.index(flag)
            found[at : at + 2] = [f"config_dir='{found[at + 1]}'"]
    return [word.replace("--config-dir=", "config_dir=", 1) for word in found]


if __name__ == "__main__":
    command_of_few_keys(alerts, AlertsAsked, doc=__doc__ or "", keys=KEYS, exits=EXITS, argv=words(sys.argv[1:]))
