"""Workers that die over one piece of work, whoever takes it: the run ends with a line that names it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import dataflow, flow_stages
from pipelines.config import Exit, RunFailed
from pipelines.stages.parcel import Parcel
from tests.runs import data, job, write_texts

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def test_a_shard_that_ends_each_worker_that_reads_it_is_named_and_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "in", [["one", "two"], ["three"]])
    read_and_prepare = flow_stages.read_and_prepare

    def deadly(*told: Any) -> Iterator[pa.Table]:
        for block in read_and_prepare(*told):
            if Parcel.from_block(block).unit.shard == "part-1.parquet":
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    with monkeypatch.context() as patched:
        patched.setattr(dataflow, "read_and_prepare", deadly)
        patched.setattr(dataflow, "WORKER_DEATHS", 1)
        with pytest.raises(RunFailed, match=r"each of the 2 times that part-1\.parquet was begun.*source\.exclude"):
            job(sink=tmp_path / "out", source=tmp_path / "in")

    assert job(sink=tmp_path / "out", source=tmp_path / "in") is Exit.DONE
    assert [row["text"] for row in data(tmp_path / "out")] == ["one", "two", "three"]
