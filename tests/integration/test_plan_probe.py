"""Plans that start an engine to see how fast it is: a real Ray, real files, the simulated engine and the real one."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import command_with_keys
from pipelines.config import Exit
from pipelines.plan import EXITS, KEYS, plan
from pipelines.planner import PlanKeys
from tests.runs import LABELS, job, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")

LATENCY_S, AT_ONCE = 0.5, 8
SLOWER = 5  # than the engine's latency tells, on a busy machine
SLOW = (
    f"engine.simulated.latency_s={LATENCY_S}",
    f"batching.max_num_seqs={AT_ONCE}",
    "batching.lookahead=0",
    "unit.rows=32",
)


def planned(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The command's JSON document."""
    with pytest.raises(SystemExit) as ended:
        command_with_keys(plan, PlanKeys, doc="d", keys=KEYS, exits=EXITS, argv=[*words, "format=json"])
    out, err = capsys.readouterr()
    assert ended.value.code == Exit.DONE, err
    document: dict[str, Any] = json.loads(out.splitlines()[-1])  # a run of before may have told its end
    return document


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_probe_measures_an_engine_whose_speed_is_known_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(400)], ["", "text 1", *["more"] * 30]])
    starts = tmp_path / "starts"
    words = [LABELS, "engine=simulated", "tracking=none", *SLOW, f"engine.simulated.starts_file={starts}"]
    words += [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]

    before = planned(*words, capsys=capsys)
    assert before["forecast"] is None
    assert "plan.probe_s" in before["forecast_missing"]
    assert not starts.exists()  # without a probe no engine is started

    found = planned(*words, "plan.probe_s=4", capsys=capsys)

    assert len(starts.read_text().splitlines()) == 1
    assert files(tmp_path / "out") == []
    here, probe = found["forecast"], found["probe"]
    assert here["basis"] == "a probe"
    assert here["rests_on"].startswith("a probe of 4 s")
    assert here["startup_s"] == probe["startup_s"] > 0
    assert probe["steady"]
    assert 2 * AT_ONCE <= probe["all"]["rows"] < 200  # it ended in time, and not with the sample
    steady_s, rows = (sum(one[name] for one in probe["steady"]) for name in ("seconds", "rows"))
    assert rows <= AT_ONCE * (steady_s / LATENCY_S + 1)  # never faster than it can: reports come between two ends
    assert rows >= AT_ONCE * steady_s / LATENCY_S / SLOWER
    sent = found["expected"]["rows_sent"]
    assert sent == 401  # of 432: an empty one, and those that are there twice
    least = sent * LATENCY_S / AT_ONCE
    assert here["device_seconds"]["low"] < here["device_seconds"]["middle"] < here["device_seconds"]["high"]
    assert least / 2 < here["device_seconds"]["middle"] < SLOWER * least + probe["held_device_s"]
    assert found["expected"]["output_basis"].endswith("of the probe")


def test_a_probe_goes_before_what_earlier_runs_took_and_asks_the_rows_that_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    write_texts(source, [[f"text {number}" for number in range(60)]])
    job("engine.simulated.latency_s=0.001", source=source, sink=sink)
    left = {path: path.read_bytes() for path in files(sink)}
    write_texts(tmp_path / "more", [[], [f"more {number}" for number in range(60)]])
    (tmp_path / "more" / "part-1.parquet").rename(source / "part-1.parquet")
    words = (LABELS, "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}", *SLOW)

    by_runs, by_probe = planned(*words, capsys=capsys), planned(*words, "plan.probe_s=60", capsys=capsys)

    assert by_runs["forecast"]["basis"] == "earlier runs"
    assert by_probe["forecast"]["basis"] == "a probe"
    assert by_probe["probe"]["all"]["rows"] == 60  # it ends with the sample, long before its time
    here, held_s = by_probe["forecast"]["device_seconds"], by_probe["probe"]["held_device_s"]
    assert here["middle"] == pytest.approx(held_s, rel=0.01)  # as many rows, on the same engine, started anew
    assert here["middle"] > 60 * LATENCY_S / AT_ONCE
    assert {path: path.read_bytes() for path in files(sink)} == left


def test_where_nothing_is_to_do_no_engine_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, sink, starts = tmp_path / "in", tmp_path / "out", tmp_path / "starts"
    write_texts(source, [["a", "b"]])
    job(source=source, sink=sink)
    words = (LABELS, "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}")

    found = planned(*words, "plan.probe_s=5", f"engine.simulated.starts_file={starts}", capsys=capsys)

    assert found["nothing_to_do"] is True
    assert found["probe"] is None
    assert not starts.exists()


def test_an_engine_that_answers_nothing_in_time_fails_the_plan_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(40)]])
    words = [LABELS, "engine=simulated", "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'o'}"]
    words += ["engine.simulated.latency_s=60", "plan.probe_s=1"]

    with pytest.raises(SystemExit) as ended:
        command_with_keys(plan, PlanKeys, doc="d", keys=KEYS, exits=EXITS, argv=words)

    out, err = capsys.readouterr()
    assert ended.value.code == Exit.FAILED
    assert out == ""
    assert [line for line in err.splitlines() if "plan.probe_s=1" in line and "no row" in line]
    assert "Traceback" not in err


@pytest.mark.engine
def test_a_probe_of_the_real_engine_tells_its_speed_and_how_long_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "in", [[f"The flight number {number} was late again." for number in range(200)]])
    words = (LABELS, "tracking=none", f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}")

    found = planned(*words, "batching.max_num_seqs=16", "plan.probe_s=4", capsys=capsys)

    here, probe = found["forecast"], found["probe"]
    assert here["basis"] == "a probe"
    assert probe["startup_s"] > 1
    assert probe["all"]["prompt_tokens"] > probe["all"]["cached_tokens"] > 0  # all begin alike
    assert 0 < here["device_seconds"]["low"] < here["device_seconds"]["high"] < 3600
    assert found["expected"]["cached_basis"] == "as in the probe"
