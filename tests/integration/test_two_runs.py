"""Two runs, one output: the second is refused while the first is at work, and takes over once it was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config import Exit
from tests.runs import data, ledger, write_texts

ROOT = Path(__file__).parents[2]


def start(sink: str | Path, source: Path, *words: str) -> "subprocess.Popen[str]":
    line = ["+job=classify", "engine=simulated", "tracking=none", "unit.rows=5", "batching.max_num_seqs=5"]
    line += [f"source.uri={source}", f"sink.uri={sink}", *words]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Ray gives its processes 30 s, too few on a machine that does much else at the moment.
        env={**alone, "RAY_raylet_start_wait_time_s": "240"},
    )


@pytest.mark.slow
def test_a_second_run_is_refused_and_one_after_a_kill_takes_over_at_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {shard} {n}" for n in range(40)] for shard in range(2)])
    with start(tmp_path / "out", tmp_path / "in", "engine.simulated.latency_s=1", "engine.units_in_flight=1") as first:
        assert first.stderr is not None
        lines = [""]
        while "engines ready" not in lines[-1]:
            lines.append(first.stderr.readline())
            assert lines[-1], "".join(lines)
        committed = len(ledger(tmp_path / "out"))

        with start(tmp_path / "out", tmp_path / "in") as second:
            _, refusal = second.communicate()
        assert second.returncode == Exit.USAGE, refusal
        told = refusal.strip().splitlines()[-1]
        assert told.startswith("error: ")
        assert f"pid {first.pid} on host" in told
        assert first.poll() is None, "the first run was disturbed"
        first.kill()

    with start(tmp_path / "out", tmp_path / "in") as third:
        _, said = third.communicate()

    assert third.returncode == Exit.DONE, said
    assert "watching" not in said
    rows = [(row["_shard"], row["_row"]) for row in data(tmp_path / "out")]
    assert rows == [(f"part-{shard}.parquet", n) for shard in range(2) for n in range(40)]
    assert len(ledger(tmp_path / "out")) >= committed
    assert not list((tmp_path / "out" / "runs").rglob("alive.json"))
