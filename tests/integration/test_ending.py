"""What a run leaves beside its output when it does not come to its end: figures, a report, and the reason."""

import json
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.accounts import live_file
from pipelines.accounts.starvation import Starvation
from pipelines.config import Exit, RunFailed
from tests.runs import data, job, ledger, write_texts
from tests.unit.accounts.test_manifest import validator

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = ("unit.rows=10", "engine.units_in_flight=1", "batching.max_num_seqs=5")


def left(sink: Path) -> tuple[str, dict[str, Any], str]:
    """The run's id, its manifest, which is as its schema says, and its report."""
    (left,) = sink.glob("runs/*/manifest.json")
    folder, manifest = left.parent, json.loads(left.read_text())
    validator().validate(manifest)
    return folder.name, manifest, (folder / "report.html").read_text()


def committed(sink: Path) -> bool:
    return (sink / "ledger" / "_delta_log").exists() and bool(ledger(sink))


def assert_told_truly(sink: Path, manifest: dict[str, Any]) -> None:
    """The manifest's counts are those of the tables, its bill that of the table of costs."""
    receipts = ledger(sink)
    committed = sum(one["rows_in"] for one in receipts)
    assert committed == len(data(sink)) > 0
    assert manifest["counts"]["this_run"] == {"rows_in": committed, "rows_ok": committed, "rows_error": 0}
    assert manifest["counts"]["output"] == manifest["counts"]["this_run"]
    assert sum(one["rows_in"] for one in manifest["inputs"]) == committed
    assert sum(one["rows"] for one in manifest["files"]) == committed
    billed = pl.read_delta(f"{sink}/costs").to_dicts()
    assert Decimal(manifest["summary"]["bill"]["usd"]) == pytest.approx(sum(one["usd"] for one in billed))


def test_a_run_that_fails_midway_leaves_its_counts_its_bill_its_reason_and_a_report(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(200)]])
    sink = tmp_path / "out"
    with pytest.raises(RunFailed) as failed:
        job(
            *(*SMALL, "engine.simulated.die_every_rows=60", "engine.max_restarts=1"),
            *("engine.simulated.latency_s=0.02",),
            source=tmp_path / "in",
            sink=sink,
        )

    run, manifest, page = left(sink)
    last = live_file.read(str(sink), run)
    assert (manifest["state"], manifest["exit_code"]) == ("failed", 1)
    assert manifest["error"] == f"RunFailed: {failed.value}"
    assert manifest["summary"]["error"] == manifest["error"]
    assert 0 < manifest["counts"]["this_run"]["rows_in"] < 200
    assert_told_truly(sink, manifest)
    assert ">Failed<" in page
    assert "died" in page
    assert last is not None
    assert (last.state, last.exit_code, last.rows_ok) == ("failed", 1, len(data(sink)))

    assert job("unit.rows=10", source=tmp_path / "in", sink=sink) is Exit.DONE
    assert len(data(sink)) == 200


def test_a_run_that_a_bug_ends_leaves_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(200)]])
    sink, came = tmp_path / "out", 0

    def see(self: Starvation, hosts: object, *, received: int) -> None:
        nonlocal came
        came += received
        if came >= 3:
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Starvation, "see", see)
    with pytest.raises(ZeroDivisionError):
        job(*SMALL, "engine.simulated.latency_s=0.05", source=tmp_path / "in", sink=sink)

    _, manifest, page = left(sink)
    assert (manifest["state"], manifest["exit_code"]) == ("failed", 1)
    assert manifest["error"] == "ZeroDivisionError: a bug"
    assert_told_truly(sink, manifest)
    assert "Failed" in page


def test_a_run_whose_grace_ends_is_stopped_and_not_failed_wherever_it_is_told(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(60)]])
    sink = tmp_path / "out"
    words = ["+job=classify", "engine=simulated", "tracking=none", *SMALL, "grace_s=0.2"]
    words += ["engine.simulated.latency_s=0.4"]
    words += [f"source.uri={tmp_path / 'in'}", f"sink.uri={sink}"]
    # One row at a time: when the signal comes, a unit is in the engine that takes longer than the grace.
    words += ["batching.max_num_seqs=1"]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *words], stderr=subprocess.PIPE, text=True, env=alone
    )
    while process.poll() is None and not committed(sink):
        threading.Event().wait(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)

    assert process.returncode == Exit.STOPPED, said
    run, manifest, page = left(sink)
    last = live_file.read(str(sink), run)
    assert (manifest["state"], manifest["exit_code"], manifest["error"]) == ("ended", 4, None)
    assert manifest["summary"]["stopped_by"].startswith("SIGTERM")
    assert_told_truly(sink, manifest)
    assert "Stopped" in page
    assert "Failed" not in page
    assert last is not None
    assert (last.state, last.exit_code) == ("ended", 4)
