"""How busy one pool of engines is kept: eight that answer 500 rows a second each, from Parquet to Parquet.

    python -m benchmarks.pool [ENGINES [ROWS_PER_S [ROWS]]]        (default 8 500 60000)

Simulated engines with 64 places and a latency that makes them so fast. Told for the steady part, from the first engine
ready to the last receipt: `busy`, the share of that time in which an engine had a row in it; `full`, the share of all
places that had one. A full engine answers at its rate, one that is merely busy may have a single row in it.
"""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.dataplane import write_corpus
from benchmarks.measure import circumstances, run_pipeline

PLACES = 64


def main(engines: int, rows_per_s: int, rows: int) -> None:
    latency_s = PLACES / rows_per_s
    with tempfile.TemporaryDirectory(prefix="pool-") as folder:
        write_corpus(Path(folder) / "corpus", rows, rows_of_a_shard=5_000)
        run = run_pipeline(
            [
                *("+job=classify", "engine=simulated", "job.gold=null", "tracking=none", "dedup=none"),
                *(f"source.uri={folder}/corpus", f"engine.replicas={engines}", f"model.max_num_seqs={PLACES}"),
                f"engine.simulated.latency_s={latency_s}",
            ],
            Path(folder) / "output",
        )
    done, steady_s = run.summary["this_run"], float(run.summary["steady_s"])
    if done["rows_ok"] != rows:
        raise SystemExit(f"{rows} rows went in, {done['rows_ok']} came out")
    result = {
        "engines": engines,
        "rows_per_s_of_each": rows_per_s,
        "rows": rows,
        "steady_s": round(steady_s, 1),
        "rows_per_s": round(rows / steady_s),
        "busy": round(float(done["device_seconds"]) / (engines * steady_s), 3),
        "full": round(rows * latency_s / (engines * PLACES * steady_s), 3),
        "held_back": run.summary["limits"]["bottleneck"],
    }
    for name, value in result.items():
        print(f"{name:>20} {value}")
    command = f"python -m benchmarks.pool {engines} {rows_per_s} {rows}"
    print(json.dumps({"benchmark": "pool", **result, **circumstances(command)}))


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*words, *(8, 500, 60_000)[len(words) :])
