"""How many units an engine gets at once follows from how many rows they have."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.config import SourceConfig
from pipelines.flow_sizes import units_in_flight
from pipelines.source.shards import list_source
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, rows_a_unit
from tests.runs import write_texts

SPEC = ReadSpec(schema=pa.schema([("text", pa.string())]), size=UnitSize(rows=512, bytes=2**20), max_row_bytes=2**20)


def mean(folder: Path) -> float:
    return rows_a_unit(list_source(SourceConfig(uri=str(folder))).shards, SPEC)


def test_small_shards_make_small_units_and_large_ones_full_ones(tmp_path: Path) -> None:
    write_texts(tmp_path / "small", [["a", "b", "c"]] * 30)
    write_texts(tmp_path / "large", [["a"] * 2000] * 2)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "few.jsonl").write_text('{"text": "a"}\n' * 5)
    (tmp_path / "lines" / "many.jsonl").write_text('{"text": "a"}\n' * 40_000)

    assert mean(tmp_path / "small") == 3
    assert mean(tmp_path / "large") == 512
    assert mean(tmp_path / "lines") == (5 + 512) / 2


@pytest.mark.parametrize(
    ("window_rows", "rows", "units"),
    [
        (384, 512, 4),  # engine.units_in_flight: enough
        (384, 3, 192),
        (384, 1, 256),  # no more than so many, each of which costs something
        (6144, 512, 18),
        (12, 3, 6),
    ],
)
def test_an_engine_gets_as_many_units_as_hold_the_rows_that_it_wants(window_rows: int, rows: int, units: int) -> None:
    assert units_in_flight(4, window_rows, rows) == units
