from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.config import SourceConfig, UserError
from pipelines.source import schema as schema_module
from pipelines.source.schema import RESERVED, corpus_schema
from pipelines.source.shards import list_shards
from tests.corpora import csv_text, jsonl, parquet, reviews, ugly_prefix, write

TEXT = pa.string()


def schema_of(root: Path, needed: Sequence[str] = (), **settings: object) -> pa.Schema:
    config = SourceConfig(uri=str(root), **settings)  # type: ignore[arg-type]
    return corpus_schema(list_shards(config), config, needed)


def tables(root: Path, *columns: dict[str, pa.Array]) -> None:
    for number, one in enumerate(columns):
        write(root / f"{number}.parquet", parquet(pa.table(one)))


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (pa.uint8(), pa.int16()),
        (pa.uint16(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.decimal128(20, 0)),
        (pa.float16(), pa.float32()),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.binary(4), pa.binary()),
        (pa.large_binary(), pa.binary()),
        (pa.timestamp("ms"), pa.timestamp("us")),
        (pa.timestamp("ns"), pa.timestamp("us")),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.null(), pa.string()),
        (pa.decimal128(12, 3), pa.decimal128(12, 3)),
        (pa.list_(pa.uint8()), pa.list_(pa.int16())),
        (pa.large_list(pa.null()), pa.list_(pa.string())),
        (pa.list_(pa.uint64(), 2), pa.list_(pa.decimal128(20, 0))),
        (pa.struct([("a", pa.uint32())]), pa.struct([("a", pa.int64())])),
        (pa.map_(pa.string(), pa.uint8()), pa.map_(pa.string(), pa.int16())),
    ],
)
def test_types_that_delta_lacks_are_widened_without_loss(tmp_path: Path, found: pa.DataType, kept: pa.DataType) -> None:
    tables(tmp_path, {"x": pa.nulls(2, found)})

    assert schema_of(tmp_path).field("x").type == kept


@pytest.mark.parametrize(
    "kind",
    [pa.time64("us"), pa.time32("ms"), pa.duration("us"), pa.decimal256(60, 2), pa.struct([("t", pa.time64("us"))])],
)
def test_a_type_without_an_equal_in_delta_is_refused_by_name(tmp_path: Path, kind: pa.DataType) -> None:
    tables(tmp_path, {"text": pa.array(["a"]), "when": pa.nulls(1, kind)})

    with pytest.raises(UserError, match=r"column 'when' of shard '0\.parquet'.*source\.columns"):
        schema_of(tmp_path)
    assert schema_of(tmp_path, columns=("text",)).names == ["text"]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int64(), pa.uint64(), pa.decimal128(20, 0)),
        (pa.decimal128(5, 2), pa.int32(), pa.decimal128(12, 2)),
        (pa.null(), pa.int8(), pa.int8()),
        (
            pa.struct([("a", pa.int8())]),
            pa.struct([("b", pa.string())]),
            pa.struct([("a", pa.int8()), ("b", pa.string())]),
        ),
        (pa.list_(pa.int8()), pa.list_(pa.float64()), pa.list_(pa.float64())),
    ],
)
def test_two_shards_types_become_the_one_that_holds_both(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, both: pa.DataType
) -> None:
    tables(tmp_path / "forth", {"x": pa.nulls(1, one)}, {"x": pa.nulls(1, other)})
    tables(tmp_path / "back", {"x": pa.nulls(1, other)}, {"x": pa.nulls(1, one)})

    assert schema_of(tmp_path / "forth").field("x").type == both
    back = schema_of(tmp_path / "back").field("x").type
    assert back == both or {field.name for field in back} == {field.name for field in both}


@pytest.mark.parametrize(
    ("one", "other"),
    [(pa.int64(), pa.string()), (pa.bool_(), pa.int8()), (pa.timestamp("us"), pa.timestamp("us", "UTC")),
     (pa.list_(pa.int8()), pa.int8()), (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())]))],
)  # fmt: skip
def test_a_true_conflict_names_the_column_both_types_and_both_shards(
    tmp_path: Path, one: pa.DataType, other: pa.DataType
) -> None:
    tables(tmp_path, {"x": pa.nulls(1, pa.null())}, {"x": pa.nulls(1, one)}, {"x": pa.nulls(1, other)})

    with pytest.raises(UserError) as told:
        schema_of(tmp_path)

    message = str(told.value)
    for part in ("'x'", str(one), str(other), "'1.parquet'", "'2.parquet'", "source.exclude", "source.columns"):
        assert part in message
    assert "\n" not in message


def test_nanoseconds_are_refused_where_the_footer_shows_that_microseconds_would_lose_some(tmp_path: Path) -> None:
    tables(tmp_path / "whole", {"t": pa.array([5_000], pa.timestamp("ns"))})
    tables(tmp_path / "parts", {"t": pa.array([5_000, 5_001], pa.timestamp("ns"))})

    assert schema_of(tmp_path / "whole").field("t").type == pa.timestamp("us")
    with pytest.raises(UserError, match=r"column 't'.*parts of a microsecond"):
        schema_of(tmp_path / "parts")


def test_columns_come_in_the_order_of_the_first_shard_then_new_ones(tmp_path: Path) -> None:
    tables(tmp_path, {"b": pa.array([1]), "a": pa.array([1])}, {"c": pa.array([1]), "a": pa.array([1])})

    assert schema_of(tmp_path).names == ["b", "a", "c"]


def test_jsonl_types_come_from_its_values(tmp_path: Path) -> None:
    row = {"i": 1, "f": 1.5, "b": True, "s": "x", "n": None, "l": [1, 2.5], "o": {"k": [{"z": 1}]}, "e": {}, "u": 2**63}
    write(tmp_path / "a.jsonl", jsonl([row]))

    kinds = {field.name: field.type for field in schema_of(tmp_path)}

    nested = pa.struct([("k", pa.list_(pa.struct([("z", pa.int64())])))])
    text = pa.string()
    assert kinds == {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": text, "n": text,
                     "l": pa.list_(pa.float64()), "o": nested, "e": text, "u": pa.decimal128(38, 0)}  # fmt: skip


def test_a_jsonl_key_with_values_of_several_kinds_is_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl([{"x": 1}, {"x": "n/a"}, {"x": [1]}]))

    assert schema_of(tmp_path).field("x").type == pa.string()


def test_text_that_looks_like_a_date_or_a_number_stays_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl([{"when": "2020-01-01T00:00:00", "zip": "01234"}]))
    write(tmp_path / "b.csv", b"when,zip\n2020-01-01,01234\n")

    assert set(schema_of(tmp_path).types) == {pa.string()}


def test_csv_cells_take_the_type_that_another_format_gives_their_column(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"id,text,only\n1,x,2\n")
    tables(tmp_path, {"id": pa.array([1], pa.int32())})

    kinds = {field.name: field.type for field in schema_of(tmp_path)}
    assert kinds == {"id": pa.int32(), "text": pa.string(), "only": pa.string()}


def test_csv_cells_cannot_become_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"id\n1\n")
    tables(tmp_path, {"id": pa.array([[1]])})

    with pytest.raises(UserError, match=r"'id' is list.*0\.parquet.*text in shard 'a\.csv'"):
        schema_of(tmp_path)


def test_source_columns_restricts_but_never_what_the_job_needs(tmp_path: Path) -> None:
    tables(tmp_path, {name: pa.array([1]) for name in "abcd"})

    assert schema_of(tmp_path, needed=["c"], columns=("a",)).names == ["a", "c"]


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    tables(tmp_path, {"text": pa.array(["x"]), "label": pa.array(["x"])})

    with pytest.raises(UserError, match=r"the job names column 'txt'.*Did you mean 'text'\?.*text, label"):
        schema_of(tmp_path, needed=["txt"])
    with pytest.raises(UserError, match=r"source\.columns names column 'lable'"):
        schema_of(tmp_path, columns=("lable",))


@pytest.mark.parametrize("name", [*RESERVED, "_ROW"])
def test_a_column_that_the_output_writes_itself_is_refused(tmp_path: Path, name: str) -> None:
    tables(tmp_path, {"text": pa.array(["x"]), name: pa.array(["x"])})

    with pytest.raises(UserError, match=rf"column '{name}'.*output uses itself.*source\.columns"):
        schema_of(tmp_path)
    assert schema_of(tmp_path, columns=("text",)).names == ["text"]


def test_columns_that_differ_by_case_alone_are_refused(tmp_path: Path) -> None:
    tables(tmp_path, {"Text": pa.array(["x"])}, {"text": pa.array(["x"])})

    with pytest.raises(UserError, match=r"'Text' \(shard '0\.parquet'\) and 'text' \(shard '1\.parquet'\)"):
        schema_of(tmp_path)


def test_a_broken_shard_does_not_hide_the_schema_of_the_others(tmp_path: Path) -> None:
    ugly_prefix(tmp_path)

    assert set(schema_of(tmp_path).names) == {"id", "text"}


def test_a_corpus_of_nothing_but_broken_shards_is_refused_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"no parquet at all")

    with pytest.raises(UserError, match=r"no shard of .* can be read; the first, 'a\.parquet': Parquet"):
        schema_of(tmp_path)


def test_of_many_shards_the_first_the_last_and_those_between_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_module, "MOST_SHARDS", 3)
    for number in range(9):
        write(tmp_path / f"{number}.jsonl", jsonl([{f"only_{number}": 1}]))

    assert schema_of(tmp_path).names == ["only_0", "only_4", "only_8"]


def test_an_extension_type_is_refused_and_never_brought_to_life(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    pickled = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    field = pa.field("x", pa.binary(), metadata=metadata)
    table = pa.table([pa.array([b"a"]), pa.array(["t"])], schema=pa.schema([field, pa.field("text", pa.string())]))
    write(tmp_path / "a.parquet", parquet(table))

    with pytest.raises(UserError, match=r"column 'x'.*extension type 'arrow\.py_extension_type'"):
        schema_of(tmp_path)
    assert schema_of(tmp_path, columns=("text",)).names == ["text"]
    assert not marker.exists()


def test_a_csv_column_without_a_name_gets_one(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b",text\n0,a\n")

    assert schema_of(tmp_path).names == ["column_1", "text"]


def test_tsv_and_text_shards_have_columns_too(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv.gz", csv_text(reviews(2), "\t"))
    write(tmp_path / "b.txt", b"one\ntwo\n")

    assert schema_of(tmp_path).names == ["id", "text"]
