"""How rows meet in an engine: one --multirun of static, dynamic and continuous batching over the demo corpus.

    python -m demo.corpus && python -m benchmarks.batching [ROWS] [REPEATS]        (default 400 1)

The three are runs of one process, each with an output and an MLflow run of its own. What is told is rows/s of the
steady part of each, over those of static batching. Modes that come later find the machine warmer: repeat.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, circumstances

MODES = ("static", "dynamic", "continuous")


def once(rows: int, sink: Path) -> dict[str, dict[str, Any]]:
    """The summary of each mode, by its name."""
    words = ["+job=classify", "job.gold=sentiment", "--multirun", f"batching={','.join(MODES)}"]
    words += [f"source.limit={rows}", f"sink.uri={sink}"]
    subprocess.run([sys.executable, "-m", "pipelines.run", *words], cwd=REPOSITORY, stdout=sys.stderr, check=True)
    found = {}
    for mode in MODES:
        (manifest,) = (sink / f"batching={mode}" / "runs").glob("*/manifest.json")
        found[mode] = json.loads(manifest.read_text())["summary"]
    return found


def main(rows: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory(prefix="batching-") as name:
        runs = [once(rows, Path(name) / str(repeat)) for repeat in range(repeats)]
    result: dict[str, Any] = {}
    print("batching     rows/s  over static  accuracy")
    for mode in MODES:
        speeds = [float(run[mode]["rows_per_s"]) for run in runs]
        over = statistics.median(float(run[mode]["rows_per_s"]) / float(run["static"]["rows_per_s"]) for run in runs)
        accuracy = runs[-1][mode]["this_run"]["accuracy"]
        result[mode] = {"rows_per_s": [round(speed, 2) for speed in speeds], "over_static": round(over, 3)}
        print(f"{mode:<11} {statistics.median(speeds):>7.1f} {over:>12.2f} {float(accuracy):>9.1%}")
    command = f"python -m benchmarks.batching {rows} {repeats}"
    print(json.dumps({"benchmark": "batching", "rows": rows, **result, **circumstances(command)}))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*[*numbers, *[400, 1][len(numbers) :]])
