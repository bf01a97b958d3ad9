"""Shards made to harm the reader: they may cost themselves, never the process or its memory."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.corpora import (
    csv_text,
    dictionary_bomb,
    jsonl,
    line_bomb,
    nested_bomb,
    packed,
    page_bomb,
    parquet,
    write,
)

READ = """
import json, re, resource, sys
from pathlib import Path
import pyarrow.compute  # and pandas with it: not to be counted as the reader's memory
limit = int(sys.argv[2]) * 2**20
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipelines.config import SourceConfig, UserError
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import list_shards
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, read_units
config = SourceConfig(uri=sys.argv[1], max_row_bytes=4 * 2**20)
shards = list_shards(config)
schema = corpus_schema(shards, config, ())
spec = ReadSpec(schema=schema, size=UnitSize(rows=512, bytes=32 * 2**20), max_row_bytes=4 * 2**20)
rows, errors = 0, {}
for shard in shards:
    for parcel in read_units(shard, spec):
        parcel.to_block()
        rows += parcel.rows.num_rows
        for error in parcel.rows["_error_type"].drop_null().to_pylist():
            errors[error] = errors.get(error, 0) + 1
# ru_maxrss would count what the parent held when it forked.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps({"rows": rows, "errors": errors, "peak_mib": peak}))
"""


def read(path: Path, *, limit_mib: int = 0) -> dict[str, object]:
    """Rows, errors by type and peak memory of a process that reads all below `path`, with so much address space."""
    command = [sys.executable, "-c", READ, str(path), str(limit_mib)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=Path.cwd())
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(json.loads(run.stdout.splitlines()[-1]))


# Address space, not memory: the interpreter with Arrow, boto3 and pandas takes 1.2 GiB of it before it reads.
LIMIT_MIB = 2560


@pytest.mark.parametrize(
    ("bomb", "name", "rows", "errors"),
    [
        (dictionary_bomb, "x.parquet", 2_147_483, {}),
        (nested_bomb, "x.parquet", 3, {"too_large": 3}),
        (page_bomb, "x.parquet", 1, {"unreadable_shard": 1}),
        (line_bomb, "x.jsonl.zst", 2, {"unreadable_shard": 1}),
        (line_bomb, "x.jsonl.gz", 2, {"unreadable_shard": 1}),
        (line_bomb, "x.csv.zst", 1, {"unreadable_shard": 1}),
        (line_bomb, "x.txt.zst", 2, {"unreadable_shard": 1}),
    ],
    ids=["dictionary", "nested", "page", "zstd_line", "gzip_line", "csv", "text"],
)
def test_a_bomb_is_read_or_refused_within_bounded_memory(
    tmp_path: Path, bomb: object, name: str, rows: int, errors: dict[str, int]
) -> None:
    path = bomb(tmp_path / name)  # type: ignore[operator]
    assert path.stat().st_size < 16 * 2**20

    found = read(tmp_path, limit_mib=LIMIT_MIB)

    assert (found["rows"], found["errors"]) == (rows, errors)
    assert int(str(found["peak_mib"])) < 400


FUZZ = """
import random, sys
from pathlib import Path
import pyarrow as pa
from pipelines.source.formats import Format
from pipelines.source.shards import Shard, list_shards
from pipelines.config import SourceConfig
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, count_rows, read_units
folder, seeds = Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3]))
whole = (folder / "whole.bin").read_bytes()
name = sys.argv[4]
schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("o", pa.list_(pa.struct([("k", pa.string())])))])
spec = ReadSpec(schema=schema, size=UnitSize(rows=64, bytes=2**20), max_row_bytes=2**20)
broken = 0
for seed in seeds:
    chance = random.Random(seed)
    data = bytearray(whole)
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file = folder / name
    file.write_bytes(bytes(data))
    (shard,) = list_shards(SourceConfig(uri=str(file)))
    print("seed", seed, flush=True)
    at = 0
    ends = []
    for parcel in read_units(shard, spec):
        assert parcel.unit.start == at, (seed, parcel.unit)
        at = parcel.unit.stop
        ends.append(parcel.unit.last)
        assert parcel.rows.schema.names == ["id", "text", "o", "_row", "_error_type", "_error"]
        parcel.rows.to_pylist()
        broken += parcel.rows["_error_type"].null_count < parcel.rows.num_rows
    assert ends == [False] * (len(ends) - 1) + [True], (seed, ends)
    count_rows(shard, 10**6)
print("broken", broken)
"""


def fuzz(folder: Path, name: str, whole: bytes, seeds: int, start: int = 0) -> int:
    """Read a shard with flipped bits once for each seed in a process of its own; units with errors."""
    write(folder / "whole.bin", whole)
    command = [sys.executable, "-c", FUZZ, str(folder), str(start), str(start + seeds), name]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=Path.cwd())
    last = run.stdout.splitlines()[-1:] or ["nothing read"]
    assert run.returncode == 0, f"after {last[0]}, exit {run.returncode}: {run.stderr[-2000:]}"
    return int(last[0].split()[1])


def rows(count: int) -> pa.Table:
    chance = random.Random(0)
    return pa.table(
        {
            "id": range(count),
            "text": [f"row {row} {chance.getrandbits(60):x}" for row in range(count)],
            "o": [[{"k": str(row % 5)}] * (row % 3) for row in range(count)],
        }
    )


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_a_parquet_shard_with_flipped_bits_gives_rows_or_typed_errors(tmp_path: Path, compression: str) -> None:
    whole = parquet(rows(300), row_group_size=100, compression=compression)

    assert fuzz(tmp_path, "x.parquet", whole, seeds=60) > 0


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv"])
def test_a_text_shard_with_flipped_bits_gives_rows_or_typed_errors(tmp_path: Path, ending: str) -> None:
    table = rows(100).to_pylist()
    data = csv_text([{"id": row["id"], "text": row["text"]} for row in table]) if ".csv" in ending else jsonl(table)
    whole = packed(data, "." + ending.split(".")[-1])

    assert fuzz(tmp_path, f"x{ending}", whole, seeds=60) > 0


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_a_thousand_flipped_parquet_shards_give_rows_or_typed_errors(tmp_path: Path, compression: str) -> None:
    assert fuzz(tmp_path, "x.parquet", parquet(rows(300), row_group_size=100, compression=compression), 1000, 1000) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz"])
def test_a_large_shard_passes_in_bounded_memory(tmp_path: Path, name: str) -> None:

    words = [f"{random.Random(word).getrandbits(40):x}" for word in range(5000)]
    texts = [" ".join(random.Random(text).choices(words, k=80)) for text in range(1000)]
    if name.endswith(".parquet"):
        count = 400_000  # 350 MB in one row group
        table = pa.table({"id": range(count), "text": [texts[row % 1000] + str(row) for row in range(count)]})
        write(tmp_path / name, parquet(table, row_group_size=count))
        del table
    else:
        count = 1_000_000  # 1 GB unpacked
        with gzip.open(tmp_path / name, "wt", compresslevel=1) as out:
            for row in range(count):
                out.write(json.dumps({"id": row, "text": texts[row % 1000] + str(row)}) + "\n")

    found = read(tmp_path)

    assert (found["rows"], found["errors"]) == (count, {})
    assert int(str(found["peak_mib"])) < 400
