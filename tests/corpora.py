"""Corpora for tests: the same rows in every format and packing, and shards as ugly as they come.

Every builder writes to a local folder and returns the path it wrote.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Rows = Sequence[Mapping[str, Any]]

PACKINGS = ("", ".gz", ".gzip", ".zst", ".zstd")


def packed(data: bytes, ending: str) -> bytes:
    """`data` as a file with this ending would hold it."""
    if ending in (".gz", ".gzip"):
        return gzip.compress(data, compresslevel=1, mtime=0)
    if ending in (".zst", ".zstd"):
        return zstandard.compress(data, 1)
    return data


def write(path: Path, data: bytes) -> Path:
    """A file, with its folders, packed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(data, path.suffix))
    return path


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def csv_text(rows: Rows, delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def reviews(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Plain rows with an id and a text that needs quoting in some formats."""
    return [
        {"id": str(row), "text": f'review {row}: it was, "so to say",\n fine é 日本'}
        for row in range(start, start + count)
    ]


# ---------------------------------------------------------------------------------------------- ugly rows

BROKEN_LINES: dict[str, bytes] = {
    "cut": b'{"id": "1", "text": "abc',
    "no_json": b"hello there",
    "array": b'["a", "b"]',
    "bare_null": b"null",
    "two_objects": b'{"id": "1"}{"id": "2"}',
    "bad_utf8": b'{"id": "1", "text": "\xff\xfe"}',
    "lone_surrogate": b'{"id": "1", "text": "\\ud800"}',
    "deep": b'{"id": ' + b"[" * 100_000 + b"}",
    "raw_control": b'{"id": "1", "text": "a\x01b"}',
}


def broken_jsonl(bad: bytes, around: int = 3) -> bytes:
    """A bad line between good ones."""
    return jsonl(reviews(around)) + bad + b"\n" + jsonl(reviews(around, start=around))


def ugly_prefix(root: Path) -> dict[str, int]:
    """A prefix of everything that points 4 and 11 of the issue name; rows of each readable shard, by path.

    `cut.jsonl.gz` (rows, then a break) and `broken.parquet` (no row) end in one row that stands for what is lost.
    Besides shards it holds what is none: markers, hidden files and folders, empty files, files of no known format.
    """
    write(root / "plain.jsonl", jsonl(reviews(40)))
    write(root / "a b=c/ünï 日本.csv.gz", csv_text(reviews(30)))
    write(root / "deep/er/x.tsv.zst", csv_text(reviews(20), "\t"))
    write(root / "table.parquet", parquet(pa.Table.from_pylist(reviews(50)), row_group_size=20))
    write(root / "lines.jsonl.gz", broken_jsonl(b"{oops"))
    write(root / "ragged.csv", b"id,text\n1,one\n2\n3,three,more\n4,four\n")
    counts = {"plain.jsonl": 40, "a b=c/ünï 日本.csv.gz": 30, "deep/er/x.tsv.zst": 20, "table.parquet": 50}
    counts |= {"lines.jsonl.gz": 7, "ragged.csv": 4}
    whole = packed(jsonl(reviews(20_000)), ".gz")
    (root / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (root / "broken.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    for name in ("_SUCCESS", ".hidden.jsonl", "_temporary/0/part.jsonl", ".spark/x.csv", "notes.md"):
        write(root / name, b'{"id": "1"}\n')
    (root / "empty.jsonl").write_bytes(b"")
    return counts


KINDS = {
    "nested": [{"a": 1, "b": ["x", None]}, {"a": None, "b": []}],
    "price": [Decimal("12.50"), Decimal("-0.01")],
    "at": [datetime(2024, 2, 29, 12, 0, 0, 123456, UTC), None],
    "blob": [b"\x00\xff", b""],
    "a b": [1, None],
    "x=1": [1.5, -0.0],
    "p,(q)": ["é", "日本"],
}  # columns that no prompt needs, with odd names and types


def ugly_rows(root: Path) -> tuple[dict[str, int], dict[tuple[str, int], str]]:
    """More below the same prefix: shards by path with their rows, and the rows that no engine can be asked, with why.

    For a job whose prompt is `text` and, where there are any, the first of `tags`; rows over 100,000 bytes are too
    large. `kinds.parquet` has the columns of `KINDS` besides.
    """
    cells: list[Any] = ["fine", None, "", " \t\n", 7, ["a", 1], "word " * 9000, "x" * 200_000]
    write(root / "cells.jsonl.zst", jsonl([{"text": cell} for cell in cells]))
    texts = pa.array([b"good", b"\xff\xfe", b"good"], pa.binary()).view(pa.string())
    write(root / "bad_utf8.parquet", parquet(pa.table({"text": texts})))
    write(root / "notes.txt", b"one\n\n  \ntwo\nb\xffd\nthree")
    write(root / "tags.jsonl", jsonl([{"text": "a", "tags": ["x"]}, {"text": "b", "tags": []}, {"text": "c"}]))
    write(root / "kinds.parquet", parquet(pa.table({"text": ["one", "two"], **KINDS})))
    dead = {("cells.jsonl.zst", row): "empty" for row in (1, 2, 3)}
    dead |= {("cells.jsonl.zst", 6): "too_long", ("cells.jsonl.zst", 7): "too_large"}
    dead |= {("bad_utf8.parquet", 1): "unreadable", ("notes.txt", 2): "unreadable", ("tags.jsonl", 1): "template"}
    return {"cells.jsonl.zst": 8, "bad_utf8.parquet": 3, "notes.txt": 4, "tags.jsonl": 3, "kinds.parquet": 2}, dead


# ---------------------------------------------------------------------------------------------- bombs


def dictionary_bomb(path: Path, gib: float = 2.0) -> Path:
    """A small Parquet file that holds `gib` GiB of text: one text of 1,000 bytes, repeated."""
    rows = int(gib * 2**30 / 1000)
    text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array(["x" * 1000]))
    return write(path, parquet(pa.table({"text": text}), row_group_size=rows, store_schema=False))


def nested_bomb(path: Path, mib_per_row: int = 1024, rows: int = 3) -> Path:
    """A small Parquet file with rows that are lists of one large text, over and over."""
    texts = mib_per_row
    items = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows * texts), pa.array(["x" * 2**20]))
    lists = pa.ListArray.from_arrays(pa.array([row * texts for row in range(rows + 1)], pa.int32()), items)
    return write(path, parquet(pa.table({"text": lists}), compression="zstd", dictionary_pagesize_limit=2**22))


def page_bomb(path: Path, gib: float = 0.5) -> Path:
    """A small Parquet file with a page that unpacks to `gib` GiB."""
    rows = int(gib * 1024)
    table = pa.table({"text": pa.repeat(pa.scalar("x" * 2**20), rows)})
    options: dict[str, Any] = {"use_dictionary": False, "compression": "zstd", "data_page_size": 2**31 - 1}
    return write(path, parquet(table, write_batch_size=rows, max_rows_per_page=rows, **options))


def line_bomb(path: Path, gib: float = 1.0) -> Path:
    """A small packed file, gzip or zstd by its name, of one line of `gib` GiB between two good ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, last = jsonl(reviews(1)), b"\n" + jsonl(reviews(1, start=1))
    blob = b"x" * 2**20
    with path.open("wb") as raw, _packing(raw, path.suffix) as out:
        out.write(first)
        for _ in range(int(gib * 1024)):
            out.write(blob)
        out.write(last)
    return path


def _packing(raw: BinaryIO, ending: str) -> Any:
    return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) if ending == ".gz" else zstandard.open(raw, "wb")
