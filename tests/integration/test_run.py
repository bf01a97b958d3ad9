"""Whole runs over real Ray and real tables, with the simulated engine."""

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from ray.data import DataContext

from pipelines.config import Exit, RunFailed, UserError
from tests.runs import data, errors, job, ledger, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_every_row_ends_in_exactly_one_place_and_the_counts_add_up(tmp_path: Path) -> None:
    texts: list[list[str | None]] = [
        [f"text {number}" for number in range(70)],
        ["good", None, "  ", "word " * 9000, "bad"],
        [],
    ]
    write_texts(tmp_path / "in", texts)

    exit_code = job("unit.rows=32", "max_error_rate=0.5", source=tmp_path / "in", sink=tmp_path / "out")

    assert exit_code is Exit.DONE
    answered, dead = data(tmp_path / "out"), errors(tmp_path / "out")
    places = [(row["_shard"], row["_row"]) for row in [*answered, *dead]]
    assert sorted(places) == [(f"part-{n}.parquet", row) for n, rows in enumerate(texts) for row in range(len(rows))]
    assert {(row["_row"], row["_error_type"]) for row in dead} == {(1, "empty"), (2, "empty"), (3, "too_long")}
    assert {row["label"] for row in answered} <= {"positive", "negative"}
    receipts = ledger(tmp_path / "out")
    assert sum(r["rows_in"] for r in receipts) == 75
    assert sum(r["rows_ok"] for r in receipts) == len(answered)
    assert sum(r["rows_error"] for r in receipts) == len(dead)
    assert sum(r["prompt_tokens"] for r in receipts) == sum(row["_prompt_tokens"] for row in answered)


def test_the_same_command_again_asks_nothing_and_changes_nothing(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a", "b"], ["c"]])
    job(source=tmp_path / "in", sink=tmp_path / "out")
    before = (data(tmp_path / "out"), ledger(tmp_path / "out"))

    assert job(source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE

    assert (data(tmp_path / "out"), ledger(tmp_path / "out")) == before


def test_a_new_shard_is_done_and_the_others_are_left_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a", "b"]])
    job(source=tmp_path / "in", sink=tmp_path / "out")
    first = ledger(tmp_path / "out")
    write_texts(tmp_path / "more", [["x", "y", "z"]])
    (tmp_path / "more" / "part-0.parquet").rename(tmp_path / "in" / "part-1.parquet")

    job(source=tmp_path / "in", sink=tmp_path / "out")

    assert [row["text"] for row in data(tmp_path / "out")] == ["a", "b", "x", "y", "z"]
    assert [r for r in ledger(tmp_path / "out") if r["shard"] == "part-0.parquet"] == first


def test_a_limit_that_grows_pays_for_the_new_rows_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(10)], ["last"]])
    job("source.limit=4", source=tmp_path / "in", sink=tmp_path / "out")
    assert [row["id"] for row in data(tmp_path / "out")] == [0, 1, 2, 3]

    job(source=tmp_path / "in", sink=tmp_path / "out")

    assert [row["id"] for row in data(tmp_path / "out")] == list(range(11))
    assert sum(r["rows_in"] for r in ledger(tmp_path / "out")) == 11


def test_a_changed_prompt_is_refused_with_what_changed_and_leaves_the_output_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a", "b"]])
    job(source=tmp_path / "in", sink=tmp_path / "out")
    before = data(tmp_path / "out")

    with pytest.raises(UserError, match=r"2 rows .*prompt template: .*Other: .*on_change=reprocess"):
        job('job.messages=[{role: user, content: "Other: {{ text }}"}]', source=tmp_path / "in", sink=tmp_path / "out")

    assert data(tmp_path / "out") == before


def test_reprocessing_replaces_every_row_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(9)]])
    job("unit.rows=4", source=tmp_path / "in", sink=tmp_path / "out")
    before = data(tmp_path / "out")

    job(
        *("on_change=reprocess", "unit.rows=5", 'job.messages=[{role: user, content: "Other: {{ text }}"}]'),
        source=tmp_path / "in",
        sink=tmp_path / "out",
    )

    after = data(tmp_path / "out")
    assert [row["id"] for row in after] == list(range(9))
    assert not {row["_key"] for row in after} & {row["_key"] for row in before}
    plain = ds.dataset(tmp_path / "out" / "data", format="parquet").to_table(columns=["id", "_key"]).to_pylist()
    assert sorted(plain, key=lambda row: row["id"]) == [{"id": row["id"], "_key": row["_key"]} for row in after]


def test_columns_that_the_prompt_does_not_need_come_out_unchanged(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    row = {"text": "fine", "n": 7, "tags": ["x", "ü"], "nested": {"a": 1.5, "b": None}}
    (tmp_path / "in" / "a b=ü.jsonl.gz").write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))

    job(source=tmp_path / "in", sink=tmp_path / "out")

    (answered,) = data(tmp_path / "out")
    assert {name: answered[name] for name in ("text", "n", "tags")} == {
        name: row[name] for name in ("text", "n", "tags")
    }
    assert answered["nested"]["a"] == 1.5
    assert answered["_shard"] == "a b=ü.jsonl.gz"


def test_a_shard_that_breaks_off_ends_with_exit_3_and_the_rest_is_done(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    whole = gzip.compress(b"".join(b'{"text": "row %d %s"}\n' % (n, os.urandom(20).hex().encode()) for n in range(500)))
    (tmp_path / "in" / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "fine.jsonl").write_text('{"text": "fine"}\n')

    exit_code = job("max_error_rate=1", source=tmp_path / "in", sink=tmp_path / "out")

    assert exit_code is Exit.TOO_MANY_ERRORS
    (dead,) = errors(tmp_path / "out")
    assert (dead["_shard"], dead["_error_type"]) == ("cut.jsonl.gz", "unreadable_shard")
    answered = data(tmp_path / "out")
    assert [row["text"] for row in answered if row["_shard"] == "fine.jsonl"] == ["fine"]
    assert dead["_row"] == len(answered) - 1


def test_a_run_of_which_no_unit_ends_for_long_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(8)]])
    context = DataContext.get_current()
    before, context.execution_no_progress_timeout_s = context.execution_no_progress_timeout_s, 2
    try:
        # Two rows at a time, so the only unit ends after about 8 s, in which Ray sees nothing move.
        words = ("engine.simulated.latency_s=2", "batching=static", "batching.batch_rows=2")
        assert job(*words, source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE
    finally:
        context.execution_no_progress_timeout_s = before
    assert len(data(tmp_path / "out")) == 8


def test_too_many_errors_are_exit_3_and_the_rows_are_kept(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a", "b", None]])
    assert job("max_error_rate=0.3", source=tmp_path / "in", sink=tmp_path / "out") is Exit.TOO_MANY_ERRORS
    assert len(data(tmp_path / "out")) == 2
    assert job("max_error_rate=0.4", source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE


@pytest.mark.slow
def test_an_engine_that_never_starts_fails_the_run_with_its_reason(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"]])
    with pytest.raises(RunFailed, match=r"did not start|memory|KV"):
        job(
            *("engine=vllm", "engine.kv_cache_gib=0.0001", "engine.start_timeout_s=120"),
            source=tmp_path / "in",
            sink=tmp_path / "out",
        )


def _alone() -> dict[str, str]:
    """The environment of a user without a cluster: the run starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.mark.parametrize("logical_cpus", [1, *(pytest.param(cpus, marks=pytest.mark.slow) for cpus in (2, 4))])
def test_a_run_never_starves_however_few_cpus_there_are(tmp_path: Path, logical_cpus: int) -> None:
    write_texts(tmp_path / "in", [[f"shard {shard} row {n}" for n in range(40)] for shard in range(5)])
    words = ["+job=classify", "engine=simulated", "tracking=none", "unit.rows=4", "engine.replicas=2"]
    words += [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}", f"cluster.num_cpus={logical_cpus}"]
    done = subprocess.run([sys.executable, "-m", "pipelines.run", *words], env=_alone(), timeout=240, check=False)

    assert done.returncode == 0
    assert len(data(tmp_path / "out")) == 200


def test_a_signal_commits_what_was_finished_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {shard} {n}" for n in range(60)] for shard in range(4)])
    words = ["+job=classify", "engine=simulated", "tracking=none", "unit.rows=10", "engine.units_in_flight=1"]
    words += ["engine.simulated.latency_s=0.4", "batching.max_num_seqs=5", "grace_s=30"]
    words += [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *words], stderr=subprocess.PIPE, text=True, env=_alone()
    )
    # One unit is written, and others have begun.
    while process.poll() is None and not list((tmp_path / "out" / "data").glob("*.parquet")):
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)

    assert process.returncode == Exit.STOPPED, said
    first = data(tmp_path / "out")
    assert len(first) % 10 == 0
    assert 10 <= len(first) < 240  # a unit at least had begun, and all that had were finished

    assert job("unit.rows=10", source=tmp_path / "in", sink=tmp_path / "out") is Exit.DONE
    assert len(data(tmp_path / "out")) == 240
    assert sum(r["rows_in"] for r in ledger(tmp_path / "out")) == 240


@pytest.mark.slow
def test_a_multirun_is_runs_in_one_process_each_with_an_output_and_an_mlflow_run_of_its_own(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {n}" for n in range(30)]])
    words = ["+job=classify", "--multirun", "batching=static,dynamic,continuous", "engine=simulated", "unit.rows=10"]
    words += [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"source.uri={tmp_path / 'in'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.run", *words, f"sink.uri={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert ended.returncode == Exit.DONE, ended.stderr
    modes = [f"batching={mode}" for mode in ("static", "dynamic", "continuous")]
    assert [line for line in ended.stderr.splitlines() if line.startswith("job ")] == [
        f"job {number} of 3: {mode}, into {tmp_path / 'out'}/{mode}" for number, mode in enumerate(modes, start=1)
    ]
    labels = [[row["label"] for row in data(tmp_path / "out" / mode)] for mode in modes]
    assert len(labels[0]) == 30
    assert labels[0] == labels[1] == labels[2]
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        runs = connection.execute("select name, status from runs order by start_time").fetchall()
    assert runs == [(mode, "FINISHED") for mode in modes]
