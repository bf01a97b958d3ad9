"""MLflow: a real SQLite store, real files, and servers that are dead in two ways."""

import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from actors.gpu_monitor import GpuSample, GpuUsage
from pipelines.accounts.delivery import REMOTE_CLOSE_S, Tracked
from pipelines.accounts.tracking import flat, track
from pipelines.config import Exit, RunConfig
from tests.accounts_samples import run_config, summary

SECRET = 'planted-"secret"-4711'


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return run_config(tmp_path)


def tracking_to(config: RunConfig, uri: str, every_s: float = 0.0001) -> RunConfig:
    return replace(config, tracking=replace(config.tracking, uri=uri, every_s=every_s))


def run(config: RunConfig, run_id: str = "run-1", **changes: Any) -> Tracked:
    """A run of no time that tells MLflow all that a run tells."""
    end = summary(**changes)
    parts = {"template": "t1", "model": "m1"}
    with track(config, run_id=run_id, fingerprint="f00d", parts=parts, config_yaml="job: classify\n") as tracker:
        tracker.see(end.totals, rows_in_flight=7, usd=Decimal("0.01"), gpus=end.gpus)
        tracker.finish(end)
    assert tracker.tracked is not None
    return tracker.tracked


def metrics(database: Path, run_id: str | None) -> dict[str, float]:
    with sqlite3.connect(database) as connection:
        return dict(connection.execute("select key, value from latest_metrics where run_uuid = ?", (run_id,)))


def test_a_run_is_in_sqlite_with_params_metrics_artifacts_and_its_end(config: RunConfig, tmp_path: Path) -> None:
    database = tmp_path / "out" / "mlflow.db"

    tracked = run(tracking_to(config, f"sqlite:///{database}"))

    assert tracked.not_logged == ()
    found = metrics(database, tracked.run_id)
    assert found["rows_in"] == 300
    assert found["rows_error"] == 3
    assert found["rows_in_flight"] == 7
    assert found["rows_per_s"] == 30
    assert found["tokens_per_s"] == 4100
    assert found["usd"] == 0.04
    assert found["usd_per_million_total"] == pytest.approx(0.04 / 41_000 * 1e6)
    assert found["usd_per_million_input"] == pytest.approx(0.04 / 31_000 * 30_000 / 40_000 * 1e6)
    assert found["usd_per_million_output"] == pytest.approx(0.04 / 31_000 * 1e6)
    assert found["cache_hit_share"] == 0.25
    assert found["accuracy"] == pytest.approx(198 / 297)
    assert not [name for name in found if name.startswith("gpu")]  # absent, not zero: there is no GPU
    with sqlite3.connect(database) as connection:
        params = dict(connection.execute("select key, value from params where run_uuid = ?", (tracked.run_id,)))
        tags = dict(connection.execute("select key, value from tags where run_uuid = ?", (tracked.run_id,)))
        [(status, folder)] = connection.execute(
            "select status, artifact_uri from runs where run_uuid = ?", (tracked.run_id,)
        )
    assert params["fingerprint"] == "f00d"
    assert params["fingerprint.template"] == "t1"
    assert params["model.name"] == config.model.name
    assert params["unit.rows"] == str(config.unit.rows)
    assert tags["pipelines.run_id"] == "run-1"
    assert status == "FINISHED"
    artifacts = Path(folder.removeprefix("file://"))
    assert artifacts.is_relative_to(tmp_path / "out")
    assert json.loads((artifacts / "summary.json").read_text())["bill"]["usd"] == "0.04"
    assert (artifacts / "config.yaml").read_text() == "job: classify\n"


def test_the_drivers_machine_is_in_the_system_metrics_but_for_the_first_point(
    config: RunConfig, tmp_path: Path
) -> None:
    database, end = tmp_path / "mlflow.db", summary()
    here = tracking_to(config, f"sqlite:///{database}", every_s=1e-9)

    with track(here, run_id="run-1", fingerprint="f00d", parts={}, config_yaml="job: classify\n") as tracker:
        for _ in range(3):
            tracker.see(end.totals)
        tracker.finish(end)

    assert tracker.tracked is not None
    assert tracker.tracked.not_logged == ()
    found = metrics(database, tracker.tracked.run_id)
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert 0 < found["system/system_memory_usage_percentage"] < 100
    assert found["system/disk_available_megabytes"] > 0
    assert found["system/network_receive_megabytes"] >= 0
    with sqlite3.connect(database) as connection:
        (points,) = connection.execute("select count(*) from metrics where key = 'system/disk_usage_percentage'")
    assert points == (2,)  # of three: the first has no time that it could be of


def test_gpus_are_metrics_each_and_a_second_run_has_its_own(config: RunConfig, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    gpu = GpuUsage(node="10.0.0.3", index=0, name="G", memory_total_bytes=8)
    gpus = (
        gpu.plus(GpuSample(utilization=0.5, memory_bytes=4)),
        replace(gpu, index=1).plus(GpuSample(utilization=1.0, memory_bytes=6)),
    )
    here = tracking_to(config, f"sqlite:///{database}")

    first = run(here, gpus=gpus)
    second = run(here, run_id="run-2", exit_code=Exit.STOPPED)

    found = metrics(database, first.run_id)
    assert found["gpu/10.0.0.3/0/utilization"] == 0.5
    assert found["gpu/10.0.0.3/1/memory_bytes"] == 6
    assert found["gpu_utilization"] == 0.75
    assert second.experiment_id == first.experiment_id
    with sqlite3.connect(database) as connection:
        states = dict(connection.execute("select run_uuid, status from runs"))
    assert states == {first.run_id: "FINISHED", second.run_id: "KILLED"}


def test_a_folder_is_a_store_too(config: RunConfig, tmp_path: Path) -> None:
    tracked = run(tracking_to(config, (tmp_path / "store").as_uri()))

    assert tracked.not_logged == ()
    assert list((tmp_path / "store").rglob("metrics/rows_in"))


def test_a_run_that_breaks_off_is_failed_in_mlflow_and_its_error_comes_through(
    config: RunConfig, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    with (
        pytest.raises(ZeroDivisionError),
        track(tracking_to(config, f"sqlite:///{database}"), run_id="r", fingerprint="f", parts={}, config_yaml=""),
    ):
        raise ZeroDivisionError

    with sqlite3.connect(database) as connection:
        assert connection.execute("select status from runs").fetchall() == [("FAILED",)]


def test_no_secret_is_in_any_byte_that_was_written(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    store = tmp_path / "store"
    hostile = replace(
        tracking_to(config, f"sqlite:///{store}/mlflow.db"),
        sink=replace(config.sink, uri=f"{tmp_path}/{SECRET}"),
    )
    end = summary(sink_uri=f"{tmp_path}/{SECRET}", stopped_by=f"https://user:{SECRET}@host")

    with track(hostile, run_id="r", fingerprint="f", parts={"model": SECRET}, config_yaml=f"uri: {SECRET}") as tracker:
        tracker.finish(end)

    assert tracker.tracked is not None
    assert tracker.tracked.not_logged == ()
    written = [path for path in store.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "summary.json"} <= {path.name for path in written}
    for path in written:
        data = path.read_bytes()
        assert b"planted-" not in data, path
        assert b"4711" not in data, path


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://user:pw-{SECRET[:7]}@127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["closed_port", "silent_port"])
def test_a_dead_server_delays_neither_the_run_nor_its_end_and_what_was_not_logged_is_told_once(
    server: str, config: RunConfig, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    uri: str = request.getfixturevalue(server)
    import mlflow  # noqa: F401 - its import is not what is measured

    began = time.monotonic()
    with track(tracking_to(config, uri), run_id="r", fingerprint="f", parts={}, config_yaml="") as tracker:
        for _ in range(1000):
            tracker.see(summary().totals)
        in_the_run = time.monotonic() - began
        tracker.finish(summary())
    took = time.monotonic() - began

    assert in_the_run < 10  # a call that waited for the server would take longer, and there are 1,000
    assert took < REMOTE_CLOSE_S + 10
    assert tracker.tracked is not None
    assert tracker.tracked.run_id is None
    assert {"params", "config.yaml", "summary.json", "the run's end"} <= set(tracker.tracked.not_logged)
    assert any("metric point" in what for what in tracker.tracked.not_logged)
    assert tracker.tracked.reason
    told = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("pipelines")
    ]
    assert len([line for line in told if "which goes on" in line]) == 1
    assert len([line for line in told if "not logged" in line]) == 1
    assert not any("pw-" in line for line in [*told, repr(tracker.tracked)])


def test_a_store_that_cannot_be_written_is_told_like_a_dead_server(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(os.urandom(4096))

    tracked = run(tracking_to(config, f"sqlite:///{tmp_path}/mlflow.db"))

    assert tracked.run_id is None
    assert "params" in tracked.not_logged


def test_without_a_uri_nothing_is_tracked(config: RunConfig) -> None:
    off = replace(config, tracking=replace(config.tracking, uri=None))
    with track(off, run_id="r", fingerprint="f", parts={}, config_yaml="") as tracker:
        tracker.see(summary().totals)
        tracker.finish(summary())

    assert tracker.tracked is None


def test_every_key_of_the_config_is_a_short_param_but_for_the_price_table(config: RunConfig) -> None:
    params = flat(config)

    assert params["sink.uri"] == config.sink.uri
    assert params["engine.simulated.latency_s"] == "0.0"
    assert params["tracking.every_s"] == "5.0"
    assert "pricing.name" in params
    assert not [key for key in params if key.startswith("pricing.devices")]
    assert all(len(value) <= 500 for value in params.values())
