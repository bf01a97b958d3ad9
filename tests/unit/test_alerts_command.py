"""Alerts from a run's first figure to the command that acknowledges them; nothing of a URL or a row is ever seen."""

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

from actors.host_stats import HostStats
from pipelines import storage
from pipelines.accounts import alert_files
from pipelines.accounts.alert_figures import Figures
from pipelines.accounts.alert_rules import Alert
from pipelines.accounts.alerts import Alerts, watching
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.summary import Totals
from pipelines.accounts.tracking import flat
from pipelines.alerts import AlertsAsked, AlertsSink, alerts, words
from pipelines.cli import to_yaml
from pipelines.compose import compose, recorded
from pipelines.config import Exit, RunConfig, RunFailed, UserError
from pipelines.redact import redacted
from pipelines.sink import alive
from tests.alert_servers import Web, web_server

SECRET = "Sentinel-4711"
ROW = "a row's own words"


@pytest.fixture(scope="module")
def _web() -> Iterator[Web]:
    with web_server() as web:
        yield web


@pytest.fixture
def web(_web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    _web.rest()
    monkeypatch.setenv("PIPELINES_ALERT_ONCALL", _web.url(f"oncall/{SECRET}"))
    monkeypatch.setenv("PIPELINES_ALERT_LEAD", _web.url(f"lead/{SECRET}"))
    return _web


def configured(sink: str, *words: str) -> RunConfig:
    (config,) = compose(["+job=classify", "alerts=default", "alerts.check_s=0.02", f"sink.uri={sink}", *words])
    return config


def tell(watched: Alerts, *, errors: int = 0) -> None:
    """A look at the run: 10 rows are done, so many of them errors."""
    totals = Totals(rows_in=10, rows_ok=10 - errors, rows_error=errors)
    watched.see(totals, [HostStats(replica="r", phase="serving", time=1.0)], usd=Decimal(1), usd_per_s=Decimal(0))


def failed_run(sink: str, run: str, *words: str) -> None:
    """A run that ends by an error, whose words hold a row's."""
    config = configured(sink, *words)
    storage.put(storage.join(sink, "runs", run, "config.yaml"), to_yaml(config).encode())
    with pytest.raises(RunFailed), watching(config, run_id=run, say=lambda text: None) as watched:
        watched.begin(sink, Allowance(grace_s=0), devices_each=1)
        raise RunFailed(ROW)


def left(sink: str, run: str, rule: str) -> Alert:
    (alert,) = [alert for of, alert in alert_files.kept(sink) if (of, alert.rule) == (run, rule)]
    return alert


def test_an_alert_is_raised_escalated_and_resolved_while_its_run_goes_on(web: Web, tmp_path: Path) -> None:
    path = "alerts.path=[{to: [oncall], after_s: 0}, {to: [lead], after_s: 0.05}]"
    config = configured(str(tmp_path), path, "alerts.rules.error_rate.for_s=0")

    with watching(config, run_id="r1", say=lambda text: None) as watched:
        watched.begin(str(tmp_path), Allowance(grace_s=0), devices_each=1)
        tell(watched, errors=5)
        raised, escalated = web.next(), web.next()
        tell(watched)
        resolved = [web.next(), web.next()]

    assert raised["title"] == "[warning] classify: error_rate"
    assert "error_rate is 0.5; alarming is > 0.05" in raised["message"]
    assert (raised["path"], escalated["path"]) == (f"/oncall/{SECRET}", f"/lead/{SECRET}")
    assert escalated["title"] == "[warning] nobody answered: classify: error_rate"
    assert {one["path"] for one in resolved} == {raised["path"], escalated["path"]}
    assert {one["title"] for one in resolved} == {"[warning] resolved: classify: error_rate"}
    assert web.rest() == []
    assert left(str(tmp_path), "r1", "error_rate").resolved_at is not None


def test_who_acknowledges_an_alert_of_a_run_at_work_is_heard_by_it(web: Web, store: str) -> None:
    config = configured(store, "alerts.rules.error_rate.for_s=0")
    storage.put(storage.join(store, "runs", "r1", "config.yaml"), b"")
    said: list[str] = []

    with watching(config, run_id="r1", say=said.append) as watched:
        watched.begin(store, Allowance(grace_s=0), devices_each=1)
        tell(watched, errors=5)
        web.next()
        until = time.monotonic() + 30
        while not list(alert_files.kept(store)) and time.monotonic() < until:
            pass
        assert alerts(AlertsAsked(sink=AlertsSink(uri=store), ack="error_rate", by="Ada")) is Exit.DONE
        while not said and time.monotonic() < until:
            pass

    assert said == ["alerts: error_rate is acknowledged by Ada"]


def test_a_run_that_fails_says_so_once_and_the_next_ones_go_on_with_it(web: Web, tmp_path: Path) -> None:
    sink = str(tmp_path)

    for run in ("r1", "r2", "r3"):
        failed_run(sink, run)
    first = web.next()
    config = configured(sink)
    with watching(config, run_id="r4", say=lambda text: None) as watched:
        watched.begin(sink, Allowance(grace_s=0), devices_each=1)

    assert first["title"] == "[critical] classify: failed"
    assert ROW not in json.dumps(first)
    assert web.next()["title"] == "[critical] resolved: classify: failed"
    assert web.rest() == []
    assert left(sink, "r1", "failed").carried_to == "r2"
    assert left(sink, "r4", "failed").raised_at is None


def early(sink: str, run: str, error: Exception) -> None:
    """A run that ends before it has an output."""
    config = configured(sink)
    with (
        pytest.raises(type(error)),
        watching(config, run_id=run, say=lambda text: None, config_yaml=to_yaml(config)),
    ):
        raise error


def test_a_run_that_fails_before_it_has_its_output_says_so_once_and_its_alert_is_kept(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = str(tmp_path / "out")
    for run in ("r1", "r2"):
        early(sink, run, RunFailed("Ray did not start"))
    first = web.next()
    assert first["title"] == "[critical] classify: failed"
    assert web.rest() == []
    assert left(sink, "r1", "failed").carried_to == "r2"
    assert left(sink, "r2", "failed").raised_at is not None

    after = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: after)
    assert alerts(AlertsAsked(sink=AlertsSink(uri=sink), escalate=True)) is Exit.DONE
    assert web.next()["path"] == f"/lead/{SECRET}"


def test_a_run_that_is_refused_or_fails_early_leaves_the_alerts_of_one_at_work_alone(web: Web, tmp_path: Path) -> None:
    sink = str(tmp_path)
    with alive.beating(sink, "r1"):
        alert_files.keep(sink, "r1", Alert(rule="failed", raised_at=1.0, steps_told=1, last_told_at=1.0))
        early(sink, "r2", UserError("a run is at work there"))
        early(sink, "r3", RunFailed("Ray did not start"))

        assert left(sink, "r1", "failed").carried_to is None
        assert [run for run, _ in alert_files.kept(sink)] == ["r1", "r3"]


def test_a_failed_run_s_alert_is_listed_acknowledged_and_then_escalates_no_further(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = AlertsSink(uri=str(tmp_path))
    path = "alerts.path=[{to: [oncall], after_s: 0}, {to: [lead], after_s: 0.001}]"
    failed_run(str(tmp_path), "r1", path)
    failed_run(str(tmp_path / "other"), "r1", path)
    assert [web.next()["path"] for _ in range(2)] == [f"/oncall/{SECRET}"] * 2

    assert alerts(AlertsAsked(sink=sink, ack="failed", by="Ada")) is Exit.DONE
    assert alerts(AlertsAsked(sink=sink, escalate=True)) is Exit.DONE
    assert web.rest() == []
    assert alerts(AlertsAsked(sink=AlertsSink(uri=str(tmp_path / "other")), escalate=True)) is Exit.DONE
    assert web.next()["path"] == f"/lead/{SECRET}"
    capsys.readouterr()
    assert alerts(AlertsAsked(sink=sink, format="json")) is Exit.DONE
    (alert,) = json.loads(capsys.readouterr().out)
    assert (alert["rule"], alert["run"], alert["acknowledged_by"]) == ("failed", "r1", "Ada")
    assert alerts(AlertsAsked(sink=sink)) is Exit.DONE
    assert "acknowledged by Ada" in capsys.readouterr().out


def test_a_test_message_goes_through_the_channel_that_is_named(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert alerts(AlertsAsked(test="lead", alerts="default")) is Exit.DONE

    assert web.next()["path"] == f"/lead/{SECRET}"
    assert capsys.readouterr().out == "channel lead: delivered\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"sink\.uri is missing"),
        ({"test": "leed", "alerts": "default"}, r"test=leed: there is no such channel, the nearest is lead"),
        ({"test": "lead"}, r"say alerts=NAME"),
        ({"test": "lead", "alerts": "nosuch"}, r"there is no alerts=nosuch"),
        ({"ack": "failed", "by": "Ada"}, r"no run has left anything there"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    sink = AlertsSink(uri=str(tmp_path)) if "ack" in asked else AlertsSink()

    with pytest.raises(UserError, match=said):
        alerts(AlertsAsked(sink=sink, **asked))


def test_an_acknowledgement_needs_a_name_and_an_alert_that_is_raised(web: Web, tmp_path: Path) -> None:
    sink = AlertsSink(uri=str(tmp_path))
    failed_run(str(tmp_path), "r1")

    with pytest.raises(UserError, match="say who sees to it"):
        alerts(AlertsAsked(sink=sink, ack="failed"))
    with pytest.raises(UserError, match=r"no such alert is raised, the nearest is failed; raised: failed"):
        alerts(AlertsAsked(sink=sink, ack="faild", by="Ada"))


def test_the_folder_of_configs_is_given_as_to_other_commands() -> None:
    assert words(["test=x", "--config-dir", "my conf"]) == ["test=x", "config_dir='my conf'"]


def test_nothing_that_a_run_leaves_or_logs_holds_a_channel_s_url(web: Web, tmp_path: Path) -> None:
    failed_run(str(tmp_path), "r1")
    web.next()
    config = configured(str(tmp_path))

    files = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 2  # the config and one alert
    for text in (*files, to_yaml(config), json.dumps(flat(config)), redacted(f"x {web.url(f'lead/{SECRET}')} y")):
        assert SECRET not in text


def test_the_config_of_a_run_with_alerts_is_read_back_as_it_was() -> None:
    config = configured("out/x", "alerts.rules.stalled=null")

    assert recorded(to_yaml(config), "config.yaml") == config


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"alerts.channels.oncall=slack://{SECRET}", r"alerts\.channels\.oncall is no name of an environment variable"),
        ("alerts.channels.oncall=HF_TOKEN", r"is no name of an environment variable"),
        ("alerts.rules.failed.metric='evil()'", r"metric=evil\(\) is not one of usd_per_million_tokens"),
        ("alerts.rules.failed.path=[{to: [nobody]}]", r"tells nobody, which is no channel; .*: oncall, lead"),
        ("alerts.path=[]", r"tells nobody: give it a path"),
        ("alerts.path=[{to: [lead], after_s: 5}]", r"the first must come after 0 s"),
        ("alerts.rules.failed.comparison='__import__'", r"is not one of above, at_least"),
    ],
)
def test_a_config_of_alerts_that_would_not_do_is_refused_and_its_urls_are_not_shown(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        configured("out/x", word)

    assert SECRET not in str(refused.value)


def test_figures_say_since_when_no_row_has_ended_and_how_often_engines_were_started_again() -> None:
    figures = Figures()

    def look(now: float, *hosts: HostStats) -> dict[str, Any]:
        money: dict[str, Any] = {"usd": Decimal(3), "usd_per_s": Decimal("0.01"), "budget_share": None}
        figures.see(Totals(), hosts, **money, devices_each=1, gpus=(), now=now)
        return dict(figures.at(now))

    assert "seconds_since_row" not in look(0, HostStats(replica="a", phase="starting", time=0))
    assert look(10, HostStats(replica="a", phase="serving", time=10))["seconds_since_row"] == 0
    assert look(30, HostStats(replica="a", phase="serving", time=30))["seconds_since_row"] == 20
    assert look(40, HostStats(replica="a", phase="serving", time=40, rows_ended=1))["seconds_since_row"] == 0
    figures.see(Totals(), [HostStats(replica="a", phase="serving", time=50, rows_ended=1, restarts=2)], usd=Decimal(3),
                usd_per_s=Decimal("0.01"), budget_share=None, devices_each=1, gpus=(), now=50)  # fmt: skip
    seen = look(70, HostStats(replica="b", phase="serving", time=70))
    assert (seen["restarts"], seen["seconds_since_row"]) == (3, 30)
    assert (seen["usd_per_hour"], seen["error_rate"], seen["gpu_utilization"]) == (36, None, None)
    figures.rest()
    assert figures.at(1000).keys() & {"seconds_since_row", "restarts", "usd_per_hour"} == set()


def test_figures_say_for_how_long_no_engine_serves_from_the_first_moment_on() -> None:
    figures = Figures()

    def see(now: float, *phases: Literal["starting", "serving", "rebuilding", "lost"]) -> object:
        hosts = [HostStats(replica=f"r{place}", phase=phase, time=now) for place, phase in enumerate(phases)]
        figures.see(
            Totals(),
            hosts,
            usd=Decimal(0),
            usd_per_s=Decimal(0),
            budget_share=None,
            devices_each=1,
            gpus=(),
            now=now,
        )
        return figures.at(now).get("seconds_without_engine")

    figures.begin(100.0)
    assert figures.at(160.0) == {"seconds_without_engine": 60.0}
    assert see(400.0) == 300.0  # no host at all: it waits for a node
    assert see(700.0, "starting") == 600.0
    assert see(710.0, "starting", "serving") is None
    assert see(720.0, "rebuilding", "lost") == 0.0  # all are gone
    assert see(900.0, "rebuilding") == 180.0
    figures.rest()
    assert "seconds_without_engine" not in figures.at(1000.0)


def test_figures_say_how_busy_engines_and_how_fast_rows_were_in_the_last_minute() -> None:
    figures = Figures()
    for second in range(0, 121, 10):
        busy = max(0, second - 60) * 0.5 * 2  # idle for a minute, then half of the time, with two devices
        figures.see(
            Totals(rows_in=second * 3),
            [HostStats(replica="a", phase="serving", time=second, device_seconds=busy)],
            usd=Decimal(0), usd_per_s=Decimal(0), budget_share=None, devices_each=2, gpus=(), now=second,
        )  # fmt: skip

    seen = figures.at(120)
    assert seen["busy_share"] == pytest.approx(0.5)
    assert seen["rows_per_s"] == pytest.approx(3)
