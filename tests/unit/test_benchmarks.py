"""Benchmarks read what a run's manifest holds."""

import json
from pathlib import Path

import pytest

from benchmarks.measure import PipelineRun
from benchmarks.peers import sides
from tests.accounts_samples import summary


def test_the_pipelines_side_of_the_peers_is_told_by_the_summary_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(json.dumps(summary().to_dict()))
    ended = PipelineRun(
        exit_code=0, wall_s=3.0, cpu_s={}, summary=told, peak_rss_bytes={"engine": 5 << 20, "driver": 1 << 20}
    )
    monkeypatch.setattr(sides, "run_pipeline", lambda words, sink: ended)  # it takes minutes with an engine

    side = sides.pipeline([], told["this_run"]["rows_ok"], tmp_path)

    assert (side.decoded, side.peak_mib) == (told["this_run"]["output_tokens"], 5)
    with pytest.raises(RuntimeError, match="the pipeline ended with 0"):
        sides.pipeline([], told["this_run"]["rows_ok"] + 1, tmp_path)
