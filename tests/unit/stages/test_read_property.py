"""Whatever the units, the formats and what is done already: every row comes once, in order, with its values."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config import SourceConfig
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import list_shards
from pipelines.source.units import UnitSize
from pipelines.stages import pieces
from pipelines.stages.read import ReadSpec, count_rows, read_units
from tests.corpora import csv_text, jsonl, parquet, write

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30)
BAD = {"jsonl": b"{broken", "csv": b"one cell too few"}


@st.composite
def shards(draw: st.DrawFn) -> tuple[str, bytes, list[tuple[int, str] | None]]:
    """Name, bytes and rows of a shard; None: a row that cannot be read."""
    shape = draw(st.sampled_from(["jsonl", "csv", "txt", "parquet"]))
    texts = draw(st.lists(st.none() | TEXT if shape in BAD else TEXT, max_size=40))
    rows = [None if text is None else (number, text) for number, text in enumerate(texts)]
    if shape == "parquet":
        table = pa.table({"n": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
        group = draw(st.integers(1, 20))
        return "x.parquet", parquet(table, row_group_size=group, use_dictionary=draw(st.booleans())), rows
    ending = draw(st.sampled_from(["", ".gz", ".zst"]))
    if shape == "txt":
        lines = [text.replace("\n", " ") for text in texts if text is not None]
        data = "".join(line + "\n" for line in lines).encode()
        return f"x.txt{ending}", data, [(0, line) for line in lines if line.encode().strip()]
    parts = []
    for row in rows:
        if row is None:
            parts.append(BAD[shape] + b"\n")
        elif shape == "jsonl":
            parts.append(jsonl([{"n": row[0], "text": row[1]}]))
        else:
            parts.append(csv_text([{"n": str(row[0]), "text": row[1]}]).removeprefix(b"n,text\n"))
    header = b"n,text\n" if shape == "csv" else b""
    return f"x.{shape}{ending}", header + b"".join(parts), rows


@st.composite
def ranges(draw: st.DrawFn, rows: int) -> list[tuple[int, int]]:
    cuts = sorted(draw(st.sets(st.integers(0, rows), max_size=8)))
    return [(start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=False) if draw(st.booleans())]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), shard=shards(), rows=st.integers(1, 12), size=st.integers(20, 2000), piece=st.integers(1, 50))
def test_units_and_what_is_done_cover_every_row_once_in_order_with_equal_values(
    data: st.DataObject, shard: tuple[str, bytes, list[tuple[int, str] | None]], rows: int, size: int, piece: int
) -> None:
    name, content, wanted = shard
    done = data.draw(ranges(len(wanted)))
    limit = data.draw(st.none() | st.integers(1, len(wanted) + 2))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, content)
        # Gives the columns, in a format that tells their types.
        write(Path(folder) / "~.parquet", parquet(pa.table({"n": pa.array([0]), "text": ["x"]})))
        config = SourceConfig(uri=folder)
        found = [one for one in list_shards(config) if one.path == name]
        if not found:  # an empty file is no shard
            assert not wanted
            return
        spec = ReadSpec(
            schema=corpus_schema(list_shards(config), config, ()),
            size=UnitSize(rows=rows, bytes=size),
            max_row_bytes=2**20,
        )
        before = pieces.PIECE_ROWS
        try:
            pieces.PIECE_ROWS = piece
            parcels = list(read_units(found[0], spec, done=done, limit=limit))
        finally:
            pieces.PIECE_ROWS = before
        assert count_rows(found[0], 10**6) == len(wanted)

    end = len(wanted) if limit is None else min(limit, len(wanted))
    gone = {row for start, stop in done for row in range(start, stop)}
    expected = [row for row in range(end) if row not in gone]
    assert [row for parcel in parcels for row in range(parcel.unit.start, parcel.unit.stop)] == expected
    assert [row for parcel in parcels for row in parcel.rows["_row"].to_pylist()] == expected
    read = [row for parcel in parcels for row in parcel.rows.to_pylist()]
    assert [shown(row, name) for row in read] == [wanted[row] and shown_wanted(wanted[row], name) for row in expected]
    # The shard's end is told once, by the last unit; a limit that was reached tells none.
    ends = [parcel.unit.last for parcel in parcels]
    reached = limit is not None and limit <= len(wanted)
    assert ends == ([False] * len(ends) if reached else [False] * (len(ends) - 1) + [True])
    for parcel in parcels:
        assert parcel.unit.rows <= rows
        assert parcel.unit.rows or parcel.unit.last


def shown(row: dict[str, Any], name: str) -> Any:
    if row["_error_type"] is not None:
        return None
    return row["text"] if ".txt" in name else (row["n"], row["text"])


def shown_wanted(row: tuple[int, str] | None, name: str) -> Any:
    return row[1] if row and ".txt" in name else row
