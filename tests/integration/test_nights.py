"""Four nights of a scheduled job behind a gate, while readers read on. All but Ray and the engine is real."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from pipelines.accounts.gate import decide
from pipelines.accounts.summary import Gated
from pipelines.approve import ApproveAsked, ApproveSink, approve
from pipelines.config import ModelConfig
from pipelines.diff import DiffAsked, DiffSink, difference
from pipelines.gate_config import GateConfig
from pipelines.job.model import resolve
from pipelines.rollback import RollbackAsked, RollbackSink, rollback
from pipelines.sink.audit import audit
from pipelines.sink.publications import Publications
from tests.in_process import Order, Place, Session
from tests.runs import data, errors, ledger, write_texts
from tests.unit.job.models import bytes_bpe

Version = frozenset[tuple[str, int, str]]
OLD, NEW = "f" * 64, "e" * 64  # fingerprints
GATE = GateConfig(max_error_rate=0.05)


def version(rows: list[dict[str, Any]]) -> Version:
    return frozenset((row["_shard"], row["_row"], row["_key"]) for row in rows)


def by_deltalake(out: Path) -> list[dict[str, Any]]:
    found: pa.Table = DeltaTable(out / "data").to_pyarrow_table(columns=["_shard", "_row", "_key"])
    return list(found.to_pylist())


def by_duckdb(out: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as database:
        database.register("answers", DeltaTable(out / "data").to_pyarrow_dataset())
        found: pa.Table = database.sql("select _shard, _row, _key from answers").to_arrow_table()
    return list(found.to_pylist())


@contextlib.contextmanager
def reading(out: Path) -> Iterator[dict[str, set[Version]]]:
    """Readers that read all the time, each in a thread; which versions they saw."""
    over = threading.Event()
    seen: dict[str, set[Version]] = {"deltalake": set(), "duckdb": set()}
    failed: list[BaseException] = []

    def read(name: str) -> None:
        try:
            while not over.wait(0.05):
                with contextlib.suppress(TableNotFoundError):  # before the first night
                    seen[name].add(version({"deltalake": by_deltalake, "duckdb": by_duckdb}[name](out)))
        except BaseException as error:  # noqa: BLE001 – told below, in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=read, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []


def night(place: Place, prompt: str, run: str) -> tuple[int, Gated]:
    """A run behind the gate, as pipelines.run does it: how many rows an engine was asked, and what the gate said."""
    order = Order(fingerprint=prompt, unit_rows=16, retain_hours=72, gate=True, run=run)
    session = Session(place, replace(order, answer_tokens=2) if prompt == NEW else order)  # answers get much shorter
    session.open()
    for receipt in session.units():
        session.output.commit([receipt])
    session.remove()
    said = decide(session.output, GATE)
    session.close()
    return len(session.asked), said


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = bytes_bpe(tmp_path / "model")
    files = resolve(ModelConfig(name="mine", path=str(folder)), cache=tmp_path / "cache")
    return Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=files)


def wrong(out: Path) -> list[list[str]]:
    return [check.findings for check in audit(str(out), retain_hours=72).checks if check.found]


def test_four_nights_with_a_gate_and_readers_who_see_one_whole_version_at_any_time(place: Place) -> None:
    source, out, uri = place.source, Path(place.sink), place.sink
    texts: list[list[str | None]] = [[f"text {shard} {row}" for row in range(40)] for shard in range(3)]
    texts[0][7] = None
    write_texts(source, texts[:2])
    with reading(out) as seen:
        # Day 1: all of it.
        assert night(place, OLD, "day-1") == (79, Gated(passed=True, words="passed"))
        first = version(data(out))
        assert (len(first), len(errors(out))) == (79, 1)

        # Day 2: nothing has changed, nothing is asked.
        assert night(place, OLD, "day-2") == (0, Gated(passed=True, words="nothing to publish"))
        assert version(data(out)) == first

        # Day 3: a new shard, which alone is asked.
        write_texts(place.source.parent / "more", texts)
        (place.source.parent / "more" / "part-2.parquet").rename(source / "part-2.parquet")
        assert night(place, OLD, "day-3") == (40, Gated(passed=True, words="passed"))
        third = version(data(out))
        assert (len(third), first < third) == (119, True)

        # Day 4: another prompt, whose answers have moved. The gate keeps them from readers.
        asked, said = night(place, NEW, "day-4")
        assert (asked, said.passed, said.words.startswith("drift: PSI")) == (119, False, True)
        assert (version(data(out)), len(errors(out))) == (third, 1)
        plain = ds.dataset([str(path) for path in (out / "data").glob("*.parquet")])
        assert plain.count_rows() == 119  # as nothing was replaced yet, these are the table's
        assert wrong(out) == []
        told = difference(DiffAsked(sink=DiffSink(uri=uri)))
        assert told.drift is not None
        assert (told.drift.significant_psi or 0) > 0.25
        assert (told.units_new, told.units_gone, told.moved.columns["answer"].changed) == (9, 9, 119)
        assert told.moved.columns["answer"].examples[0].text.startswith("text ")
        assert night(place, NEW, "day-4-again")[0] == 0

        # Somebody has looked, and the next run shows it; it asks for nothing.
        approve(ApproveAsked(sink=ApproveSink(uri=uri), run="day-4", by="anna", note="shorter is wanted"))
        asked, said = night(place, NEW, "day-4-approved")
        assert (asked, said.passed) == (0, True)
        fourth = version(data(out))
        assert (len(fourth), fourth.isdisjoint(third)) == (119, True)

        # It was a mistake. Neither the same night again undoes that, nor is the prompt of before paid for again.
        rollback(RollbackAsked(sink=RollbackSink(uri=uri), to="day-3", by="bea", reason="customers complain"))
        assert version(data(out)) == third
        asked, said = night(place, NEW, "day-5")
        assert (asked, said.passed, "customers complain" in said.words) == (0, False, True)
        assert night(place, OLD, "day-6") == (0, Gated(passed=True, words="nothing to publish"))
        assert version(data(out)) == third
        assert wrong(out) == []

    for versions in seen.values():
        assert versions <= {frozenset(), first, third, fourth}
        assert {first, third, fourth} & versions
    assert sum(receipt["rows_in"] for receipt in ledger(out)) == 240  # each row once under each prompt
    decisions = sorted(Publications.open(uri).decisions(), key=lambda one: one.at)
    decided = [(one.action, one.by, one.reason) for one in decisions]
    assert [action for action, _, _ in decided] == [
        "hold", "publish", "publish", "block", "block", "approve", "publish", "rollback", "block",
    ]  # fmt: skip
    assert decided[5] == ("approve", "anna", "shorter is wanted")
    assert decided[7] == ("rollback", "bea", "customers complain")
