"""A real run, seen while it works: by Prometheus over HTTP, and from beside its output on S3 by watch."""

import io
import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.accounts import live_file
from pipelines.config import Exit, UserError
from pipelines.watch import WatchConfig, WatchedSink, watch
from tests.conftest import free_ports
from tests.runs import job

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = 400
SLOW = ("engine.simulated.latency_s=0.2", "batching.max_num_seqs=16", "unit.rows=50", "source.columns=[text]")


def scraped(port: int) -> dict[str, float]:
    """The samples of a run by name, those of one name added up; none where nobody listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_a_run_at_work_is_seen_by_prometheus_and_by_watch_which_ends_with_it(s3_bucket: str, tmp_path: Path) -> None:
    sink, (port,) = f"{s3_bucket}/out", free_ports(1)
    (tmp_path / "in").mkdir()
    texts = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(ROWS))
    (tmp_path / "in" / "a.jsonl").write_text(texts)
    over, at_work, shown, codes = threading.Event(), dict[str, float](), io.StringIO(), list[Exit]()

    def scrape() -> None:
        while not over.wait(0.1) and not at_work:
            now = scraped(port)
            if now.get("pipelines_engine_rows_running") and now.get("pipelines_rows_per_second"):
                at_work.update(now)

    def look_on() -> None:
        while not live_file.runs(sink):
            if over.wait(0.1):
                return
        codes.append(watch(WatchConfig(sink=WatchedSink(uri=sink)), out=shown, look_s=0.2, line_s=0.0))

    lookers = [threading.Thread(target=each) for each in (scrape, look_on)]
    for each in lookers:
        each.start()
    code = job(*SLOW, f"metrics.port={port}", "budget.usd=5", source=tmp_path / "in", sink=sink)
    over.set()
    for each in lookers:
        each.join(30)
    lines = shown.getvalue().splitlines()
    (run,) = live_file.runs(sink)
    last = live_file.read(sink, run)

    assert code is Exit.DONE
    assert at_work["pipelines_rows_expected"] == ROWS
    assert 0 < at_work["pipelines_engine_rows_running"] <= 16
    assert 0 < at_work["pipelines_rows_done"] <= ROWS
    assert at_work["pipelines_budget_usd"] == 5
    assert 0 < at_work["pipelines_budget_spent_usd"] == at_work["pipelines_cost_usd"]
    assert at_work["pipelines_device_seconds"] > 0
    assert scraped(port) == {}  # nobody listens any more
    assert codes == [Exit.DONE]
    assert any(f"{run} running" in line and f"/{ROWS:,} rows" in line and "in flight" in line for line in lines)
    assert lines[-1].startswith(f"{run} ended (exit 0), 9 units, {ROWS:,}/{ROWS:,} rows")
    assert last is not None
    assert (last.rows_ok, last.exit_code, last.rows_done) == (ROWS, 0, ROWS)
    assert last.usd is not None
    assert last.usd > 0
    assert ROWS / 4 < sum(last.rows_history) * last.history_s < 1.05 * ROWS  # the newest rows are in no step


def test_a_metrics_port_that_is_taken_keeps_a_run_from_starting(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("row\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"metrics\.port={port}"):
            job(f"metrics.port={port}", source=tmp_path / "in", sink=tmp_path / "out")

    assert not (tmp_path / "out").exists()
