"""What a start costs over an output of 10^5 units when nothing is to do: time and memory, local and S3.

    python -m benchmarks.planning [UNITS [SHARDS [NIGHTS]]]        (default 100000 25000 1100)

An output is filled with receipts by the pipeline's own ledger and tables: in one run, and in as many nightly runs as
three years have, each with its own epoch and the compaction of its end. Shards and data files are there, and tiny: a
start lists them and opens none. Then a fresh process does all that a run does before it reads its first row: imports,
listing, ledger, changes, tables, leftovers. Time and peak memory are those of the whole process.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pipelines.run  # noqa: F401 – its libraries belong to the memory of a start
from benchmarks.measure import REPOSITORY, circumstances
from pipelines import storage
from pipelines.compose import compose
from pipelines.config import RunConfig
from pipelines.engine_choice import detect
from pipelines.preparation import Prepared, open_output, prepare
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt
from pipelines.sink.tables import follow, open_tables
from pipelines.source.units import unit_name

ROWS_OF_A_UNIT = 512
UNITS_OF_A_COMMIT = 500
GOAL_S, GOAL_MB = 10, 500


def composed(source: str, sink: str) -> RunConfig:
    words = ["+job=classify", "engine=simulated", "tracking=none", "job.gold=null"]
    (config,) = compose([*words, f"source.uri={source}", f"sink.uri={sink}"])
    return config


def prepared(config: RunConfig) -> Prepared:
    return prepare(config, hardware=detect, doing=lambda words: None)


# ----------------------------------------------------------------------------------------------- filling


def write_source(uri: str, shards: int) -> None:
    """Shards of one row, each with bytes of its own."""
    _put_all(
        [(f"{uri}/night-{n % 1100:04d}/part-{n:06d}.jsonl", f'{{"text": "row {n}"}}\n'.encode()) for n in range(shards)]
    )


def _put_all(things: Sequence[tuple[str, bytes]]) -> None:
    def put(thing: tuple[str, bytes]) -> None:
        uri, data = thing
        if storage.is_s3(uri):
            storage.put(uri, data)
        else:  # without the syncs that make it safe
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            Path(uri).write_bytes(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, things))


def receipts_of(ready: Prepared, units: int) -> Iterator[Receipt]:
    """Receipts of all shards, as many for each; every hundredth unit has a dead letter."""
    each = units // len(ready.shards)
    for number, (shard, _) in enumerate(ready.shards):
        for place in range(each):
            start, stop = place * ROWS_OF_A_UNIT, (place + 1) * ROWS_OF_A_UNIT
            attempt, dead = secrets.token_hex(5), int((number * each + place) % 100 == 0)
            name = f"{unit_name(shard.path, start, stop)}.{attempt}.parquet"
            yield Receipt(
                shard=shard.path,
                identity=shard.identity,
                start=start,
                stop=stop,
                last=place == each - 1,
                fingerprint=ready.fingerprint.digest,
                run="20261123T000000Z-abcdef",
                attempt=attempt,
                data_file=name,
                errors_file=name if dead else None,
                data_bytes=60_000 + number,
                data_sha256=secrets.token_hex(32),
                errors_bytes=3_000 * dead,
                errors_sha256=secrets.token_hex(32) if dead else "",
                rows_in=ROWS_OF_A_UNIT,
                rows_ok=ROWS_OF_A_UNIT - dead,
                rows_error=dead,
                errors_by_type={"contract": 1} if dead else {},
                prompt_tokens=96_000 + number,
                cached_tokens=64_000,
                output_tokens=ROWS_OF_A_UNIT,
                device_seconds=4.25 + number / 7,
                started_at=1.7e9 + number / 3,
                finished_at=1.7e9 + number / 3 + 20,
            )


def fill(sink: Path, ready: Prepared, units: int, nights: int) -> None:
    """An output with these units, committed in so many runs, and a file for each name that a receipt has."""
    ledger = Ledger.open(str(sink), create=True)
    view, all_receipts = ledger.committed(), receipts_of(ready, units)
    ledger.begin_epoch()
    tables = open_tables(str(sink), ready.data_schema, ready.errors_schema, epoch=ledger.epoch)
    for _ in range(nights):
        ledger.begin_epoch()
        ledger._view = view  # this process alone has written: no need to read it all again, night after night
        for table in (tables.data, tables.errors):
            table.begin(ledger.epoch)
        tables = replace(tables, epoch=ledger.epoch)
        left = -(-units // nights)
        while some := list(islice(all_receipts, min(left, UNITS_OF_A_COMMIT))):
            follow(tables, view, ledger.append(some))
            left -= len(some)
        ledger.compact()
    for folder, names in (("data", tables.data_files), ("errors", tables.errors_files)):
        for name in names:
            (sink / folder / name).write_bytes(b"not opened")


def copy(folder: Path, uri: str) -> None:
    """All files below `folder` to `uri`, those of the Delta logs too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    _put_all([(f"{uri}/{path.relative_to(folder)}", path.read_bytes()) for path in files])


# --------------------------------------------------------------------------------------------- measuring


def start(source: str, sink: str, started_at: str) -> None:
    """In a process of its own, begun at this time: what a run does before it reads a row. Figures as JSON on stdout."""
    steps = {"libraries": time.time() - float(started_at)}
    rss = {"libraries": _peak_mb()}
    began = time.monotonic()
    ready = prepared(config := composed(source, sink))
    steps["prepare"] = time.monotonic() - began
    rss["prepare"] = _peak_mb()
    output = open_output(config, ready)
    steps["open"] = time.monotonic() - began - steps["prepare"]
    rss["open"] = _peak_mb()
    found = ready.changes(output.view)
    if found.todo or found.removed or len(found.unchanged) != len(ready.shards):
        raise SystemExit(f"{len(found.todo)} shards to do where all is done")
    steps["changes"] = time.monotonic() - began - steps["prepare"] - steps["open"]
    if heavy := [name for name in ("ray", "pandas", "mlflow") if name in sys.modules]:
        raise SystemExit(f"a start with nothing to do has imported {', '.join(heavy)}")
    print(
        json.dumps(
            {
                "wall_s": sum(steps.values()),
                "cpu_s": time.process_time(),
                "steps": steps,
                "mb": rss,
                "peak_mb": _peak_mb(),
            }
        )
    )


def _peak_mb() -> float:
    # ru_maxrss would count what the parent held when it forked.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) * 1024 / 1e6 if peak else float("nan")


def measured(source: str, sink: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.planning", "start", source, sink, str(time.time())]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is."""

    units: int = 100_000
    shards: int = 25_000
    nights: int = 1_100


def main(size: Size) -> None:
    from tests.conftest import weed_server  # not part of a start

    results = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planning-")))
        (folder / "weed").mkdir()
        server = stack.enter_context(weed_server(folder / "weed"))
        os.environ.update(server.environment())
        server.client().create_bucket(Bucket="planning")
        for store, base in (("local", str(folder)), ("SeaweedFS", "s3://planning")):
            source = f"{base}/in"
            write_source(source, size.shards)
            for name, nights in (("one run", 1), (f"{size.nights} nights", size.nights)):
                sink = f"{base}/out-{nights}"
                local = folder / f"filled-{nights}" if storage.is_s3(base) else Path(sink)
                fill(local, prepared(composed(source, str(local))), size.units, nights)
                if storage.is_s3(base):
                    copy(local, sink)
                figures = measured(source, sink)
                results.append({"store": store, "filled_in": name, **figures})
                steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in figures["steps"].items())
                print(
                    f"{store:10} {name:12} {figures['wall_s']:6.1f} s ({steps})  CPU {figures['cpu_s']:5.1f} s  "
                    f"peak {figures['peak_mb']:4.0f} MB, {figures['mb']['libraries']:.0f} of them before it began",
                    flush=True,
                )
    goals = {"goal_s": GOAL_S, "goal_mb": GOAL_MB}
    command = f"python -m benchmarks.planning {size.units} {size.shards} {size.nights}"
    sizes = {"units": size.units, "shards": size.shards}
    print(json.dumps({"benchmark": "planning", **sizes, "results": results, **goals, **circumstances(command)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        start(*sys.argv[2:])
    else:
        main(Size(*map(int, sys.argv[1:])))
