"""The ledger and the tables on real Delta tables, on the local disk and on SeaweedFS."""

import datetime as dt
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink import ledger as ledger_module
from pipelines.sink.committed import Change
from pipelines.sink.fenced import Fenced, FencedTable
from pipelines.sink.ledger import LEDGER, Ledger
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt
from pipelines.sink.tables import Tables, clean, create_tables, follow, open_tables, take_over
from pipelines.source.units import Unit
from pipelines.stages import write
from pipelines.stages.write import WriteSpec, write_unit

DATA = pa.schema([("text", pa.string()), ("label", pa.string()), ("_shard", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([("text", pa.string()), ("_shard", pa.string()), ("_row", pa.int64()), ("_error_type", pa.string())])
ANSWERS = pa.schema(
    [
        ("_prompt_tokens", pa.int32()),
        ("_cached_tokens", pa.int32()),
        ("_output_tokens", pa.int32()),
        ("_device_seconds", pa.float64()),
        ("_shared", pa.bool_()),
    ]
)


def done(
    sink: str,
    start: int = 0,
    stop: int = 4,
    *,
    shard: str = "a.parquet",
    bad: Sequence[int] = (),
    identity: str = "v1",
    fingerprint: str = "f",
    last: bool = False,
    kind: str = "empty",
    run: str = "run",
) -> Receipt:
    """One unit, written."""
    spec = WriteSpec(sink_uri=sink, run=run, fingerprint=fingerprint, data_schema=DATA, errors_schema=ERRORS)
    good = [row for row in range(start, stop) if row not in bad]
    data = pa.Table.from_pylist(
        [{"text": f"t{row}", "label": fingerprint, "_shard": shard, "_row": row} for row in good], DATA
    )
    dead = pa.Table.from_pylist(
        [{"text": f"t{row}", "_shard": shard, "_row": row, "_error_type": kind} for row in bad], ERRORS
    )
    answers = pa.Table.from_pylist(
        [
            {"_prompt_tokens": 5, "_cached_tokens": 1, "_output_tokens": 2, "_device_seconds": 0.5, "_shared": False}
            for _ in good
        ],
        ANSWERS,
    )
    unit = Unit(shard=shard, identity=identity, start=start, stop=stop, last=last)
    return write_unit(unit, data, dead, answers, spec)


def begun(sink: str) -> tuple[Ledger, Tables]:
    ledger, made = Ledger.open(sink, create=True), create_tables(sink, DATA, ERRORS)
    ledger.begin_epoch(above=max(table.epoch() for table in made))
    tables = open_tables(sink, DATA, ERRORS, epoch=ledger.epoch, made=made)
    follow(tables, ledger.committed())
    return ledger, tables


def commit(ledger: Ledger, tables: Tables, receipts: Sequence[Receipt]) -> Change:
    change = ledger.append(receipts)
    follow(tables, ledger.committed(), change)
    return change


def rows(sink: str, name: str = "data") -> list[tuple[str, int, str]]:
    """What a Delta reader that knows nothing of us sees, in row order."""
    uri = storage.join(sink, name)
    table = DeltaTable(uri, storage_options=storage.delta_options(uri)).to_pyarrow_table()
    column = "label" if name == "data" else "_error_type"
    return sorted((row["_shard"], row["_row"], row[column]) for row in table.to_pylist())


def plain(sink: str, name: str = "data") -> set[str]:
    """The Parquet files that a glob finds."""
    found = storage.listing(storage.join(sink, name), missing_ok=True)
    return {one.path for one in found if "/" not in one.path and one.path.endswith(".parquet")}


def test_every_reader_sees_the_same_rows_at_once(store: str) -> None:
    ledger, tables = begun(store)
    assert rows(store) == rows(store, "errors") == []

    commit(ledger, tables, [done(store, 0, 4, bad=[1]), done(store, 4, 6)])
    commit(ledger, tables, [done(store, shard="b b=ü.csv", last=True)])

    uri, options = f"{store}/data", storage.delta_options(store)
    wanted = [("a.parquet", row, "f") for row in (0, 2, 3, 4, 5)] + [("b b=ü.csv", row, "f") for row in range(4)]
    assert rows(store) == wanted
    assert rows(store, "errors") == [("a.parquet", 1, "empty")]
    frame = pl.read_delta(uri, storage_options=options).sort("_shard", "_row")
    assert list(zip(frame["_shard"], frame["_row"], frame["label"], strict=True)) == wanted
    scanned = DeltaTable(uri, storage_options=options).to_pyarrow_dataset()
    with duckdb.connect() as database:
        database.register("answers", scanned)
        found = database.sql("select _shard, _row, label from answers order by 1, 2").fetchall()
    assert found == wanted
    if not storage.is_s3(store):
        files = sorted(str(Path(uri) / name) for name in plain(store))
        by_file = ds.dataset(files).to_table().sort_by([("_shard", "ascending"), ("_row", "ascending")])
        assert [(r["_shard"], r["_row"], r["label"]) for r in by_file.to_pylist()] == wanted
        globbed = pl.read_parquet(f"{uri}/*.parquet").sort("_shard", "_row")
        assert globbed["_row"].to_list() == [row for _, row, _ in wanted]


def test_the_ledger_gives_back_every_field_of_every_receipt_in_order(store: str) -> None:
    ledger, tables = begun(store)
    written = [done(store, 4 * n, 4 * n + 4, bad=[4 * n] if n % 2 else [], last=n == 5) for n in range(6)]
    for receipt in written:
        commit(ledger, tables, [receipt])
    assert {field.name for field in fields(Receipt)} | {"epoch", "seq"} == set(LEDGER.names)

    again = Ledger.open(store, create=False)
    assert list(again.receipts()) == written
    ledger.compact()
    assert list(Ledger.open(store, create=False).receipts()) == written
    assert list(again.receipts()) == written  # a reader that had it open before

    later, _ = begun(store)
    later.append([done(store, 24, 28)])
    assert [receipt.start for receipt in Ledger.open(store, create=False).receipts()] == [0, 4, 8, 12, 16, 20, 24]


def test_a_runs_receipts_are_each_told_once_at_hand_or_not(tmp_path: Path) -> None:
    sink = str(tmp_path)
    ledger, _ = begun(sink)
    killed = [done(sink, 0, 4, run="killed"), done(sink, 4, 8, run="killed")]
    ledger.append([done(sink, 8, 12, run="early"), killed[0]])
    late = done(sink, 12, 16, run="early")
    ledger.append([late, *killed])  # the first of them for the second time, as after a lost answer

    again, _ = begun(sink)
    assert [one.start for one in again.of_run("killed")] == [0, 4]
    taken = done(sink, 16, 20, run="killed")  # a whole file without a receipt, found at the start
    again.append([taken])
    assert list(again.of_run("killed")) == [*killed, taken]
    again.append([done(sink, 20, 24, run="new")])
    assert list(again.of_run("killed")) == [*killed, taken]
    assert [one.start for one in again.of_run("early")] == [8, 12]
    assert list(Ledger.open(sink, create=False).of_run("none")) == []


def test_a_sink_without_a_ledger_reads_as_empty_and_nothing_is_made(store: str) -> None:
    assert list(Ledger.open(store, create=False).receipts()) == []
    assert list(storage.listing(store, missing_ok=True)) == []


def test_a_ledger_from_before_a_column_is_read_and_grows(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lately = ("rows_shared", "measures")
    with monkeypatch.context() as before:
        before.setattr(ledger_module, "LEDGER", pa.schema([one for one in LEDGER if one.name not in lately]))
        ledger, tables = begun(store)
        first = done(store, 0, 4)
        commit(ledger, tables, [first])

    again, tables = begun(store)
    second = replace(done(store, 4, 8), rows_shared=3)
    commit(again, tables, [replace(second, measures='{"rows":4}')])

    assert list(Ledger.open(store, create=False).receipts()) == [first, second]
    assert [one.measures for one in again.measured(again.receipts())] == [None, '{"rows":4}']
    monkeypatch.setattr(ledger_module, "COMPACT_FILES", 2)
    again.compact()
    assert list(Ledger.open(store, create=False).receipts()) == [first, second]
    assert again.table(["rows_shared"])["rows_shared"].to_pylist() == [None, 3]


def test_measures_are_in_the_ledger_and_not_in_memory(store: str) -> None:
    ledger, tables = begun(store)
    first, second = (replace(done(store, n, n + 4), measures=f'{{"rows":{n}}}') for n in (0, 4))
    commit(ledger, tables, [first])
    commit(ledger, tables, [first, second])  # the first once more, as after an answer that was lost

    for reader in (ledger, Ledger.open(store, create=False)):
        held = list(reader.committed().current())
        assert [one.measures for one in held] == [None, None]
        assert list(reader.measured(held)) == [first, second]
        assert list(reader.measured(held[1:])) == [second]
    assert list(Ledger.open(f"{store}/none", create=False).measured([])) == []


def test_the_same_receipts_appended_twice_change_nothing(store: str) -> None:
    ledger, tables = begun(store)
    receipts = [done(store, 0, 4, bad=[2]), done(store, 4, 8)]
    commit(ledger, tables, receipts)
    before = (rows(store), rows(store, "errors"), DeltaTable(tables.data.uri, storage_options=tables.data.options))

    change = commit(ledger, tables, receipts)

    assert (change.new, change.gone) == ((), ())
    assert (rows(store), rows(store, "errors")) == before[:2]
    ledger, tables = begun(store)
    assert (rows(store), rows(store, "errors")) == before[:2]


def test_the_first_of_two_attempts_counts_and_the_other_is_cleaned_away(store: str) -> None:
    ledger, tables = begun(store)
    first, second = done(store), done(store)

    commit(ledger, tables, [first, second])
    clean(tables, ledger.committed(), retain_hours=0)

    assert plain(store) == {first.data_file}
    assert len(rows(store)) == 4


def test_whatever_step_a_crash_cuts_off_the_next_start_repairs(store: str) -> None:
    wanted: list[tuple[str, int, str]] = []
    wanted_errors: list[tuple[str, int, str]] = []
    for number, step in enumerate(("errors file", "data file", "ledger", "data table", "nothing")):
        ledger, tables = begun(store)
        adopted = take_over(store, ledger.committed(), fingerprint="f", identities={f"{n}": "v1" for n in range(9)})
        commit(ledger, tables, adopted)
        clean(tables, ledger.committed(), retain_hours=0)
        assert sorted(wanted) == rows(store), step
        assert sorted(wanted_errors) == rows(store, "errors"), step
        assert len(plain(store)) == len({shard for shard, *_ in wanted}), step

        receipt = done(store, shard=str(number), bad=[1])
        if step == "errors file":
            storage.delete(f"{store}/data/{receipt.data_file}")
            continue
        wanted += [(str(number), row, "f") for row in (0, 2, 3)]
        wanted_errors.append((str(number), 1, "empty"))
        if step == "data file":
            continue
        change = ledger.append([receipt])
        if step == "ledger":
            continue
        if step == "data table":
            broken = FencedTable.open(f"{store}/errors")
            assert broken is not None
            broken.begin(ledger.epoch + 1)  # the second of the two commits is refused
            with pytest.raises(Fenced):
                follow(tables, ledger.committed(), change)
            assert rows(store, "errors") != wanted_errors
            continue
        follow(tables, ledger.committed(), change)
    begun(store)
    assert sorted(wanted) == rows(store)
    assert sorted(wanted_errors) == rows(store, "errors")


def test_a_writer_that_was_overtaken_is_refused_in_ledger_and_tables(store: str) -> None:
    old_ledger, old_tables = begun(store)
    commit(old_ledger, old_tables, [done(store, 0, 4)])
    late = done(store, 4, 8)

    new_ledger, new_tables = begun(store)

    assert new_ledger.epoch > old_ledger.epoch
    with pytest.raises(Fenced, match="has begun after this one"):
        old_ledger.append([late])
    view = old_ledger.committed()
    with pytest.raises(Fenced):
        follow(old_tables, view, view.add([late]))
    with pytest.raises(Fenced):
        open_tables(store, DATA, ERRORS, epoch=old_ledger.epoch)
    commit(new_ledger, new_tables, [done(store, 4, 8)])
    assert [row for _, row, _ in rows(store)] == list(range(8))
    assert len(list(Ledger.open(store, create=False).receipts())) == 2


def opened(store: str) -> Output:
    schemas = {"data_schema": DATA, "errors_schema": ERRORS}
    return Output.open(store, **schemas, fingerprint="f", identities={"a.parquet": "v1"}, retain_hours=0)


def test_a_run_that_was_overtaken_takes_nothing_of_its_successor_away(store: str) -> None:
    old = opened(store)
    old.commit([done(store, 0, 4)])
    new = opened(store)
    new.commit([done(store, 4, 8, bad=[5])])

    with pytest.raises(Fenced):
        old.close(retain_hours=0)
    with pytest.raises(Fenced):
        clean(old.tables, old.view, retain_hours=0)

    assert [row for _, row, _ in rows(store)] == [0, 1, 2, 3, 4, 6, 7]
    assert [row for _, row, _ in rows(store, "errors")] == [5]


def test_two_writers_that_begin_at_once_get_two_epochs(store: str) -> None:
    one, two = Ledger.open(store, create=True), Ledger.open(store, create=True)

    assert (one.begin_epoch(), two.begin_epoch(), one.begin_epoch(), two.begin_epoch()) == (1, 2, 3, 4)


def test_a_ledger_that_was_lost_does_not_lock_its_output(tmp_path: Path) -> None:
    for _ in range(3):
        opened(str(tmp_path))
    shutil.rmtree(tmp_path / "ledger")

    assert opened(str(tmp_path)).ledger.epoch == 4


def test_a_lost_ledger_is_made_again_from_footers_and_no_reader_sees_a_row_go(tmp_path: Path) -> None:
    sink = str(tmp_path)
    opened(sink).commit([done(sink, 0, 4, bad=[1]), done(sink, 4, 8)])
    seen, version = rows(sink), DeltaTable(tmp_path / "data").version()
    shutil.rmtree(tmp_path / "ledger")

    assert len(opened(sink).taken_over) == 2

    now = DeltaTable(tmp_path / "data").version()
    for number in range(version, now + 1):
        assert DeltaTable(tmp_path / "data", version=number).to_pyarrow_table().num_rows == len(seen)
    assert rows(sink) == seen
    assert rows(sink, "errors") == [("a.parquet", 1, "empty")]


def test_a_ledger_that_was_read_before_is_read_again_if_something_was_appended_since(store: str) -> None:
    early = Ledger.open(store, create=False)
    assert list(early.committed().receipts()) == []
    begun(store)[0].append([done(store, 0, 4)])

    late = Ledger.open(store, create=False)
    assert len(list(late.committed().receipts())) == 1
    for ledger in (early, late):
        ledger.made().begin_epoch()
        ledger.append([done(store, 4 * ledger.epoch, 4 * ledger.epoch + 4)])

    assert [one.start for one in early.committed().receipts()] == [0, 8]
    assert [one.start for one in late.committed().receipts()] == [0, 8, 12]


def test_a_replaced_unit_swaps_in_one_commit_and_its_file_stays_as_long_as_asked(store: str) -> None:
    ledger, tables = begun(store)
    old = done(store, 0, 4, bad=[0])
    commit(ledger, tables, [old, done(store, 4, 8)])
    versions = DeltaTable(tables.data.uri, storage_options=tables.data.options).version()

    commit(ledger, tables, [done(store, 0, 4, fingerprint="g")])

    assert rows(store) == [("a.parquet", row, "g" if row < 4 else "f") for row in range(8)]
    assert rows(store, "errors") == []
    assert DeltaTable(tables.data.uri, storage_options=tables.data.options).version() == versions + 1
    assert clean(tables, ledger.committed(), retain_hours=1) == 0
    assert old.data_file in plain(store)
    assert clean(tables, ledger.committed(), retain_hours=1, now=old.finished_at + 3700) == 2
    assert len(plain(store)) == 2
    assert plain(store, "errors") == set()
    assert len(rows(store)) == 8


def test_cleaning_leaves_what_is_not_ours_and_what_waits_for_its_shard(store: str) -> None:
    ledger, tables = begun(store)
    commit(ledger, tables, [done(store, 0, 4, last=True)])
    waiting = done(store, 0, 3, identity="v2")
    commit(ledger, tables, [waiting])
    orphan = done(store, 4, 8)
    storage.put(f"{store}/data/notes.parquet", b"somebody's own")
    storage.put(f"{store}/data/.x.parquet.0123456789.part", b"left by a kill")

    assert clean(tables, ledger.committed(), retain_hours=0) == 2

    names = {one.path for one in storage.listing(f"{store}/data") if not one.path.startswith("_delta_log/")}
    assert orphan.data_file not in names
    assert {"notes.parquet", waiting.data_file} < names
    assert len(names) == 3


def test_cleaning_before_the_tables_have_followed_takes_nothing_from_a_reader(store: str) -> None:
    ledger, tables = begun(store)
    commit(ledger, tables, [done(store, 0, 4, bad=[1])])
    before = (rows(store), rows(store, "errors"))
    ledger.append([done(store, 0, 4, fingerprint="g")])  # and the driver died before `follow`

    assert clean(tables, ledger.committed(), retain_hours=0) == 0

    assert (rows(store), rows(store, "errors")) == before


def test_only_whole_and_wanted_leftovers_are_taken_over(store: str) -> None:
    ledger, _ = begun(store)
    good = done(store, 0, 4, bad=[1])
    done(store, 0, 4, shard="changed", identity="v1")
    done(store, 0, 4, shard="other job", fingerprint="g")
    no_errors = done(store, 0, 4, shard="b", bad=[2])
    storage.delete(f"{store}/errors/{no_errors.errors_file}")
    torn = done(store, 0, 4, shard="c")
    storage.put(f"{store}/data/{torn.data_file}", storage.get(f"{store}/data/{torn.data_file}")[:-20])
    moved = done(store, 0, 4, shard="d")
    elsewhere = str(moved.data_file).replace(moved.attempt, "0123456789")
    storage.put(f"{store}/data/{elsewhere}", storage.get(f"{store}/data/{moved.data_file}"))
    storage.delete(f"{store}/data/{moved.data_file}")

    identities = dict.fromkeys(("a.parquet", "other job", "b", "c", "d"), "v1") | {"changed": "v2"}
    found = take_over(store, ledger.committed(), fingerprint="f", identities=identities)

    assert found == [good]
    ledger.append(found)
    assert take_over(store, ledger.committed(), fingerprint="f", identities=identities) == []


def test_that_a_shard_could_not_be_read_is_not_taken_over(store: str) -> None:
    ledger, _ = begun(store)
    done(store, 0, 1, bad=[0], last=True, kind="unreadable_shard")

    assert take_over(store, ledger.committed(), fingerprint="f", identities={"a.parquet": "v1"}) == []


def test_a_table_with_other_columns_is_refused_with_the_difference(store: str) -> None:
    begun(store)
    other = pa.schema([("text", pa.int64()), ("_shard", pa.string()), ("_row", pa.int64()), ("summary", pa.string())])

    with pytest.raises(UserError) as told:
        open_tables(store, other, ERRORS, epoch=9)

    for part in ("label is only there", "text is string there, int64 now", "data"):
        assert part in str(told.value)


def test_a_folder_of_the_sink_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("ledger", "data", "errors"):
        sink = tmp_path / f"sink-{name}"
        sink.mkdir()
        (sink / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="remove the link"):
            begun(str(sink))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_commit_whose_answer_was_lost_is_written_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, tables = begun(store)
    real = FencedTable._write
    failures = [OSError("the connection broke"), OSError("again")]

    def lost(self: FencedTable, *args: Any) -> None:
        real(self, *args)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(FencedTable, "_write", lost)
    commit(ledger, tables, [done(store, 0, 4, bad=[3])])

    assert len(list(Ledger.open(store, create=False).receipts())) == 1
    assert [row for _, row, _ in rows(store)] == [0, 1, 2]


def test_columns_of_every_kind_come_back_unchanged(store: str) -> None:
    at = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)
    values: dict[str, tuple[pa.DataType, Any]] = {
        "decimal": (pa.decimal128(20, 2), Decimal("123456789012345678.25")),
        "instant": (pa.timestamp("us", "UTC"), at),
        "local": (pa.timestamp("us"), at.replace(tzinfo=None)),
        "day": (pa.date32(), at.date()),
        "bytes": (pa.binary(), b"\x00\xff"),
        "small": (pa.int8(), -3),
        "list": (pa.list_(pa.int64()), [1, None, 3]),
        "tree": (
            pa.struct([("a", pa.int32()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
            {"a": 1, "b": [{"c": "x"}, {"c": None}]},
        ),
        "map": (pa.map_(pa.string(), pa.float64()), [("k", 0.5)]),
    }
    schema = pa.schema([(name, kind) for name, (kind, _) in values.items()])
    row = {name: value for name, (_, value) in values.items()}
    table = pa.Table.from_pylist([row, dict.fromkeys(values)], schema)
    ledger = Ledger.open(store, create=True)
    tables = open_tables(store, schema, ERRORS, epoch=ledger.begin_epoch())
    spec = WriteSpec(sink_uri=store, run="r", fingerprint="f", data_schema=schema, errors_schema=ERRORS)
    unit = Unit(shard="a", identity="v1", start=0, stop=2, last=True)

    commit(ledger, tables, [write_unit(unit, table, ERRORS.empty_table(), ANSWERS.empty_table(), spec)])

    uri = tables.data.uri
    found = ds.dataset(DeltaTable(uri, storage_options=tables.data.options).file_uris()) if uri[0] == "/" else None
    if found is not None:
        assert found.to_table().equals(table)
    frame = pl.read_delta(uri, storage_options=tables.data.options)
    assert frame.height == 2
    assert frame["decimal"][0] == row["decimal"]
    assert frame["instant"][0] == at
    assert frame["local"][0] == row["local"]
    assert frame["bytes"][0] == row["bytes"]
    assert frame["tree"][0] == row["tree"]
    assert frame["list"].to_list() == [[1, None, 3], None]
    assert frame["map"].to_list() == [{"k": 0.5}, None]


def test_the_module_of_the_writer_knows_no_delta() -> None:
    assert "deltalake" not in Path(str(write.__file__)).read_text()


def test_a_column_that_joined_one_table_alone_joins_the_other_at_the_next_start(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(schemas: tuple[pa.Schema, pa.Schema]) -> Output:
        data, errors = schemas
        return Output.open(
            store, data_schema=data, errors_schema=errors, fingerprint="f", identities={}, retain_hours=0.0
        )

    opened((DATA, ERRORS)).commit([done(store, bad=[2], last=True)])
    grown = tuple(schema.append(pa.field("stars", pa.int64())) for schema in (DATA, ERRORS))
    grow = FencedTable.grow

    def cut(table: FencedTable, *words: Any) -> None:
        if table.uri.endswith("/errors"):
            raise KeyboardInterrupt
        grow(table, *words)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FencedTable, "grow", cut)
        opened(grown)
    assert "stars" not in FencedTable.open(f"{store}/errors").schema().names  # type: ignore[union-attr]

    tables = opened(grown).tables

    assert ("stars" in tables.data.schema().names, "stars" in tables.errors.schema().names) == (True, True)
    assert len(rows(store)) == 3


def test_what_an_overtaken_run_adds_as_its_successor_begins_is_among_the_files_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = str(tmp_path)
    ledger, tables = begun(sink)
    commit(ledger, tables, [done(sink, 0, 4)])
    late = done(sink, 4, 8)
    begin = FencedTable.begin

    def slowly(table: FencedTable, epoch: int | None = None, *, run: str = "") -> int:
        if table.uri.endswith("/data") and late.data_file not in tables.data_files:
            commit(ledger, tables, [late])
        return begin(table, epoch, run=run)

    successor, made = Ledger.open(sink, create=True), create_tables(sink, DATA, ERRORS)
    view, next_epoch = successor.committed(), ledger.epoch + 1
    with monkeypatch.context() as patched:
        patched.setattr(FencedTable, "begin", slowly)
        opened = open_tables(sink, DATA, ERRORS, epoch=next_epoch, made=made, view=view)

    assert opened.data_files == {*(one.data_file for one in view.current()), late.data_file}


def test_the_files_of_a_table_are_those_it_has_whatever_was_expected(tmp_path: Path) -> None:
    sink = str(tmp_path)
    ledger, tables = begun(sink)
    commit(ledger, tables, [done(sink, 0, 4), done(sink, 4, 8)])
    there = tables.data.names()

    assert len(there) == 2
    for expected in ((), there, {*there, "other"}, {min(there)}, {min(there), "other"}):
        assert tables.data.names(expected) == there
