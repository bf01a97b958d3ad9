"""How many rows a second the data plane carries when the engine costs nothing, and whether memory stays flat.

    python -m benchmarks.dataplane [ROWS …]        (default 100000 1000000)

From Parquet to Parquet with the simulated engine at zero latency: read, render, tokenize, key, parse, write,
commit. Rows/s are those of the steady part, from the first engine ready to the last receipt.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import PipelineRun, circumstances, run_pipeline

ROWS_OF_A_SHARD = 50_000
WORDS = [
    "ship",
    "late",
    "well",
    "packed",
    "but",
    "torn",
    "colour",
    "as",
    "shown",
    "fits",
    "fine",
    "would",
    "not",
    "buy",
]


def write_corpus(
    folder: Path, rows: int, *, seed: int = 0, rows_of_a_shard: int = ROWS_OF_A_SHARD, rows_of_a_group: int = 10_000
) -> None:
    """Seeded reviews of 8 to 40 words, `rows` of them, each with its number."""
    folder.mkdir(parents=True)
    source = random.Random(seed)
    for first in range(0, rows, rows_of_a_shard):
        count = min(rows_of_a_shard, rows - first)
        text = [" ".join(source.choices(WORDS, k=source.randint(8, 40))) for _ in range(count)]
        table = pa.table({"id": pa.array(range(first, first + count), pa.int64()), "text": text})
        pq.write_table(table, folder / f"part-{first:09d}.parquet", row_group_size=rows_of_a_group)


def measure(rows: int, folder: Path) -> PipelineRun:
    corpus = folder / f"corpus-{rows}"
    write_corpus(corpus, rows)
    overrides = ["+job=classify", "engine=simulated", f"source.uri={corpus}", "job.gold=null", "tracking=none"]
    return run_pipeline(overrides, folder / f"output-{rows}")


def main(sizes: list[int]) -> None:
    results = []
    with tempfile.TemporaryDirectory(prefix="dataplane-") as folder:
        for rows in sizes:
            run = measure(rows, Path(folder))
            if run.summary["this_run"]["rows_ok"] != rows:
                raise SystemExit(f"{rows} rows went in, {run.summary['this_run']['rows_ok']} came out")
            mib = {kind: round(peak / 2**20) for kind, peak in sorted(run.peak_rss_bytes.items())}
            results.append(
                {
                    "rows": rows,
                    "rows_per_s": round(run.summary["rows_per_s"]),
                    "steady_s": round(run.summary["steady_s"], 1),
                    "wall_s": round(run.wall_s, 1),
                    "peak_mib_of_one_process": mib,
                }
            )
            print(f"{rows:>9} rows  {results[-1]['rows_per_s']:>7} rows/s  wall {run.wall_s:6.1f} s  peak MiB {mib}")
    command = f"python -m benchmarks.dataplane {' '.join(map(str, sizes))}"
    print(json.dumps({"benchmark": "dataplane", "results": results, **circumstances(command)}))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [100_000, 1_000_000])
