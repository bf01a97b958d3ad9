import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.config import RunFailed
from pipelines.sink.receipt import FOOTER_KEY, Receipt
from pipelines.source.units import Unit
from pipelines.stages.write import WriteSpec, write_unit

DATA = pa.schema([("text", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([("text", pa.string()), ("_row", pa.int64()), ("_error_type", pa.string())])
UNIT = Unit(shard="../odd name/ä.jsonl", identity="v1", start=10, stop=13, last=True)
ANSWERS = pa.table(
    {
        "_prompt_tokens": pa.array([5, 6, None], pa.int32()),
        "_cached_tokens": pa.array([0, 4, None], pa.int32()),
        "_output_tokens": pa.array([1, 2, None], pa.int32()),
        "_device_seconds": pa.array([0.25, 0.5, None], pa.float64()),
        "_shared": [False, False, False],
    }
)


def spec(sink: Path) -> WriteSpec:
    return WriteSpec(sink_uri=str(sink), run="r", fingerprint="f", data_schema=DATA, errors_schema=ERRORS)


def some(schema: pa.Schema, *numbers: int) -> pa.Table:
    row: dict[str, Any] = {"text": "x", "_error_type": "too_long"}
    return pa.Table.from_pylist([{name: row.get(name, n) for name in schema.names} for n in numbers], schema)


def files(sink: Path) -> list[str]:
    return sorted(str(one.relative_to(sink)) for one in sink.rglob("*") if one.is_file())


def test_a_unit_becomes_two_files_and_the_footer_of_the_data_file_is_its_receipt(tmp_path: Path) -> None:
    receipt = write_unit(UNIT, some(DATA, 10, 12), some(ERRORS, 11), ANSWERS, spec(tmp_path), gold_rows=2)

    assert files(tmp_path) == [f"data/{receipt.data_file}", f"errors/{receipt.errors_file}"]
    data = (tmp_path / "data" / str(receipt.data_file)).read_bytes()
    errors = (tmp_path / "errors" / str(receipt.errors_file)).read_bytes()
    assert (receipt.data_bytes, receipt.data_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (receipt.errors_bytes, receipt.errors_sha256) == (len(errors), hashlib.sha256(errors).hexdigest())
    footer = Receipt.from_json(pq.read_metadata(io.BytesIO(data)).metadata[FOOTER_KEY])
    assert (footer.data_bytes, footer.data_sha256) == (0, "")
    assert (footer.attempt, footer.rows_ok, footer.errors_sha256) == (receipt.attempt, 2, receipt.errors_sha256)
    assert receipt.errors_by_type == {"too_long": 1}
    assert (receipt.prompt_tokens, receipt.cached_tokens, receipt.output_tokens) == (11, 4, 3)
    assert (receipt.device_seconds, receipt.gold_rows, receipt.gold_correct) == (0.75, 2, None)
    assert pq.read_table(io.BytesIO(data))["_row"].to_pylist() == [10, 12]
    assert pq.read_metadata(io.BytesIO(data)).row_group(0).column(1).statistics.max == 12


def test_without_dead_letters_there_is_no_errors_file_and_without_answers_a_data_file_all_the_same(
    tmp_path: Path,
) -> None:
    good = write_unit(UNIT, some(DATA, 10, 11, 12), ERRORS.empty_table(), ANSWERS, spec(tmp_path))
    bad = write_unit(UNIT, DATA.empty_table(), some(ERRORS, 10, 11, 12), ANSWERS, spec(tmp_path))

    assert good.errors_file is None
    assert files(tmp_path) == sorted([f"data/{good.data_file}", f"data/{bad.data_file}", f"errors/{bad.errors_file}"])
    assert ds.dataset(tmp_path / "data").schema.equals(DATA, check_metadata=True)  # one schema, no footer in it
    assert ds.dataset(tmp_path / "data").count_rows() == 3


def test_no_two_attempts_share_a_name(tmp_path: Path) -> None:
    names = {
        write_unit(UNIT, some(DATA, 10, 11, 12), some(ERRORS), ANSWERS, spec(tmp_path)).data_file for _ in range(20)
    }

    assert len(names) == 20
    assert len(files(tmp_path)) == 20


def test_a_unit_whose_rows_do_not_add_up_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 rows in, 2 ok"):
        write_unit(UNIT, some(DATA, 10, 11), some(ERRORS), ANSWERS, spec(tmp_path))

    assert files(tmp_path) == []


def test_a_table_that_is_not_in_the_schema_of_the_run_is_not_stored(tmp_path: Path) -> None:
    other = pa.table({"text": ["a", "b", "c"], "_row": ["not", "a", "number"]})
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        write_unit(UNIT, other, some(ERRORS), ANSWERS, spec(tmp_path))
    with pytest.raises(ValueError, match="columns"):
        write_unit(UNIT, other.rename_columns(["text", "row"]), some(ERRORS), ANSWERS, spec(tmp_path))

    assert files(tmp_path) == []


def test_a_put_that_fails_leaves_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = storage.put

    def full(uri: str, data: bytes) -> str | None:
        if "/data/" in uri:
            raise storage.StoreFailed(f"{uri}: the disk is full")
        return real(uri, data)

    monkeypatch.setattr(storage, "put", full)
    with pytest.raises(RunFailed, match="the disk is full"):
        write_unit(UNIT, some(DATA, 10, 12), some(ERRORS, 11), ANSWERS, spec(tmp_path))

    (left,) = files(tmp_path)
    assert left.startswith("errors/")  # dead letters came first; no receipt names them, `clean` removes them
