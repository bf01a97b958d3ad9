"""Budget, deadline and the ledger of costs on whole runs over real Ray: the promise, the end, and docs/cost.md's SQL.

At 3,600 dollars an hour a second is a dollar.
"""

import re
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from pipelines.accounts.allowance import REACTION_S
from pipelines.config import Exit, UserError
from tests.runs import data, errors, job, ledger, write_texts
from tests.unit.sink.test_cost_sql import named

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = 3000
GRACE_S = 10
UNTIL_S = 25  # in which the 3,000 rows are not all answered
DEAR = ("pricing.devices.cpu.usd_per_hour=3600", f"grace_s={GRACE_S}", "unit.rows=40", "engine.units_in_flight=1")
SLOW = ("engine.simulated.latency_s=0.1", "batching.max_num_seqs=4")  # 40 rows/s
SQL = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "cost.md").read_text("utf-8"), re.DOTALL)


def ask(sql: str, sink: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        for name in ("costs", "ledger"):
            connection.register(name, DeltaTable(str(sink / name)).to_pyarrow_dataset())
        for name, files in named(str(sink)).items():
            connection.register(name, files)
        rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
        return rows


def spent(sink: Path) -> dict[str, Decimal]:
    return {row["run"]: row["usd"] for row in ask("select run, sum(usd) as usd from costs group by run", sink)}


def ended(*words: str, source: Path, sink: Path) -> Exit:
    """How the job ended, as cli.py says it: at the end of its grace a run is interrupted."""
    try:
        return job(*words, *DEAR, source=source, sink=sink)
    except KeyboardInterrupt:
        return Exit.STOPPED


def test_a_run_stops_within_its_budget_the_same_command_goes_on_and_its_ledger_adds_up(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(ROWS)]])
    source, sink = tmp_path / "in", tmp_path / "out"
    assert ended("source.limit=40", source=source, sink=sink) is Exit.DONE
    (start,) = spent(sink).values()
    budget = 2 * start + 8  # another start, be it a slow one, and some seconds of 40 rows each

    assert ended(f"budget.usd={budget}", *SLOW, source=source, sink=sink) is Exit.STOPPED

    assert max(spent(sink).values()) <= budget + GRACE_S + Decimal(REACTION_S)
    there = [row["id"] for row in data(sink)]
    assert len(there) == len(set(there))
    assert 40 < len(there) < ROWS
    assert ended("budget.usd=1000", source=source, sink=sink) is Exit.DONE
    assert [row["id"] for row in data(sink)] == list(range(ROWS))
    assert errors(sink) == []
    assert sum(receipt["rows_in"] for receipt in ledger(sink)) == ROWS
    assert not list((sink / "runs").glob("*/cost.json"))

    # With all runs counted there is nothing left to spend: nothing is started, and nothing is booked.
    before = spent(sink)
    write_texts(source, [[f"row {number}" for number in range(ROWS)], ["one more"]])
    assert ended(f"budget.usd={budget}", "budget.scope=output", source=source, sink=sink) is Exit.STOPPED
    assert spent(sink) == before

    by_part, by_day, by_token, by_unit, by_row = (ask(sql, sink) for sql in SQL)
    paid = sum(before.values())
    assert sum(row["usd"] for row in by_part) == paid
    assert sum(row["usd"] for row in by_day) == paid
    assert {row["run"] for row in by_token} == before.keys()
    assert all(0 < row["useful_per_million"] < row["billed_per_million"] for row in by_token)
    assert sum(row["usd"] for row in by_unit) == pytest.approx(float(paid))
    work = sum(row["usd"] for row in by_part if row["part"] in ("prefill", "decode"))
    assert sum(row["work_usd"] for row in by_unit) == pytest.approx(float(work))
    assert len(by_row) == ROWS
    assert sum(row["usd"] for row in by_row) == pytest.approx(float(paid))


def test_a_run_ends_before_its_deadline_with_what_it_could_do_committed(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [[f"row {number}" for number in range(ROWS)]])
    began = time.time()

    code = ended(f"budget.finish_by={UNTIL_S}s", *SLOW, source=tmp_path / "in", sink=tmp_path / "out")

    assert code is Exit.STOPPED
    assert time.time() - began <= UNTIL_S
    # A thread that is left would call Ray after the run has shut it down, which starts another one.
    assert not [one.name for one in threading.enumerate() if one.name.startswith(("dataflow", "StreamingExecutor"))]
    assert len(data(tmp_path / "out")) == sum(receipt["rows_in"] for receipt in ledger(tmp_path / "out")) < ROWS


def test_a_deadline_that_has_passed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"]])
    with pytest.raises(UserError, match=r"budget\.finish_by=2026-01-01T00:00Z was .* ago: give a later time"):
        job("budget.finish_by=2026-01-01T00:00Z", source=tmp_path / "in", sink=tmp_path / "out")
    assert not (tmp_path / "out").exists()
