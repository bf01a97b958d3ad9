"""Alerts of a run at work: figures looked at every few seconds by a thread of its own, messages through channels.

The rules are in alert_rules.py, the figures in alert_figures.py, the files beside the output in alert_files.py, the way
to people in channels.py. Here they meet. The run never waits: it says where it stands, and at its end is kept for no
longer than CLOSE_S of channels.py and STORE_S. What an earlier run of the output left raised is gone on with.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from actors.gpu_monitor import GpuUsage
from pipelines import patience
from pipelines.accounts import alert_files
from pipelines.accounts.alert_figures import Figures, HostReport, at_the_end
from pipelines.accounts.alert_rules import Alert, Notification, Value, acknowledged, step
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.channels import Message, Outbox, Tone, opened
from pipelines.accounts.summary import Summary, Totals, printable
from pipelines.alert_config import AlertsConfig
from pipelines.config import Exit, RunConfig, RunFailed, UserError, exit_of
from pipelines.redact import redacted
from pipelines.sink import alive
from pipelines.storage import absolute, join, put, shown

logger = logging.getLogger(__name__)

STORE_S = 5.0  # for which a store that is away is waited for
_TONES: Mapping[str, Tone] = {"info": "info", "warning": "warning", "critical": "failure"}
_KINDS = {"raised": "", "escalated": "nobody answered: ", "repeated": "still: ", "resolved": "resolved: "}
_SIGNS = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<=", "equal": "="}


class Alerts:
    """Of one run. No call waits for anything, but for `close`."""

    def __init__(
        self,
        config: AlertsConfig,
        about: "About",
        outbox: Outbox,
        *,
        say: Callable[[str], None],
        config_yaml: str | None = None,
    ) -> None:
        self._config, self._about, self._outbox, self._say = config, about, outbox, say
        self._config_yaml = config_yaml
        self._figures = Figures()
        self._alerts: dict[str, Alert] = {}
        self._lock = threading.Lock()  # over figures and alerts; nobody waits for a store or a channel inside
        self._sink_uri: str | None = None  # None: nothing is kept yet
        self._allowance: Allowance | None = None
        self._devices_each = 1
        self._store_away = False
        self.summary: Summary | None = None  # None: the run has not come to its end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)

    def begin(self, sink_uri: str, allowance: Allowance, *, devices_each: int) -> None:
        """The output is the run's own: keep its alerts beside it, look at its figures. `devices_each`: of an engine."""
        self._sink_uri, self._allowance, self._devices_each = sink_uri, allowance, devices_each
        with self._lock:
            self._figures.begin(time.monotonic())
        if self._config.live():
            self._thread.start()

    def see(
        self,
        totals: Totals,
        hosts: Sequence[HostReport],
        *,
        usd: Decimal,
        usd_per_s: Decimal,
        gpus: Sequence[GpuUsage] = (),
    ) -> None:
        """Where the run stands; call it as often as you like."""
        limit = self._allowance.usd if self._allowance else None
        before = self._allowance.spent_before_usd if self._allowance else Decimal(0)
        with self._lock:
            self._figures.see(
                totals,
                hosts,
                usd=usd,
                usd_per_s=usd_per_s,
                budget_share=None if limit is None else (before + usd) / limit,
                devices_each=self._devices_each,
                gpus=gpus,
                now=time.monotonic(),
            )

    def rest(self) -> None:
        """The engines have nothing to do any more."""
        with self._lock:
            self._figures.rest()

    def finish(self, summary: Summary) -> None:
        """The figures of the end."""
        self.summary = summary

    def close(self, exit_code: int) -> None:
        """Look at the end of the run, send what is left, and say what could not be sent."""
        if not self._config.live():
            return
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(STORE_S)
        elif exit_code != Exit.USAGE:  # a refusal leaves an output that may be somebody else's as it is
            self._begin_late()
        with self._lock:
            self._figures.rest()
        final = at_the_end(self._figures.at(time.monotonic()), self.summary, exit_code=exit_code)
        self._look(final, final=True)
        for line in self._outbox.close():
            self._say(f"alerts: {line}")

    def _begin_late(self) -> None:
        """The run ends before it had its output: what its end raises is kept there all the same, and gone on with."""
        self._sink_uri = absolute(self._about.sink_uri)
        self._stored(self._go_on_with_dead)
        self._stored(self._keep_config)

    def _keep_config(self, sink_uri: str) -> None:
        if self._config_yaml is not None:  # the command that escalates reads whom to tell there
            uri = join(sink_uri, "runs", self._about.run, "config.yaml")
            put(uri, redacted(self._config_yaml).encode())

    def _work(self) -> None:
        self._stored(self._go_on_with_earlier)
        while not self._over.wait(self._config.check_s):
            self._stored(self._hear)
            with self._lock:
                seen = self._figures.at(time.monotonic())
            self._look(seen)

    def _look(self, seen: Mapping[str, Value], *, final: bool = False) -> None:
        with self._lock:
            before = self._alerts
            self._alerts, told = step(self._config, before, seen, time.time(), final=final)
            now = self._alerts
        for one in told:
            self._outbox.post(message(one, self._about), one.to)
        if changed := changes(before, now):
            self._stored(lambda sink_uri: self._keep(sink_uri, changed))

    def _keep(self, sink_uri: str, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            alert_files.keep(sink_uri, self._about.run, alert)

    def _hear(self, sink_uri: str) -> None:
        """Who has acknowledged what."""
        for name, alert in self._alerts.items():
            if alert.raised_at is None or alert.acknowledged_by is not None:
                continue
            said = alert_files.acknowledgement(sink_uri, self._about.run, alert)
            if said is not None:
                with self._lock:
                    self._alerts = {**self._alerts, name: acknowledged(alert, by=said.by, at=said.at)}
                alert_files.keep(sink_uri, self._about.run, self._alerts[name])
                self._say(f"alerts: {name} is acknowledged by {said.by}")

    def _go_on_with_earlier(self, sink_uri: str) -> None:
        self._go_on_with(take_over(sink_uri, self._about.run, self._config))

    def _go_on_with_dead(self, sink_uri: str) -> None:
        def over(run: str) -> bool:
            return alive.dead(sink_uri, run)

        self._go_on_with(take_over(sink_uri, self._about.run, self._config, of=over))

    def _go_on_with(self, found: Mapping[str, Alert]) -> None:
        with self._lock:
            self._alerts = {**found, **self._alerts}

    def _stored(self, do: Callable[[str], object]) -> None:
        """Something with the store, which may be away: then it is not done."""
        if self._sink_uri is None:
            return
        try:
            with patience.at_most(STORE_S):
                do(self._sink_uri)
        except (RunFailed, UserError, OSError) as error:
            if not self._store_away:
                logger.warning("alerts are not kept beside the output: %s", error)
            self._store_away = True
        else:
            self._store_away = False


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The run that a message is about."""

    run: str
    job: str
    model: str
    sink_uri: str


@contextmanager
def watching(
    config: RunConfig, *, run_id: str, say: Callable[[str], None], config_yaml: str | None = None
) -> Iterator[Alerts]:
    """The alerts of a run while inside; `say` tells the person at the terminal. `config_yaml`: the config, to be kept
    beside an alert of a run that ends before it has left its own.

    Raises:
        UserError: a channel cannot be used. Nothing has been sent.
    """
    channels = opened(config.alerts.channels) if config.alerts.live() else {}
    about = About(run=run_id, job=config.job.name, model=config.model.name, sink_uri=config.sink.uri)
    alerts = Alerts(config.alerts, about, Outbox(channels, say=say), say=say, config_yaml=config_yaml)
    try:
        yield alerts
    except BaseException as error:
        alerts.close(exit_of(error))
        raise
    alerts.close(Exit.DONE if alerts.summary is None else alerts.summary.exit_code)


def changes(before: Mapping[str, Alert], now: Mapping[str, Alert]) -> list[Alert]:
    """Those to be kept anew: what changes from look to look alone is not worth a request."""
    return [alert for name, alert in now.items() if _lasting(alert) != _lasting(before.get(name, Alert(rule=name)))]


def take_over(
    sink_uri: str, run: str, config: AlertsConfig, *, of: Callable[[str], bool] = lambda earlier: True
) -> dict[str, Alert]:
    """What earlier runs of the output have left: of each rule the newest, which is gone on with in this run.

    A message of theirs counts for `repeat_s`, so that a job that fails again and again does not tell so each time.
    `of`: which earlier runs, where one of them may be at work.
    """
    newest: dict[str, tuple[str, Alert]] = {}
    for earlier, alert in alert_files.kept(sink_uri):
        if earlier < run and alert.rule in config.live() and of(earlier):
            newest[alert.rule] = (earlier, alert)
    for earlier, alert in newest.values():
        if alert.raised_at is not None and alert.carried_to is None:
            alert_files.keep(sink_uri, run, replace(alert, carried_to=None))
            alert_files.keep(sink_uri, earlier, replace(alert, carried_to=run))
    return {rule: replace(alert, carried_to=None) for rule, (_, alert) in newest.items()}


def message(told: Notification, about: About) -> Message:
    """In words. Everything in it is from the config or counted: no text of a corpus."""
    what = f"{about.job}: {told.rule}"
    value = "not measured any more" if told.value is None else told.value
    lines = [
        f"{told.metric} is {value}; alarming is {_SIGNS[told.comparison]} {told.threshold}",
        f"job {about.job} with {about.model}, run {about.run}",
        f"output {shown(about.sink_uri)}",
        f"raised at {_clock(told.raised_at)}, step {told.step} of its path",
    ]
    if told.kind != "resolved":
        uri = shlex.quote(shown(absolute(about.sink_uri)))
        lines.append(f"to acknowledge: python -m pipelines.alerts sink.uri={uri} ack={told.rule} by=NAME")
    return Message(
        title=printable(redacted(f"[{told.severity}] {_KINDS[told.kind]}{what}")),
        body="\n".join(printable(redacted(line)) for line in lines),
        tone="success" if told.kind == "resolved" else _TONES[told.severity],
    )


def _lasting(alert: Alert) -> Alert:
    """The alert without what changes from look to look."""
    return replace(alert, value=None, holds_since=None)


def _clock(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
