"""The SQL of docs/cost.md as it stands there, over an output that was recut, with dead letters and lost units."""

import random
import re
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.cost import dollars_of
from pipelines.config import ModelConfig
from pipelines.job.model import resolve
from pipelines.sink.costs import Cost, Costs
from tests.accounts_samples import PRICE
from tests.in_process import INPUT, Order, Place, Session, run
from tests.runs import data, errors, ledger
from tests.unit.job.models import bytes_bpe

DOCS = (Path(__file__).parents[3] / "docs" / "cost.md").read_text("utf-8")
TEXTS = ("one", "bad two", "three", "one", "bad five", "bad six", "bad seven", None, "nine", "ten", "eleven")


def block(kind: str, after: str) -> str:
    """The first block of code behind these words."""
    found: list[str] = re.findall(rf"```{kind}\n(.*?)```", DOCS[DOCS.index(after) :], re.DOTALL)
    return found[0]


def ask(after: str, sink: str, **tables: Any) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        for name in ("costs", "ledger", "data"):
            connection.register(name, DeltaTable(f"{sink}/{name}").to_pyarrow_dataset())
        for name, rows in tables.items():
            connection.register(name, rows)
        found: list[dict[str, Any]] = connection.sql(block("sql", after)).to_arrow_table().to_pylist()
        return found


def named(sink: str) -> dict[str, Any]:
    """`data` and `errors` with the names of their files, by the lines of the docs."""
    lines = block("python", "By row").replace("out/classify", sink)
    made: dict[str, Any] = {"DeltaTable": DeltaTable}
    exec(lines, made)
    return {name: made[name] for name in ("data", "errors")}


def paid(session: Session, seconds: int, day: int) -> None:
    """The run's devices were held for so long."""
    parts = Parts(startup=seconds * NS // 4, prefill=seconds * NS // 2, failed=seconds * NS // 4)
    costs = Costs(session.place.sink, epoch=session.output.ledger.epoch, run=session.order.run)
    costs.book(
        [
            Cost(
                run=session.order.run,
                job="mine",
                model="m",
                day=date(2026, 11, day),
                part=name,
                device="cpu",
                device_ns=ns,
                usd=round(dollars_of(ns, PRICE), 18),
                usd_per_hour=PRICE.usd_per_hour,
                price="own",
                price_source=PRICE.source,
                price_date=PRICE.date,
                booked_at=0.0,
            )
            for name, ns in parts.known()
        ]
    )


@pytest.fixture
def sink(tmp_path: Path) -> str:
    """Three runs: in units of 3 rows; under another prompt in units of 4, some of dead letters alone; a shard more."""
    files = resolve(ModelConfig(name="mine", path=str(bytes_bpe(tmp_path / "model"))), cache=tmp_path / "cache")
    place = Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=files)
    place.source.mkdir()

    def shard(name: str, texts: tuple[str | None, ...]) -> None:
        rows = [{"version": 1, "text": text} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows, INPUT), place.source / name)

    shard("a.parquet", TEXTS)
    refused = {"bad": "engine"}
    orders = [
        Order(fingerprint="1" * 64, run="r1", unit_rows=3, refused=refused),
        Order(fingerprint="2" * 64, run="r2", unit_rows=4, refused=refused, answer_tokens=9),
        Order(fingerprint="2" * 64, run="r3", unit_rows=4, refused=refused),
    ]
    for number, order in enumerate(orders, start=1):
        if number == 3:
            shard("b.parquet", TEXTS[:5])
        session = Session(place, order)
        run(session, random.Random(number))
        paid(session, 400 * number, number)
    return place.sink


def test_the_parts_of_a_run_and_the_days_of_a_job_add_up_to_what_was_billed(sink: str) -> None:
    with duckdb.connect() as connection:
        connection.register("costs", DeltaTable(f"{sink}/costs").to_pyarrow_dataset())
        ((billed,),) = connection.sql("select sum(usd) from costs").fetchall()
    by_part, by_day = ask("Where the money of each run went", sink), ask("By job and day", sink)
    by_tokens = ask("Dollars per million tokens by run", sink)

    assert sum(row["usd"] for row in by_part) == billed
    assert sum(row["usd"] for row in by_day) == billed
    assert {row["day"].day: round(row["failed_usd"], 9) for row in by_day} == {
        day: round(dollars_of(100 * day * NS, PRICE), 9) for day in (1, 2, 3)
    }
    tokens: dict[str, int] = defaultdict(int)
    for receipt in ledger(sink):
        tokens[receipt["run"]] += receipt["prompt_tokens"] + receipt["output_tokens"]
    for row in by_tokens:
        assert row["billed_per_million"] == pytest.approx(float(row["usd"]) / tokens[row["run"]] * 1e6)
        assert row["useful_per_million"] == pytest.approx(row["billed_per_million"] / 2)


def test_the_units_of_a_run_add_up_to_its_bill_and_the_rows_of_a_unit_to_the_unit(sink: str) -> None:
    by_unit, by_row = ask("By unit", sink), ask("By row", sink, **named(sink))
    bills = {run: float(dollars_of(400 * number * NS, PRICE)) for number, run in enumerate(("r1", "r2", "r3"), 1)}
    run_of = {receipt["attempt"]: receipt["run"] for receipt in ledger(sink)}

    of_runs: dict[str, float] = defaultdict(float)
    for unit in by_unit:
        of_runs[run_of[unit["attempt"]]] += unit["usd"]
    assert of_runs == pytest.approx(bills)

    of_units: dict[str, float] = defaultdict(float)
    for row in by_row:
        assert row["usd"] >= 0
        of_units[row["attempt"]] += row["usd"]
    assert of_units == pytest.approx({one["attempt"]: one["usd"] for one in by_unit if one["attempt"] in of_units})
    there = [(row["_shard"], row["_row"]) for row in [*data(sink), *errors(sink)]]
    assert sorted((row["_shard"], row["_row"]) for row in by_row) == sorted(there)
    assert {run_of[attempt] for attempt in of_units} == {"r2", "r3"}  # all of the first run's were done again
    # A unit of dead letters alone costs what it took: its rows bear it to equal parts.
    dead = {(row["_shard"], row["_row"]) for row in errors(sink)}
    assert sum(row["usd"] for row in by_row if (row["_shard"], row["_row"]) in dead) > 0
