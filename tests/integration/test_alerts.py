"""Alerts of whole runs over real Ray, through a real web server, and through one that is not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.accounts import alert_files
from pipelines.accounts.alert_rules import Alert
from pipelines.config import Exit, RunFailed
from tests.alert_servers import Web, web_server
from tests.conftest import free_ports
from tests.runs import data, job, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")

SLOW = ("engine.simulated.start_s=2", "engine.simulated.latency_s=0.2", "batching.max_num_seqs=8", "unit.rows=20")
# What a run of some seconds can be alarming by; the rest is alerts=default.
QUICK = (
    "alerts=default", "alerts.check_s=0.1", "alerts.rules.no_engine.threshold=0.5", "alerts.rules.burn_rate.for_s=0",
    "alerts.rules.burn_rate.threshold=0.001",
)  # fmt: skip


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with web_server() as served:
        monkeypatch.setenv("PIPELINES_ALERT_ONCALL", served.url("oncall"))
        monkeypatch.setenv("PIPELINES_ALERT_LEAD", served.url("lead"))
        yield served


def kept(sink: Path) -> dict[str, Alert]:
    return {alert.rule: alert for _, alert in alert_files.kept(str(sink))}


def test_a_run_raises_tells_and_resolves_its_alerts_and_the_files_say_the_same(web: Web, tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(60)]])

    assert job(*SLOW, *QUICK, source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE

    told = web.rest()
    titles = [message["title"] for message in told]
    assert {message["path"] for message in told} == {"/oncall"}  # nobody had to be told next
    assert sorted(titles) == sorted(
        [
            "[critical] classify: no_engine",
            "[critical] resolved: classify: no_engine",
            "[warning] classify: burn_rate",
            "[warning] resolved: classify: burn_rate",
        ]
    )
    assert titles.index("[critical] classify: no_engine") < titles.index("[critical] resolved: classify: no_engine")
    assert titles.index("[warning] classify: burn_rate") < titles.index("[warning] resolved: classify: burn_rate")
    assert "seconds_without_engine is " in next(one["message"] for one in told if "no_engine" in one["title"])
    left = kept(tmp_path / "out")
    assert {rule for rule, alert in left.items() if alert.resolved_at} == {"no_engine", "burn_rate"}
    assert [rule for rule, alert in left.items() if alert.raised_at] == []


def test_a_run_that_fails_tells_it_and_the_run_that_goes_on_with_its_work_resolves_it(web: Web, tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(60)]])
    place = {"source": tmp_path / "in", "sink": tmp_path / "out"}

    with pytest.raises(RunFailed):
        job("alerts=default", "engine.simulated.die_every_rows=5", "engine.max_restarts=1", **place)
    assert [message["title"] for message in web.rest()] == ["[critical] classify: failed"]
    assert job("alerts=default", **place) is Exit.DONE

    assert [message["title"] for message in web.rest()] == ["[critical] resolved: classify: failed"]


def test_a_channel_that_is_dead_keeps_no_run_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    for name in ("ONCALL", "LEAD"):
        monkeypatch.setenv(f"PIPELINES_ALERT_{name}", f"json://127.0.0.1:{port}/nobody")
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(60)]])

    assert job(*SLOW, *QUICK, source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE

    assert len(data(tmp_path / "out")) == 60
    assert kept(tmp_path / "out")["burn_rate"].resolved_at is not None
    said = capfd.readouterr().err
    assert "not delivered" in said
    assert "oncall" in said
    assert f"{port}" not in said
