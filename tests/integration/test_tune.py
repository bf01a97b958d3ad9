"""The command that finds batch sizes, as a user calls it: each candidate a run of its own, on a Ray that all share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.job.model import cache_dir
from tests.runs import LABELS, data, write_texts

LATENCY_S = 0.05
MODES = ("continuous", "static", "dynamic")
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]  # a run of its own for each candidate


def tune(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    cache = tmp_path / "cache" / "batch-pipelines"
    if not cache.exists():  # the model, but no sizes that were tuned before
        cache.mkdir(parents=True)
        for each in cache_dir().iterdir():
            if each.name != "tuned":
                (cache / each.name).symlink_to(each)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    places = [f"source.uri={tmp_path / 'in'}", f"sink.uri={tmp_path / 'out'}"]
    common = [LABELS, "engine=simulated", "tracking=none", "job.gold=null", f"engine.simulated.latency_s={LATENCY_S}"]
    command = [sys.executable, "-m", "pipelines.tune", *common, *places, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_larger_batch_is_found_kept_for_later_runs_and_its_rows_are_answered_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(400)]])

    ended = tune(tmp_path, "tune.most_seqs=2", "tune.most_tokens=64")

    assert ended.returncode == 0, ended.stderr
    lines = [line.removesuffix("best").split() for line in map(str.strip, ended.stdout.splitlines())]
    rates = [words for words in lines if words and words[0] in MODES]
    said = {(mode, *sizes): float(rate.replace(",", "")) for mode, *sizes, rate in rates}
    assert said["continuous", "2", "64"] > 1.5 * said["continuous", "1", "64"]
    assert {"static", "dynamic"} <= {mode for mode, *_ in said}
    kept = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "batch-pipelines" / "tuned").iterdir()]
    assert [each["sizes"] for each in kept] == [{"max_num_seqs": 2, "max_num_batched_tokens": 64}]
    assert "batching.max_num_seqs=2 batching.max_num_batched_tokens=64" in ended.stdout
    rows = [row["_row"] for row in data(tmp_path / "out")]
    assert rows == list(range(len(rates) * 32))  # each candidate answered the next ones, and no row twice


def test_a_candidate_that_dies_is_a_line_with_its_reason(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"text {number}" for number in range(100)]])
    faults = ["engine.simulated.start_s=60", "engine.start_timeout_s=0.01"]

    ended = tune(tmp_path, "tune.most_seqs=1", "tune.most_tokens=64", *faults)

    assert ended.returncode == 1
    assert "did not start within 0.01 s" in ended.stdout
    assert "no candidate lived" in ended.stderr
    assert not (tmp_path / "cache" / "batch-pipelines" / "tuned").exists()
