"""What a context fitted to the corpus would gain: the same rows on the bare engine, in a long and in a short one.

    python -m demo.corpus && python -m benchmarks.context [ROWS] [REPEATS]        (default 200 2)

The short one (`SHORT`) holds every prompt of the demo corpus with its answer. Each engine has a process of its own, and
either begins in turn. Told of each: seconds to load, tokens that its KV memory holds, peak memory of its process,
rows/s, tokens prefilled and decoded.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.measure import REPOSITORY, circumstances

LONG, SHORT = 8192, 512  # the embedded model was made for the first
FIGURES = ("start_s", "kv_tokens", "peak_rss_mib", "rows_per_s", "prefilled", "decoded")


def once(rows: int, length: int) -> dict[str, Any]:
    """What one engine took for the first rows of the demo corpus."""
    words = ["+job=classify", "source.uri=out/corpus", "sink.uri=unused", f"model.max_model_len={length}"]
    request = json.dumps({"overrides": words, "rows": rows})
    command = [sys.executable, "-m", "benchmarks.bare_engine", request]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(rows: int, repeats: int) -> None:
    seen: dict[int, list[dict[str, Any]]] = {LONG: [], SHORT: []}
    for repeat in range(repeats):
        for length in (LONG, SHORT) if repeat % 2 == 0 else (SHORT, LONG):
            seen[length].append(once(rows, length))
    print("max_model_len " + " ".join(f"{name:>12}" for name in FIGURES))
    for length, runs in seen.items():
        print(
            f"{length:<13} " + " ".join(f"{statistics.median(run[name] for run in runs):>12,.1f}" for name in FIGURES)
        )
    same = len({json.dumps(run["answers"]) for runs in seen.values() for run in runs}) == 1
    told = {str(length): [{name: run[name] for name in FIGURES} for run in runs] for length, runs in seen.items()}
    command = f"python -m benchmarks.context {rows} {repeats}"
    result = {"benchmark": "context", "rows": rows, "same_answers": same, "runs": told}
    print(json.dumps(result | circumstances(command)))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*[*numbers, *[200, 2][len(numbers) :]])
