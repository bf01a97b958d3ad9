"""What a shard of any size takes to be read: rows a second and the peak memory of the one process that reads it.

    python -m benchmarks.reading [SHARE]        (default 1)

2 GB of Parquet in one row group and 5 GB of gzip JSONL, on disk, or that SHARE of them. The reader alone, from file to
parcels, in a process of its own; the schema is found as a run finds it. About 100 MiB are there before it reads.
"""

import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import REPOSITORY, circumstances
from pipelines.config import SourceConfig
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import list_shards
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, read_units

PARQUET_BYTES = 2 * 10**9
GZIP_BYTES = 5 * 10**9
TEXT_BYTES = 1000  # of one row
READERS_FLAG = "--read"


def texts(seed: int) -> Iterator[str]:
    """Texts that no compression shortens by much: the size on disk is what is asked for."""
    source = random.Random(seed)
    pool = source.randbytes(2**20).hex()
    while True:
        at = source.randrange(len(pool) - TEXT_BYTES)
        yield f"{source.getrandbits(64):x} {pool[at : at + TEXT_BYTES - 17]}"


def write_parquet(path: Path, size: int) -> int:
    """One row group of about `size` bytes; the rows."""
    rows = size // TEXT_BYTES
    source = texts(1)
    table = pa.table({"id": pa.array(range(rows), pa.int64()), "text": pa.array([next(source) for _ in range(rows)])})
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    return rows


def write_jsonl(path: Path, size: int) -> int:
    """A gzip file of about `size` bytes; the rows."""
    rows = 0
    source = texts(2)
    with path.open("wb") as file, gzip.open(file, "wb", compresslevel=1) as out:
        while file.tell() < size:
            for _ in range(1000):
                out.write(json.dumps({"id": rows, "text": next(source)}).encode() + b"\n")
                rows += 1
    return rows


def read(folder: str) -> None:
    """Read all below a folder, and print what that took. Runs in a process of its own."""
    config = SourceConfig(uri=folder)
    began = time.monotonic()
    (shard,) = list_shards(config)
    spec = ReadSpec(
        schema=corpus_schema([shard], config, ()),
        size=UnitSize(rows=512, bytes=32 * 2**20),
        max_row_bytes=config.max_row_bytes,
    )
    rows = errors = 0
    for parcel in read_units(shard, spec):
        parcel.to_block()
        rows += parcel.rows.num_rows
        errors += parcel.rows.num_rows - parcel.rows["_error_type"].null_count
    # ru_maxrss would count what the parent held when it forked.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(
        json.dumps(
            {
                "rows": rows,
                "errors": errors,
                "seconds": round(time.monotonic() - began, 1),
                "peak_mib": int(peak[1]) // 1024 if peak else None,
            }
        )
    )


def main(share: float) -> None:
    results: list[dict[str, Any]] = []
    for name, size, write in (
        ("x.parquet", PARQUET_BYTES, write_parquet),
        ("x.jsonl.gz", GZIP_BYTES, write_jsonl),
    ):
        with tempfile.TemporaryDirectory(prefix="reading-") as folder:
            path = Path(folder) / name
            wanted = write(path, int(size * share))
            command = [sys.executable, "-m", "benchmarks.reading", READERS_FLAG, folder]
            done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if (found["rows"], found["errors"]) != (wanted, 0):
                raise SystemExit(f"{name}: {wanted:,} rows were written, and read: {found}")
            mb = path.stat().st_size / 10**6
            results.append({"shard": name, "mb_on_disk": round(mb), **found})
            speed = found["rows"] / found["seconds"]
            print(f"{name:<12} {mb:7,.0f} MB  {speed:9,.0f} rows/s  peak {found['peak_mib']:,} MiB")
    print(
        json.dumps(
            {"benchmark": "reading", "results": results, **circumstances(f"python -m benchmarks.reading {share:g}")}
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == [READERS_FLAG]:
        read(sys.argv[2])
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 1.0)
