"""The audit of an output, on real tables: what is whole is found whole, and each harm is named by its check."""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink.audit import _ranges_check, audit
from pipelines.sink.audit_files import SHOWN
from pipelines.sink.output import Output
from pipelines.sink.receipt import FOOTER_KEY, Receipt
from pipelines.source.units import Unit
from pipelines.stages.write import WriteSpec, write_unit
from tests.receipts import receipt

DATA = pa.schema([("text", pa.string()), ("_shard", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([*DATA, pa.field("_error_type", pa.string())])
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
    sink: str, start: int, stop: int, *, shard: str = "a", bad: Sequence[int] = (), identity: str = "v1"
) -> Receipt:
    """One unit, written."""
    spec = WriteSpec(sink_uri=sink, run="run", fingerprint="f", data_schema=DATA, errors_schema=ERRORS)
    rows = [{"text": f"t{row}", "_shard": shard, "_row": row, "_error_type": "empty"} for row in range(start, stop)]
    data = pa.Table.from_pylist([row for row in rows if row["_row"] not in bad], DATA)
    dead = pa.Table.from_pylist([row for row in rows if row["_row"] in bad], ERRORS)
    unit = Unit(shard=shard, identity=identity, start=start, stop=stop, last=False)
    return write_unit(unit, data, dead, ANSWERS.empty_table(), spec)


def opened(sink: str) -> Output:
    """The output, empty. To be opened before units are done: it removes files that no receipt names."""
    return Output.open(sink, data_schema=DATA, errors_schema=ERRORS, fingerprint="f", identities={}, retain_hours=0)


def stored(sink: str, told: Receipt, rows: pa.Table, *, footer: Receipt | None = None) -> Receipt:
    """`rows` in the place of a unit's data file, and the receipt that agrees with its bytes."""
    out = io.BytesIO()
    with pq.ParquetWriter(out, rows.schema) as writer:
        writer.write_table(rows)
        text = replace(footer or told, data_bytes=0, data_sha256="").to_json()
        writer.add_key_value_metadata({FOOTER_KEY.decode(): text})
    whole = out.getvalue()
    storage.put(storage.join(sink, "data", told.data_file or ""), whole)
    return replace(told, data_bytes=len(whole), data_sha256=hashlib.sha256(whole).hexdigest())


def wrong(sink: str, **how: Any) -> dict[str, list[str]]:
    """What was found, by check."""
    return {check.name: check.findings for check in audit(sink, **how).checks if check.found}


def test_a_whole_output_is_found_whole_on_every_store(store: str) -> None:
    output = opened(store)
    output.commit([done(store, 0, 4), done(store, 4, 6, bad=[5]), done(store, 0, 3, shard="b", bad=[0, 1, 2])])

    found = audit(store)

    assert wrong(store) == {}
    assert (found.data_rows, found.error_rows) == (5, 4)
    assert {check.name: check.checked for check in found.checks} == {
        "ledger": 3,
        "units": 3,
        "files": 5,
        "counts": 3,
        "rows": 9,
        "footers": 3,
        "schema": 5,
        "table data": 3,
        "table errors": 2,
        "strays": 5,
    }


def test_where_no_output_is_nothing_is_checked_on_every_store(store: str) -> None:
    with pytest.raises(UserError, match="there is no output"):
        audit(store)


def test_a_lost_file_is_named_on_every_store(store: str) -> None:
    output = opened(store)
    lost = done(store, 0, 4)
    output.commit([lost, done(store, 4, 6)])
    storage.delete(storage.join(store, "data", lost.data_file or ""))

    assert wrong(store) == {
        "files": [f"data/{lost.data_file} is not there; it holds a rows 0 to 4; run the job's command again"]
    }


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_byte_anywhere_in_any_file_is_found(tmp_path: Path, seed: int) -> None:
    output = opened(str(tmp_path))
    output.commit([done(str(tmp_path), 0, 4, bad=[1]), done(str(tmp_path), 4, 6)])
    drawn = random.Random(seed)
    file = drawn.choice(sorted(tmp_path.glob("*/*.parquet")))
    while file.parent.name == "ledger":
        file = drawn.choice(sorted(tmp_path.glob("*/*.parquet")))
    whole = bytearray(file.read_bytes())
    whole[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
    file.write_bytes(whole)

    assert f"{file.parent.name}/{file.name}" in wrong(str(tmp_path))["files"][0]


def test_rows_are_counted_whatever_receipt_and_checksum_say(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, unit = str(tmp_path), done(str(tmp_path), 0, 4)
    rows = pa.table({"text": ["x"] * 4, "_shard": ["a", "a", "a", "b"], "_row": [0, 1, 1, 9]}, schema=DATA)
    output.commit([stored(sink, unit, rows)])

    assert wrong(sink) == {
        "rows": [
            "a rows 0 to 4: rows of b in its files",
            "a rows 0 to 4: row 1 twice or more",
            "a rows 0 to 4: row 9 in its files, but not of it",
            "a rows 0 to 4: row 2 and 1 more missing",
        ]
    }


def test_a_footer_that_tells_other_than_the_ledger_is_found(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, unit = str(tmp_path), done(str(tmp_path), 0, 1)
    rows = pa.table({"text": ["x"], "_shard": ["a"], "_row": [0]}, schema=DATA)
    output.commit([stored(sink, unit, rows, footer=replace(unit, output_tokens=99))])

    assert wrong(sink) == {"footers": [f"data/{unit.data_file}: another receipt"]}


def test_a_file_with_a_column_of_another_type_is_found(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, first, second = str(tmp_path), done(str(tmp_path), 0, 1), done(str(tmp_path), 1, 2)
    rows = pa.table({"text": [7], "_shard": ["a"], "_row": [1]})
    output.commit([first, stored(sink, second, rows)])

    assert wrong(sink) == {
        "schema": [f"data/{second.data_file} has other columns than data/{first.data_file}: text string / int64"]
    }


def test_a_column_that_joined_later_is_right_and_one_that_each_row_must_have_is_not(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, first, second = str(tmp_path), done(str(tmp_path), 0, 1), done(str(tmp_path), 1, 2)
    output.tables.data.grow(DATA.append(pa.field("stars", pa.int64())), output.tables.epoch)
    rows = pa.table({"text": ["x"], "_shard": ["a"], "_row": [1], "stars": [5]})
    output.commit([first, stored(sink, second, rows)])

    assert wrong(sink) == {}
    third = done(sink, 2, 3)
    output.commit([stored(sink, third, pa.table({"text": ["x"], "_row": [2]}))])
    assert wrong(sink)["table data"] == ["has files without _shard, which each row must have"]


def test_errors_of_another_type_than_told_are_found(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink = str(tmp_path)
    unit = done(sink, 0, 2, bad=[0])
    rows = pa.table({"text": ["t1"], "_shard": ["a"], "_row": [1]}, schema=DATA)
    told = replace(unit, errors_by_type={"too_long": 1})
    output.commit([stored(sink, told, rows)])

    assert wrong(sink) == {"counts": ["a rows 0 to 2: errors by type: {'too_long': 1} told, {'empty': 1} there"]}


def test_units_of_a_changed_shard_wait_and_are_accounted_for_wherever_they_lie(store: str) -> None:
    output = opened(store)
    waiting = done(store, 0, 2, identity="v2", bad=[0])
    output.commit([done(store, 0, 2), waiting])
    for folder in ("data", "errors"):
        name = waiting.data_file or ""
        there, aside = (storage.join(store, folder, *where) for where in ((name,), ("_waiting", name)))
        if not storage.exists(aside):
            storage.put(aside, storage.get(there))
            storage.delete(there)

    assert wrong(store) == {}
    notes = {check.name: check.notes for check in audit(store).checks if check.notes}
    assert notes == {"strays": ["2 files are of changed shards that are not whole yet; run again to finish them"]}

    storage.delete(storage.join(store, "data", "_waiting", waiting.data_file or ""))
    assert wrong(store) == {
        "files": [f"data/{waiting.data_file} is not there; it holds a rows 0 to 2; run the job's command again"]
    }


def test_a_file_that_readers_should_see_and_that_lies_aside_is_found(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, unit = str(tmp_path), done(str(tmp_path), 0, 2)
    output.commit([unit])
    (tmp_path / "data" / "_waiting").mkdir()
    (tmp_path / "data" / (unit.data_file or "")).rename(tmp_path / "data" / "_waiting" / (unit.data_file or ""))

    assert set(wrong(sink)) == {"files", "strays"}


def test_replaced_files_are_strays_unless_they_are_retained(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    sink, old = str(tmp_path), done(str(tmp_path), 0, 2)
    output.commit([old, replace(done(sink, 0, 2), fingerprint="g")])

    assert wrong(sink)["strays"] == [
        f"data/{old.data_file}: replaced, or the second of two attempts at a unit; the next run removes it"
    ]
    assert "strays" not in wrong(sink, retain_hours=1)


def test_many_findings_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    output = opened(str(tmp_path))
    output.commit([*(done(str(tmp_path), row, row + 1) for row in range(SHOWN + 3))])
    for file in (tmp_path / "data").glob("*.parquet"):
        file.unlink()

    (files,) = (check for check in audit(str(tmp_path)).checks if check.name == "files")

    assert (files.found, len(files.findings)) == (SHOWN + 3, SHOWN)


def test_units_that_share_a_row_or_were_read_from_two_versions_are_found() -> None:
    units = [receipt(start=0, stop=3), receipt(start=2, stop=5), receipt(start=5, stop=6, identity="v2")]

    assert _ranges_check(units).findings == [
        "a.parquet rows 0 to 3 and a.parquet rows 2 to 5 overlap",
        "a.parquet rows 2 to 5 and a.parquet rows 5 to 6 were read from different versions of the shard",
    ]
    assert _ranges_check([units[0], receipt(start=3, stop=3, last=True), receipt(start=3, stop=4)]).found == 0
