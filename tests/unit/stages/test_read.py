import datetime
import decimal
import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import SourceConfig, UserError
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import Shard, list_shards
from pipelines.source.units import Tail, UnitSize
from pipelines.stages.parcel import Parcel
from pipelines.stages.read import ReadSpec, apply_limit, count_rows, read_units
from tests.corpora import (
    BROKEN_LINES,
    PACKINGS,
    broken_jsonl,
    csv_text,
    jsonl,
    packed,
    parquet,
    reviews,
    ugly_prefix,
    write,
)

MIB = 2**20


def opened(
    root: Path, *, rows: int = 1000, size: int = MIB, max_row: int = MIB, **source: Any
) -> tuple[list[Shard], ReadSpec]:
    config = SourceConfig(uri=str(root), max_row_bytes=max_row, **source)
    shards = list_shards(config)
    schema = corpus_schema(shards, config, ())
    unit = UnitSize(rows=rows, bytes=size)
    return shards, ReadSpec(schema=schema, size=unit, max_row_bytes=max_row, columns=config.columns)


def read(root: Path, **settings: Any) -> list[dict[str, Any]]:
    """All rows of the only shard below `root`."""
    (shard,), spec = opened(root, **settings)
    return rows_of(read_units(shard, spec))


def rows_of(parcels: Any) -> list[dict[str, Any]]:
    return [row for parcel in parcels for row in parcel.rows.to_pylist()]


def values(rows: Sequence[dict[str, Any]], *names: str) -> list[Any]:
    """The named columns of rows without an error; the error's type where there is one."""
    return [row["_error_type"] or tuple(row[name] for name in names) for row in rows]


def noise(row: int) -> str:
    """A text that does not pack well."""
    return f"{random.Random(row).getrandbits(1200):x}"


REVIEWS = reviews(7)
WANTED = [(row["id"], row["text"]) for row in REVIEWS]


@pytest.mark.parametrize("ending", PACKINGS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "a b=c/ünï 日本.jsonl", "x.parquet"])
def test_every_format_and_packing_gives_the_same_rows(tmp_path: Path, name: str, ending: str) -> None:
    if name.endswith(".parquet"):
        ending, data = "", parquet(pa.Table.from_pylist(REVIEWS), row_group_size=3)
    elif name.endswith(".jsonl"):
        data = jsonl(REVIEWS)
    else:
        data = csv_text(REVIEWS, "\t" if name.endswith(".tsv") else ",")
    write(tmp_path / (name + ending), data)

    assert values(read(tmp_path), "id", "text") == WANTED


@pytest.mark.parametrize("ending", PACKINGS)
def test_each_line_of_a_text_shard_is_a_row_but_blank_ones(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"x.txt{ending}", "\ufeffone\r\n\n  é \nlast".encode())

    assert values(read(tmp_path), "text") == [("one",), ("  é ",), ("last",)]
    (shard,), _ = opened(tmp_path)
    assert count_rows(shard, 99) == 3


def test_an_error_in_a_text_shard_names_the_line_as_an_editor_counts_it(tmp_path: Path) -> None:
    write(tmp_path / "x.txt", b"one\n\n\nb\xffd\n")

    assert read(tmp_path)[1]["_error"].startswith("line 4: not UTF-8")


@pytest.mark.parametrize("ending", PACKINGS)
@pytest.mark.parametrize("document", [reviews(3), {"reviews": reviews(3)}])
def test_a_json_file_that_is_one_document_is_refused_in_one_line(tmp_path: Path, document: Any, ending: str) -> None:
    write(tmp_path / f"x.json{ending}", json.dumps(document, indent=1).encode())

    with pytest.raises(UserError, match=r"one JSON (array|object) over the whole file, not an object on each line"):
        opened(tmp_path)


def test_beside_other_shards_a_json_document_is_one_dead_letter(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(reviews(2)))
    write(tmp_path / "b.json", json.dumps(reviews(50), indent=1).encode())
    shards, spec = opened(tmp_path)

    (row,) = rows_of(read_units(shards[1], spec))

    assert row["_error_type"] == "unreadable_shard"
    assert "one JSON array" in row["_error"]
    assert count_rows(shards[1], 99) == 1


def test_a_json_file_with_an_object_on_each_line_is_read_as_such(tmp_path: Path) -> None:
    write(tmp_path / "x.json", b"\xef\xbb\xbf\n" + jsonl(reviews(3)) + b"[1]\n")

    assert values(read(tmp_path), "id") == [("0",), ("1",), ("2",), "unreadable"]


BAD_CELL = {
    "x.jsonl": b'{"id": 1, "n": 1.5, "t": "a"}\n{"id": 2, "n": 9007199254740993, "t": "b"}\n',
    "x.parquet": parquet(
        pa.table({"id": [1, 2], "n": [1.5, 2.5], "t": pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())})
    ),
}


@pytest.mark.parametrize("name", BAD_CELL)
def test_a_row_with_a_bad_cell_keeps_the_others_for_its_dead_letter(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, BAD_CELL[name])

    first, second = read(tmp_path)

    assert (first["_error_type"], second["_error_type"]) == (None, "unreadable")
    assert (first["id"], second["id"]) == (1, 2)
    assert [second["n"], second["t"]] == ([None, "b"] if name == "x.jsonl" else [2.5, None])


def test_rows_carry_their_number_in_the_shard_and_come_in_the_specs_columns(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl(reviews(5)))
    (shard,), spec = opened(tmp_path, rows=2)

    parcels = list(read_units(shard, spec))

    assert [(p.unit.start, p.unit.stop, p.unit.last) for p in parcels] == [(0, 2, False), (2, 4, False), (4, 5, True)]
    assert [row["_row"] for row in rows_of(parcels)] == [0, 1, 2, 3, 4]
    extra = [pa.field("_row", pa.int64()), pa.field("_error_type", pa.string()), pa.field("_error", pa.string())]
    for parcel in parcels:
        assert parcel.rows.schema == pa.schema([*spec.schema, *extra])
        assert parcel.unit.shard == "x.jsonl"
        assert parcel.unit.identity == shard.identity
        assert Parcel.from_block(parcel.to_block()).rows.equals(parcel.rows)


def test_a_unit_ends_before_it_grows_over_its_bytes(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl({"text": "x" * 1000} for _ in range(50)))
    (shard,), spec = opened(tmp_path, size=10_000)

    sizes = [parcel.rows.num_rows for parcel in read_units(shard, spec)]

    assert sum(sizes) == 50
    assert max(sizes) <= 10
    assert min(sizes[:-1]) >= 8


def test_the_shard_that_leads_a_run_begins_with_small_units(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl(reviews(500)))
    (shard,), spec = opened(tmp_path, rows=100)

    assert [parcel.rows.num_rows for parcel in read_units(shard, spec, leads=True)] == [32, 64, 100, 100, 100, 100, 4]
    assert [parcel.rows.num_rows for parcel in read_units(shard, spec)] == [100] * 5


def test_units_become_smaller_towards_the_end_of_a_run_and_not_of_a_shard_that_others_follow(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl(reviews(500)))
    (shard,), spec = opened(tmp_path, rows=100)

    def sizes(ends_at: int, *, leads: bool = False) -> list[int]:
        tail = Tail(ends_at=ends_at, shares=4, least=20)
        return [parcel.rows.num_rows for parcel in read_units(shard, spec, leads=leads, tail=tail)]

    assert sizes(500) == [100, 100, 75, 56, 42, 31, 24, 20, 20, 20, 12]
    assert sizes(500, leads=True) == [32, 64, 100, 76, 57, 42, 32, 24, 20, 20, 20, 13]
    assert sizes(2000) == [100] * 5
    assert sizes(800) == [100, 100, 100, 100, 100]


def test_a_row_larger_than_a_unit_is_a_unit_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl({"text": "x" * size} for size in (1, 5000, 1)))
    (shard,), spec = opened(tmp_path, size=2000)

    assert [parcel.rows.num_rows for parcel in read_units(shard, spec)] == [1, 1, 1]


# ---------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_is_one_unreadable_row_and_its_neighbours_are_data(tmp_path: Path, case: str) -> None:
    write(tmp_path / "x.jsonl", broken_jsonl(BROKEN_LINES[case]))

    rows = read(tmp_path)

    good = reviews(6)
    assert values(rows, "id") == [(row["id"],) for row in good[:3]] + ["unreadable"] + [(r["id"],) for r in good[3:]]
    bad = rows[3]
    assert bad["id"] == ("1" if case == "lone_surrogate" else None)  # of that one a cell is bad, not the line
    assert bad["text"] is None
    assert bad["_error"].startswith("line 4: ")
    assert len(bad["_error"]) < 500
    assert bad["_error"].isprintable()


def test_the_line_named_counts_the_blank_lines_which_are_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", b'\n{"a": 1}\n   \n\r\n{"a": \n{"a": 2}\n\n')

    rows = read(tmp_path)

    assert values(rows, "a") == [(1,), "unreadable", (2,)]
    assert rows[1]["_error"].startswith("line 5: not JSON")


@pytest.mark.parametrize(
    ("first", "later", "kept"),
    [
        (1, "1", "unreadable"),
        (1, 2.5, "unreadable"),
        (1, 2**63, "unreadable"),
        (1, 2**63 - 1, 2**63 - 1),
        (1, True, "unreadable"),
        (1.5, 2**53 + 1, "unreadable"),
        (1.5, 2**53, float(2**53)),
        (1.5, 2**60, float(2**60)),
        ("x", 7, "7"),
        ("x", True, "true"),
        ("x", {"a": [1, "b"]}, '{"a":[1,"b"]}'),
        (True, 1, "unreadable"),
        ([1], [2, "x"], "unreadable"),
        ({"a": 1}, {"a": "x"}, "unreadable"),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": 1.5}, {"a": 2**53 + 1}, "unreadable"),
        (2**63, 2**64, decimal.Decimal(2**64)),
    ],
)
def test_a_json_value_stays_what_it_is_or_its_row_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, later: Any, kept: Any
) -> None:
    monkeypatch.setattr("pipelines.source.schema.MOST_ROWS", 1)  # the schema does not see what comes later
    monkeypatch.setattr("pipelines.source.schema._ALL_ROWS", 1)
    monkeypatch.setattr("pipelines.source.schema._share", lambda most, *_: most)
    write(tmp_path / "x.jsonl", jsonl([{"v": first}, {"v": later}, {"v": first}]))

    rows = read(tmp_path)

    assert [row["_error_type"] or row["v"] for row in rows][1] == kept
    assert rows[0]["_error_type"] is None
    assert rows[2]["_error_type"] is None


def test_a_number_in_a_text_column_keeps_the_way_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", b'{"v": "x"}\n{"v": 1.10}\n{"v": 1e400}\n{"v": 123456789012345678901234567890}\n')

    assert values(read(tmp_path), "v") == [("x",), ("1.10",), ("1e400",), ("123456789012345678901234567890",)]


def test_a_float_beyond_its_range_is_no_infinity(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", b'{"v": 1.5}\n{"v": 1e400}\n')

    assert values(read(tmp_path), "v") == [(1.5,), "unreadable"]


LATE: list[dict[str, object]] = [
    {"a": 1, "o": {"k": 1}},
    {"a": 2, "late": 3, "o": {"z": 1}},
    {"late": 4},
    {"late": None},
    {"a": 5},
]


def test_keys_that_the_schema_lacks_are_counted_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.source.schema._share", lambda *_: 1)
    write(tmp_path / "x.jsonl", jsonl(LATE))
    (shard,), spec = opened(tmp_path, rows=2)

    parcels = list(read_units(shard, spec))

    assert values(rows_of(parcels), "a") == [(1,), (2,), (None,), (None,), (5,)]
    assert sum((Counter(parcel.left_out) for parcel in parcels), Counter()) == {"late": 2, "o.z": 1}
    assert Parcel.from_block(parcels[0].to_block()).left_out == parcels[0].left_out


@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_columns_of_a_shard_that_the_schema_was_not_found_from_are_counted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.source.schema._spread", lambda shards: shards[:1])  # as of more than 1,000
    write(tmp_path / "a.jsonl", jsonl(reviews(2)))
    rows = [{**row, "more": "x"} for row in reviews(3)]
    write(tmp_path / name, csv_text(rows) if name == "b.csv" else parquet(pa.Table.from_pylist(rows)))
    (_, shard), spec = opened(tmp_path)

    (parcel,) = read_units(shard, spec)
    (chosen,) = read_units(shard, replace(spec, columns=("id", "text")))

    assert parcel.left_out == {"more": 3}
    assert chosen.left_out == {}  # left out on purpose


def test_ragged_records_are_unreadable_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", b'id,text\n1,"a\nb"\n2\n\n3,c,d\n4,e\n')

    rows = read(tmp_path)

    assert values(rows, "id", "text") == [("1", "a\nb"), "unreadable", "unreadable", ("4", "e")]
    assert rows[1]["_error"].startswith("line 4: 1 cells, the header has 2")
    assert rows[2]["_error"].startswith("line 6: 3 cells")


def test_bad_utf8_in_a_cell_is_one_unreadable_row(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", b"\xef\xbb\xbfid,text\n1,a\n2,\xff\n3,c\n")

    assert values(read(tmp_path), "id") == [("1",), "unreadable", ("3",)]


def test_a_quote_that_is_never_closed_costs_its_own_line_alone(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", b'id,text\n1,a\n2,"open\n3,c\n4,"d"\n5,e\n')

    rows = read(tmp_path)

    # The quote that opens in line 3 is closed by the one that was to open in line 5; what follows is no CSV.
    assert values(rows, "id") == [("1",), "unreadable", ("5",)]
    write(tmp_path / "x.csv", b'id,text\n1,a\n2,"open\n3,c\n4,d\n')
    assert values(read(tmp_path), "id") == [("1",), "unreadable", ("3",), ("4",)]


def test_cells_are_read_as_the_type_that_another_format_gave_their_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", parquet(pa.table({"n": pa.array([1], pa.int32()), "f": [0.5]})))
    write(tmp_path / "b.csv", b"n,f\n7,1.25\n,\nx,1\n3000000000,1\n")
    shards, spec = opened(tmp_path)

    assert values(rows_of(read_units(shards[1], spec)), "n", "f") == [
        (7, 1.25),
        (None, None),
        "unreadable",
        "unreadable",
    ]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt", "x.parquet", "x.jsonl.zst"])
def test_a_row_that_is_too_long_is_one_row_and_never_held(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a"}, {"text": "b" * 200_000}, {"text": "c"}]
    data = {
        "jsonl": jsonl(rows),
        "csv": csv_text(rows),
        "txt": "\n".join(row["text"] for row in rows).encode(),
        "parquet": parquet(pa.Table.from_pylist(rows)),
    }
    write(tmp_path / name, data[name.split(".")[1]])

    found = read(tmp_path, max_row=100_000)

    assert values(found, "text") == [("a",), "too_large", ("c",)]
    assert "more than 100,000" in found[1]["_error"]
    assert len(found[1]["_error"]) < 500


def test_a_quoted_record_that_is_too_long_ends_where_its_quotes_do(tmp_path: Path) -> None:
    long = '"' + "line, with comma\n" * 10_000 + '"'
    write(tmp_path / "x.csv", f"id,text\n1,a\n2,{long}\n3,c\n".encode())

    assert values(read(tmp_path, max_row=50_000), "id") == [("1",), "too_large", ("3",)]


def test_bad_utf8_in_a_parquet_text_is_one_unreadable_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    write(tmp_path / "x.parquet", parquet(pa.table({"id": [1, 2, 3], "text": bad}), use_dictionary=False))

    rows = read(tmp_path)

    assert values(rows, "id", "text") == [(1, "a"), "unreadable", (3, "c")]
    assert rows[1]["_error"].startswith("row 1: column text: ")


def test_an_integer_that_a_float_cannot_hold_is_not_rounded(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", parquet(pa.table({"n": [1, 2**53 + 1, 3]})))
    write(tmp_path / "b.parquet", parquet(pa.table({"n": [0.5]})))
    shards, spec = opened(tmp_path)

    assert values(rows_of(read_units(shards[0], spec)), "n") == [(1.0,), "unreadable", (3.0,)]


def test_nanoseconds_that_microseconds_cannot_hold_are_not_cut_off(tmp_path: Path) -> None:
    # Without statistics the footer cannot tell before the start.
    table = pa.table({"t": pa.array([1000, 1001, 3000], pa.timestamp("ns"))})
    write(tmp_path / "a.parquet", parquet(table, write_statistics=False))

    assert [row["_error_type"] for row in read(tmp_path)] == [None, "unreadable", None]


# ---------------------------------------------------------------------------------------------- values


def test_nested_values_decimals_times_and_bytes_come_out_unchanged(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "o": pa.array([{"a": [1, None], "b": {"c": "é"}}, None, {"a": [], "b": None}]),
            "d": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-0.01")], pa.decimal128(10, 2)),
            "t": pa.array([when, None, when], pa.timestamp("us", "Asia/Tokyo")),
            "ms": pa.array([1, None, -1], pa.timestamp("ms")),
            "day": pa.array([datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)]),
            "raw": pa.array([b"\x00\xff", None, b""]),
            "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
            "u": pa.array([2**64 - 1, None, 0], pa.uint64()),
            "h": pa.array([0.5, None, -2.0], pa.float16()),
            "cat": pa.array(["x", None, "x"]).dictionary_encode(),
            "m": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int8())),
            "tags": pa.array([["a", None], None, []]),
            "pair": pa.array([[1, 2], [0, 255], [3, 4]], pa.list_(pa.uint8(), 2)),
            "a.b": pa.array([1, None, 2]),
        }
    )
    write(tmp_path / "x.parquet", parquet(table))

    rows = read(tmp_path)

    for name in table.column_names:
        assert [row[name] for row in rows] == table[name].to_pylist(), name
    assert {row["_error"] for row in rows} == {None}


def test_int96_timestamps_of_any_year_come_out_unchanged(tmp_path: Path) -> None:
    far = datetime.datetime(9999, 12, 31, 1, 2, 3, 4)
    table = pa.table({"t": pa.array([far], pa.timestamp("us"))})
    write(tmp_path / "x.parquet", parquet(table, use_deprecated_int96_timestamps=True))

    assert read(tmp_path)[0]["t"] == far


def test_columns_that_a_shard_lacks_are_null_and_others_than_the_specs_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", parquet(pa.table({"a": [1], "b": [2]})))
    write(tmp_path / "b.jsonl", jsonl([{"c": 3}]))
    shards, spec = opened(tmp_path, columns=("a", "c"))

    assert [row for shard in shards for row in values(rows_of(read_units(shard, spec)), "a", "c")] == [
        (1, None),
        (None, 3),
    ]
    assert spec.schema.names == ["a", "c"]


def test_a_shard_with_none_of_the_columns_still_has_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", parquet(pa.table({"a": [1, 2]})))
    write(tmp_path / "b.parquet", parquet(pa.table({"b": [1, 2, 3]})))
    shards, spec = opened(tmp_path, columns=("a",))

    assert values(rows_of(read_units(shards[1], spec)), "a") == [(None,)] * 3


# ---------------------------------------------------------------------------------------------- broken shards


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("rows", [300, 30_000])
def test_a_cut_shard_keeps_the_rows_before_the_cut_and_one_row_stands_for_the_rest(
    tmp_path: Path, ending: str, rows: int
) -> None:
    data = [{"id": row, "text": noise(row)} for row in range(rows)]
    whole = packed(jsonl(data), ending)
    (tmp_path / f"x.jsonl{ending}").write_bytes(whole[: len(whole) * 2 // 3])
    write(tmp_path / "y.jsonl", jsonl(data[:1]))  # of zstd, less than a block of 128 KiB tells nothing of its columns
    (shard, _), spec = opened(tmp_path)

    parcels = list(read_units(shard, spec))
    found = rows_of(parcels)

    assert [row["id"] for row in found[:-1]] == list(range(len(found) - 1))
    if rows > 1000 or ending == ".gz":
        assert len(found) > rows // 2
    assert found[-1]["_error_type"] == "unreadable_shard"
    assert [parcel.unit.last for parcel in parcels] == [False] * (len(parcels) - 1) + [True]
    assert count_rows(shard, 10**9) == len(found)


def test_broken_bytes_in_a_parquet_row_group_leave_the_groups_before_it(tmp_path: Path) -> None:
    rows = [{"id": row, "text": noise(row)} for row in range(3000)]
    data = bytearray(parquet(pa.Table.from_pylist(rows), row_group_size=1000, compression="zstd"))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    write(tmp_path / "x.parquet", bytes(data))

    found = read(tmp_path)

    assert [row["id"] for row in found[:1000]] == list(range(1000))
    assert found[-1]["_error_type"] == "unreadable_shard"
    assert found[-1]["_row"] == len(found) - 1 < 2000


def test_members_of_a_gzip_file_follow_one_another(tmp_path: Path) -> None:
    parts = [gzip.compress(jsonl(reviews(5, start=start))) for start in (0, 5)]
    (tmp_path / "x.jsonl.gz").write_bytes(parts[0] + parts[1] + bytes(512))

    assert values(read(tmp_path), "id") == [(str(row),) for row in range(10)]


def test_a_shard_that_changed_since_it_was_listed_is_one_unreadable_row(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", jsonl(reviews(5)))
    (shard,), spec = opened(tmp_path)
    file.write_bytes(jsonl(reviews(6)))

    (parcel,) = read_units(shard, spec)

    assert parcel.unit.last
    assert values(parcel.rows.to_pylist()) == ["unreadable_shard"]
    assert "changed since it was listed" in parcel.rows["_error"][0].as_py()


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.txt", "x.parquet"])
def test_a_shard_without_rows_is_one_unit_without_rows(tmp_path: Path, name: str) -> None:
    empty = {
        "x.csv": b"text\n",
        "x.jsonl": b"\n\n",
        "x.txt": b"",
        "x.parquet": parquet(pa.table({"text": pa.nulls(0)})),
    }
    write(tmp_path / "other.jsonl", jsonl([{"text": "a"}]))
    write(tmp_path / name, empty[name] or b"\xef\xbb\xbf")
    shards, spec = opened(tmp_path)

    (parcel,) = read_units(shards[1], spec)

    assert (parcel.unit.start, parcel.unit.stop, parcel.unit.last) == (0, 0, True)
    assert parcel.rows.num_rows == 0
    assert parcel.rows.schema.names == ["text", "_row", "_error_type", "_error"]


def test_an_ugly_prefix_adds_up(tmp_path: Path) -> None:
    counts = ugly_prefix(tmp_path)
    shards, spec = opened(tmp_path)

    found = {shard.path: rows_of(read_units(shard, spec)) for shard in shards}

    assert {path: len(found[path]) for path in counts} == counts
    assert found["broken.parquet"][0]["_error_type"] == "unreadable_shard"
    assert found["cut.jsonl.gz"][-1]["_error_type"] == "unreadable_shard"


# ---------------------------------------------------------------------------------------------- done, limit


def test_row_groups_that_are_done_are_not_read(tmp_path: Path) -> None:
    rows = [{"id": row, "text": noise(row)} for row in range(3000)]
    data = bytearray(parquet(pa.Table.from_pylist(rows), row_group_size=1000))
    middle = len(data) // 2
    data[middle : middle + 100] = bytes(100)
    write(tmp_path / "x.parquet", bytes(data))
    (shard,), spec = opened(tmp_path)

    found = rows_of(read_units(shard, spec, done=[(1000, 2000)]))

    assert [row["id"] for row in found] == [*range(1000), *range(2000, 3000)]


def test_where_all_rows_are_done_the_end_of_the_shard_is_a_unit_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", jsonl(reviews(5)))
    (shard,), spec = opened(tmp_path)

    (parcel,) = read_units(shard, spec, done=[(0, 2), (2, 5)])

    assert (parcel.unit.start, parcel.unit.stop, parcel.unit.last) == (5, 5, True)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.txt"])
def test_a_limit_ends_the_reading_but_not_the_shard(tmp_path: Path, name: str) -> None:
    rows = [{"text": str(row)} for row in range(10)]
    data = {
        "jsonl": jsonl(rows),
        "csv": csv_text(rows),
        "parquet": parquet(pa.Table.from_pylist(rows), row_group_size=4),
    }
    data["txt"] = "\n".join(row["text"] for row in rows).encode()
    write(tmp_path / name, data[name.split(".")[1]])
    (shard,), spec = opened(tmp_path)

    limited = list(read_units(shard, spec, limit=6))
    later = list(read_units(shard, spec, done=[(0, 6)]))

    assert values(rows_of(limited), "text") == [(str(row),) for row in range(6)]
    assert not any(parcel.unit.last for parcel in limited)
    assert values(rows_of(later), "text") == [(str(row),) for row in range(6, 10)]
    assert [parcel.unit.last for parcel in later] == [True]
    assert list(read_units(shard, spec, done=[(0, 6)], limit=6)) == []


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv", "x.parquet"])
def test_rows_are_counted_as_they_are_read_and_no_further_than_asked(tmp_path: Path, name: str) -> None:
    rows = reviews(30)
    data = {"jsonl": jsonl(rows), "csv": csv_text(rows), "parquet": parquet(pa.Table.from_pylist(rows))}
    write(tmp_path / name, data[name.split(".")[1]])
    (shard,), _ = opened(tmp_path)

    assert count_rows(shard, 10**9) == 30
    assert count_rows(shard, 12) == 12


def test_a_limit_takes_the_first_rows_in_shard_order(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", jsonl(reviews(10)))
    shards, _ = opened(tmp_path)

    assert [(shard.path, left) for shard, left in apply_limit(shards, 14)] == [("a.jsonl", None), ("b.jsonl", 4)]
    assert [(shard.path, left) for shard, left in apply_limit(shards, 10)] == [("a.jsonl", None)]
    assert [left for _, left in apply_limit(shards, 1000)] == [None, None, None]
    assert [left for _, left in apply_limit(shards, None)] == [None, None, None]


def test_an_object_in_a_text_column_is_told_as_json_that_reads_back(tmp_path: Path) -> None:
    value = {"a": ['"', "\\", "é", 1, 1.5, None, True], "ü": {}}
    write(tmp_path / "x.jsonl", jsonl([{"v": "text"}, {"v": value}]))

    assert json.loads(read(tmp_path)[1]["v"]) == value
