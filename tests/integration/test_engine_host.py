"""The host under Ray Data: units overlap in one engine, and an engine that fails ends the run with its reason."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext

from actors.engine import Constraint, EngineConfig, ModelHere, Sampling, SimulatedFaults
from actors.exchange import PROMPTS, from_ipc, to_ipc
from actors.host import EngineHost
from actors.host_stats import HostStats
from actors.window import Window

ROWS = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ray-host-", dir="/tmp"))  # a socket's path must be short
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=str(folder), log_to_driver=False, configure_logging=False)
    context = DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars)
    context.target_max_block_size, context.enable_progress_bars = 1, False
    yield folder
    context.target_max_block_size, context.enable_progress_bars = before
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def units(counts: pa.Table) -> Iterator[pa.Table]:
    """As many units as the one row says, each a block of its own."""
    yield from (unit(number) for number in range(counts["item"][0].as_py()))


def unit(number: int) -> pa.Table:
    """ROWS rows."""
    prompts = pa.table(
        {
            "_key": [f"{number}-{row}" for row in range(ROWS)],
            "_prompt": [[number + 100, row] for row in range(ROWS)],
            "_error_type": pa.nulls(ROWS, pa.string()),
            "_error": pa.nulls(ROWS, pa.string()),
        },
        schema=PROMPTS,
    )
    return pa.table(
        {"unit": [json.dumps(number)], "prompts": pa.array([to_ipc(prompts)], pa.large_binary())},
    )


def answered(count: int, *, units_in_flight: int = 4, replicas: int = 1, **options: Any) -> list[dict[str, Any]]:
    engine = EngineConfig(
        kind="simulated",
        model="none",
        model_name="none",
        max_num_seqs=options.pop("max_num_seqs", 64),
        simulated=SimulatedFaults(**options.pop("faults", {})),
    )
    kwargs = {
        "engine": engine,
        "sampling": Sampling(max_tokens=4),
        "constraint": Constraint(choices=("good", "bad")),
        "window": Window(),
        **options,
    }
    data = ray.data.from_arrow(pa.table({"item": [count]}))
    data = data.map_batches(units, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    data = data.map_batches(
        EngineHost,
        fn_constructor_kwargs=kwargs,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=replicas,
            max_tasks_in_flight_per_actor=units_in_flight + 2,
            max_concurrent_calls_per_actor=units_in_flight,
        ),
        num_cpus=0,
        max_restarts=2,
        max_task_retries=2,
    )
    return list(data.iter_rows())


class _Reports:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, stats: HostStats) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps([stats.units, stats.rows_in_flight, os.getpid()]) + "\n")


def test_rows_of_several_units_are_in_one_engine_and_every_unit_comes_out_whole(cluster: Path) -> None:
    log = cluster / "reports"

    rows = answered(12, report=_Reports(log), poll_s=0.05, faults={"latency_s": 1.0, "latency_spread": 0.9})

    assert sorted(int(row["unit"]) for row in rows) == list(range(12))
    for row in rows:
        answers = from_ipc(row["answers"])
        assert answers.num_rows == ROWS
        assert answers["_answer"].null_count == 0
    seen = [json.loads(line) for line in log.read_text().splitlines()]
    assert 1 < max(units for units, _, _ in seen) <= 4
    assert ROWS < max(rows for _, rows, _ in seen) <= 4 * ROWS
    assert len({process for _, _, process in seen}) == 1


def test_an_engine_that_does_not_start_fails_the_run_once_and_with_its_reason(cluster: Path) -> None:
    log = cluster / "starts"

    with pytest.raises(Exception, match="no such model on this node"):
        answered(4, report=_Reports(log), locate=_no_model)

    assert len(log.read_text().splitlines()) == 1  # started once, not for ever


def _no_model() -> ModelHere:
    raise RuntimeError("no such model on this node")


def test_an_engine_that_keeps_dying_fails_the_run_with_its_last_words(cluster: Path) -> None:
    log = cluster / "deaths"

    with pytest.raises(Exception, match=r"engines in a row were lost before any row was answered.*dies every 1 rows"):
        answered(4, report=_Reports(log), poll_s=60, faults={"die_every_rows": 1})

    assert len({json.loads(line)[2] for line in log.read_text().splitlines()}) == 1  # no second actor tried it again


def test_a_run_that_drains_gets_its_unbegun_units_back_unanswered(cluster: Path) -> None:
    rows = answered(6, stop=_always)

    assert sorted(int(row["unit"]) for row in rows) == list(range(6))
    assert [row["answers"] for row in rows] == [None] * 6
    assert all(from_ipc(row["prompts"])["_prompt"].null_count == 0 for row in rows)


def _always() -> bool:
    return True
