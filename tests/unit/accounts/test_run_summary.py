"""The small file that each run leaves, and what reads many of them."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines import patience, storage
from pipelines.accounts import alert_files, report, run_summary
from pipelines.accounts.alert_rules import Alert
from pipelines.accounts.report_data import RUNS_SHOWN, Beside
from pipelines.accounts.run_summary import RunSummary
from pipelines.config import Exit
from pipelines.gathered import AT_ONCE, gathered
from tests.conftest import free_ports
from tests.report_outputs import ended, opened, two_units

ROOT = Path(__file__).resolve().parents[3]
RUN = "20261101T000000Z-aaaaaa"
SECRET = 'planted-"secret"-4711'
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def told(sink: Path, run: str = RUN) -> dict[str, Any]:
    """The file as it lies there; it is what the published schema says."""
    found: dict[str, Any] = json.loads((sink / "runs" / run / run_summary.FILE).read_text())
    schema = json.loads((ROOT / "docs" / "run-summary.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def of(run: str, job: str = "classify", **changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "run_id": run,
        "job": job,
        "model": "smollm2",
        "fingerprint": "0" * 64,
        "state": "ended",
        "exit_code": 0,
        "started_at": "2026-11-01T00:00:00.000+00:00",
        "rows_in": 100,
        "rows_ok": 99,
        "rows_error": 1,
        "prompt_tokens": 900,
        "output_tokens": 100,
    }
    return RunSummary(**(values | changes))


def test_a_run_leaves_its_counts_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    sink = tmp_path / "sink"
    error = f"RunFailed: {SECRET} {'x' * 1000}"
    ended(sink, opened(sink), RUN, two_units(sink, RUN), exit_code=Exit.FAILED, error=error)

    found = told(sink)

    assert (found["state"], found["exit_code"], found["job"], found["model"]) == ("failed", 1, "classify", "smollm2")
    assert (found["rows_in"], found["rows_ok"], found["rows_error"]) == (200, 196, 4)
    assert (found["prompt_tokens"], found["output_tokens"], found["gold_correct"]) == (40_000, 1_000, 147)
    assert found["error"].startswith("RunFailed: ")
    assert "4711" not in json.dumps(found)


def test_a_run_that_is_killed_has_left_that_it_was_there(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    ended(sink, opened(sink), RUN, two_units(sink, RUN), parts=None, finish=False)

    found = told(sink)

    assert (found["state"], found["exit_code"], found["rows_in"]) == ("running", None, None)


def test_a_trend_over_200_runs_reads_their_summaries_and_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = tmp_path / "sink"
    newest = "20261102T000000Z-zzzzzz"
    names = [f"20261101T{number:06d}Z-aaaaaa" for number in range(200)]
    for number, name in enumerate(names):
        run_summary.keep(str(sink), of(name, "other" if number % 4 == 3 else "classify", rows_in=100 + number))
        (sink / "runs" / name / "manifest.json").write_text("{ a manifest that nobody should read")
    ended(sink, opened(sink), newest, two_units(sink, newest))
    read: list[str] = []
    get = storage.get

    def counted(uri: str) -> bytes:
        read.append(uri)
        return get(uri)

    monkeypatch.setattr(storage, "get", counted)
    lines = Beside.of(str(sink)).trend(newest)

    assert len(lines) == RUNS_SHOWN
    assert [line.run_id for line in lines] == [*[name for name in names if int(name[9:15]) % 4 != 3][-49:], newest]
    assert {line.job for line in lines} == {"classify"}
    assert (lines[-2].rows_in, lines[-2].error_rate) == (298, Decimal(1) / 298)
    assert {Path(uri).name for uri in read} == {run_summary.FILE}
    assert len(read) <= 2 * RUNS_SHOWN + 1
    assert "The last 50 runs of this job" in report.made(str(sink), newest, now=NOW)


def test_runs_from_before_there_were_summaries_are_told_by_their_manifests(tmp_path: Path) -> None:
    sink, later = tmp_path / "sink", "20261102T000000Z-bbbbbb"
    ended(sink, opened(sink), RUN, two_units(sink, RUN))
    told_then = Beside.of(str(sink)).trend(RUN)
    (sink / "runs" / RUN / run_summary.FILE).unlink()
    ended(sink, opened(sink), later, [])

    lines = Beside.of(str(sink)).trend(later)

    assert lines[0] == told_then[0]
    assert [line.run_id for line in lines] == [RUN, later]


def test_a_summary_that_is_not_understood_is_left_out_and_the_others_are_told(tmp_path: Path) -> None:
    for run in ("r1", "r2", "r3"):
        run_summary.keep(str(tmp_path), of(run))
    run_summary.keep(str(tmp_path), replace(of("r4"), run_id="r9"))
    (tmp_path / "runs" / "r2" / run_summary.FILE).write_text('{"version": 2}')
    (tmp_path / "runs" / "r9").rename(tmp_path / "runs" / "r4")

    found = run_summary.of_runs(str(tmp_path), [(run, True) for run in ("r1", "r2", "r3", "r4", "r5")])

    assert [one.run_id for one in found] == ["r1", "r3"]


def test_many_files_come_in_order_and_one_that_is_gone_is_none(store: str) -> None:
    uris = [storage.join(store, f"{number}.txt") for number in range(3 * AT_ONCE + 1)]
    for number, uri in enumerate(uris):
        if number != 5:
            storage.put(uri, str(number).encode())

    found = list(gathered(uris))

    assert found == [None if number == 5 else str(number).encode() for number in range(len(uris))]


def test_threads_have_no_more_patience_than_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    began = time.monotonic()

    with pytest.raises(storage.StoreFailed), patience.at_most(0.5):
        list(gathered(["s3://bucket/a", "s3://bucket/b"]))

    assert time.monotonic() - began < 60  # not the 180 s of a run


def test_alerts_of_many_runs_are_told_in_their_order_as_acknowledged(store: str) -> None:
    for number in range(2 * AT_ONCE):
        alert_files.keep(store, f"r{number:03d}", Alert(rule="failed", raised_at=float(number + 1)))
    alert_files.acknowledge(store, "r007", Alert(rule="failed", raised_at=8.0), by="Ada", at=9.0)
    alert_files.acknowledge(store, "r008", Alert(rule="failed", raised_at=1.0), by="Ada", at=9.0)  # of another raising

    found = alert_files.kept(store)

    assert [run for run, _ in found] == [f"r{number:03d}" for number in range(2 * AT_ONCE)]
    assert [run for run, alert in found if alert.acknowledged_by] == ["r007"]


def test_what_a_run_was_asked_and_took_is_there_for_plans_and_refusals(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    ended(sink, opened(sink), RUN, two_units(sink, RUN))
    manifest = json.loads((sink / "runs" / RUN / "manifest.json").read_text())

    found = told(sink)

    assert found["fingerprint_parts"] == manifest["fingerprint_parts"] != {}
    assert found["engine"] == manifest["engine"]["kind"]
    assert found["billed_device_s"] == float(manifest["summary"]["bill"]["device_seconds"]) > 0
    assert found["device_seconds"] == float(manifest["summary"]["this_run"]["device_seconds"])
    assert found["steady_s"] == manifest["summary"]["steady_s"]


def test_the_newest_runs_come_first_and_no_more_are_read_than_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"20261101T{number:06d}Z-aaaaaa" for number in range(3 * AT_ONCE)]
    for name in names:
        run_summary.keep(str(tmp_path), of(name))
        (tmp_path / "runs" / name / "manifest.json").write_text("{ a manifest that nobody should read")
    read: list[str] = []
    get = storage.get

    def counted(uri: str) -> bytes:
        read.append(uri)
        return get(uri)

    monkeypatch.setattr(storage, "get", counted)

    assert next(run_summary.newest(str(tmp_path))).run_id == names[-1]
    assert len(read) == AT_ONCE
    assert [one.run_id for one in run_summary.newest(str(tmp_path), 2)] == [names[-1], names[-2]]
    assert list(run_summary.newest(str(tmp_path / "nothing"))) == []
