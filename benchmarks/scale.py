"""The whole plane at a size that this machine can hold: many engines, S3, an output that grows night by night.

    python -m benchmarks.scale [ROWS [NIGHTS [ENGINES]]]        (default 10000000 10 64)

ROWS rows come to a corpus on SeaweedFS in NIGHTS equal parts, and after each the same command answers what is new, with
ENGINES simulated engines that cost nothing. What must not grow from night to night is told for each: seconds until the
first engine serves, rows/s of the steady part, peak unique memory of the driver and of the largest process of each
other kind. Two more, a twentieth and a quarter as large, go through a proxy that counts what is asked of the store, by
what it is about: what the larger asks more is for its units, the rest for any run. `docs/scale.md` reckons on.
"""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.counting_proxy import Request, counting_proxy
from benchmarks.dataplane import write_corpus
from benchmarks.measure import PipelineRun, circumstances, run_pipeline
from benchmarks.planning import copy
from pipelines import storage
from tests.conftest import S3Server, weed_server

BUCKET = "scale"
ABOUT = (  # what a request is about, by the first that matches it
    ("list", r"GET /scale/?\?"),
    ("read shards", r"(GET|HEAD) /scale/in/"),
    ("write data and errors", r"(PUT|POST) /scale/out/(data|errors)/(?!_delta_log)"),
    ("commit", r"PUT /scale/out/(ledger|data|errors|costs)/"),
    ("read tables", r"(GET|HEAD) /scale/out/(ledger|data|errors|costs)/"),
    ("run folder", r"\w+ /scale/out/runs/"),
)


def about(request: Request) -> str:
    """What a request of the pipeline is for."""
    return next((name for name, words in ABOUT if re.match(words, request.words)), "other")


def night(number: int, rows: int, folder: Path, engines: int, environment: dict[str, str]) -> PipelineRun:
    """`rows` more come to the corpus, and are answered; the run's own report of it lies on the store, copied here."""
    corpus = folder / f"in-{number}"
    write_corpus(corpus, rows, seed=number)
    copy(corpus, f"s3://{BUCKET}/in/night-{number:04d}")
    for shard in corpus.iterdir():
        shard.unlink()
    return run_pipeline(
        [
            *("+job=classify", "engine=simulated", "job.gold=null", "tracking=none", f"engine.replicas={engines}"),
            f"source.uri=s3://{BUCKET}/in",
        ],
        f"s3://{BUCKET}/out",
        env=environment,
    )


def told(number: int, rows: int, run: PipelineRun) -> dict[str, Any]:
    """The figures of one night, and a line of them."""
    done = run.summary["this_run"]
    if run.exit_code or done["rows_ok"] != rows:
        raise SystemExit(f"night {number}: {rows} rows came, {done['rows_ok']} were answered, exit {run.exit_code}")
    mib = {kind: round(peak / 2**20) for kind, peak in sorted(run.peak_rss_bytes.items())}
    result = {
        "night": number,
        "rows": rows,
        "units": done["units"],
        "start_s": round(run.summary["startup_s"], 1),
        "rows_per_s": round(run.summary["rows_per_s"]),
        "wall_s": round(run.wall_s, 1),
        "peak_mib_of_one_process": mib,
    }
    print(" ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    return result


def counted(number: int, rows: int, folder: Path, engines: int, server: S3Server) -> tuple[int, Counter[str]]:
    """A night through the counting proxy: its units, and its requests by what they are about."""
    with counting_proxy(server.endpoint) as proxy:
        run = night(number, rows, folder, engines, {"AWS_ENDPOINT_URL": proxy.endpoint})
        asked = Counter(about(request) for request in proxy.requests)
    units = run.summary["this_run"]["units"]
    print(f"counted: {units} units, {dict(asked.most_common())}", flush=True)
    return units, asked


def requests_of_a_unit(small: tuple[int, Counter[str]], large: tuple[int, Counter[str]]) -> dict[str, float]:
    """What one more unit asks of the store, by what it is about."""
    more = large[0] - small[0]
    return {name: round((large[1][name] - small[1][name]) / more, 2) for name in sorted({*small[1], *large[1]})}


def main(rows: int, nights: int, engines: int) -> None:
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        (folder / "weed").mkdir()
        server = stack.enter_context(weed_server(folder / "weed"))
        os.environ.update(server.environment())
        server.client().create_bucket(Bucket=BUCKET)
        each = rows // nights
        results.extend(told(number, each, night(number, each, folder, engines, {})) for number in range(nights))
        small = counted(nights, each // 20, folder, engines, server)
        large = counted(nights + 1, each // 4, folder, engines, server)
        kept = sum(file.size for file in storage.listing(f"s3://{BUCKET}/out"))
    command = f"python -m benchmarks.scale {rows} {nights} {engines}"
    print(
        json.dumps(
            {
                "benchmark": "scale",
                "engines": engines,
                "nights": results,
                "counted": [{"units": units, "requests": dict(asked)} for units, asked in (small, large)],
                "requests_of_a_unit": requests_of_a_unit(small, large),
                "output_bytes": kept,
                **circumstances(command),
            }
        )
    )


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*words, *(10_000_000, 10, 64)[len(words) :])
