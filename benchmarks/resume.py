"""What a run that was killed costs to finish, beside Ray Data's own checkpoint: both sides in one run.

    python -m benchmarks.resume [ROWS]        (default 1000000)

The same corpus, on SeaweedFS; a job is killed by SIGKILL of driver and all of its Ray when so many of its rows were
answered (half, and 99 %), and the same command is given again. Measured of the second command:

- seconds until the first new data file is in the store, and until it is committed (the first commit of the Delta
  table `data` behind it; Ray's first finished checkpoint file behind it);
- bytes read: all that the store sent, answers to listings and writes included, and of these the input's own;
- rows computed twice: all answers of both runs, counted in the engines themselves, less the rows of the corpus;
- peak unique memory of the driver and of the largest process of each other kind.

At the end every id is looked for in the output, without the pipeline: there once, missing, there twice.
What Ray's side does and how it is set: benchmarks/ray_checkpoint.py.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow.dataset as ds
from pyarrow.fs import S3FileSystem

from benchmarks.counted.sitecustomize import VARIABLE
from benchmarks.counting_proxy import CountingProxy, counting_proxy
from benchmarks.dataplane import write_corpus
from benchmarks.measure import REPOSITORY, circumstances, watch
from benchmarks.ray_checkpoint import JOB
from tests.conftest import KEY, SECRET, S3Server, weed_server

SHARES = (0.5, 0.99)  # of the rows, answered when the run is killed
BUCKET = "resume"
INPUT = rf"GET /{BUCKET}/corpus/"
ROWS_OF_A_SHARD, ROWS_OF_A_GROUP = 10_000, 2_000
LOOK_S = 0.01  # between two looks at how many rows are answered
MOST_S = 3600.0  # for one command
STRAYS_S = 60.0  # for the processes of a killed run to be gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two, with its commands and what its writes to the store look like."""

    name: str
    command: tuple[str, ...]
    data: str  # prefix of its data files
    wrote: str  # a regular expression over requests: a data file is there
    committed: str  # and one: it counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What finishing one killed run took."""

    side: str
    killed_at: float  # share of the rows
    answered_before: int  # rows, by the killed run
    answered_after: int  # rows, by the run that finished
    rows_twice: int
    first_file_s: float | None  # from the command; None: there was none
    first_commit_s: float | None
    wall_s: float
    bytes_read: int
    bytes_of_input: int
    bytes_of_listings: int
    bytes_of_logs: int  # of Delta tables; Ray's side has none
    requests: int
    peak_mib: dict[str, int]  # of one process, by its kind
    ids_once: int
    ids_missing: int
    ids_more_than_once: int


def sides(share: float) -> Iterator[Side]:
    """Both sides, each with an output of its own."""
    place = f"{BUCKET}/ours-{share * 100:g}"
    words = [f"source.uri=s3://{BUCKET}/corpus", f"sink.uri=s3://{place}"]
    yield Side(
        name="ours",
        command=("-m", "pipelines.run", *JOB, *words),
        data=f"{place}/data",
        wrote=rf"PUT /{place}/data/[^_/?]+\.parquet",
        committed=rf"PUT /{place}/data/_delta_log/\d+\.json",
    )
    place = f"{BUCKET}/ray-{share * 100:g}"
    uris = [f"s3://{BUCKET}/corpus", f"s3://{place}/data", f"s3://{place}/checkpoint"]
    yield Side(
        name="ray",
        command=("-m", "benchmarks.ray_checkpoint", *uris),
        data=f"{place}/data",
        wrote=rf"(PUT /{place}/data/[^/?]+\.parquet$|POST /{place}/data/[^/?]+\.parquet\?uploadId)",
        committed=rf"PUT /{place}/checkpoint/[^?]+(?<!\.pending)\.parquet$",
    )


@dataclass(slots=True)
class Bench:
    """The place where all of it happens."""

    folder: Path
    store: S3Server
    rows: int

    def resumed(self, side: Side, share: float) -> Result:
        """Run until `share` of the rows are answered, kill, run again to the end."""
        count = self.folder / f"answered-{side.name}-{share:g}"
        count.touch()
        with self._started(side, count, "killed") as (process, _):
            while count.stat().st_size < share * self.rows:
                if process.poll() is not None:
                    raise RuntimeError(f"{side.name} ended before it was killed, with exit code {process.returncode}")
                time.sleep(LOOK_S)
        before = count.stat().st_size
        peak: dict[str, int] = {}
        began = time.monotonic()
        with self._started(side, count, "again") as (process, proxy):
            watcher = threading.Thread(target=watch, args=(process, peak))
            watcher.start()
            exit_code = process.wait(MOST_S)
            wall_s = time.monotonic() - began
            watcher.join()
        if exit_code:
            raise RuntimeError(f"{side.name} did not finish: exit code {exit_code}; its words are above")
        answered = count.stat().st_size
        if answered < self.rows:
            raise RuntimeError(f"{answered} answers were counted for {self.rows} rows: the counter is not in place")
        first = proxy.first_answer(side.wrote)
        commit = None if first is None else proxy.first_answer(side.committed, after=first)
        times_seen = np.bincount(self._ids(side), minlength=self.rows)
        return Result(
            side=side.name,
            killed_at=share,
            answered_before=before,
            answered_after=answered - before,
            rows_twice=answered - self.rows,
            first_file_s=None if first is None else round(first - began, 2),
            first_commit_s=None if commit is None else round(commit - began, 2),
            wall_s=round(wall_s, 1),
            bytes_read=proxy.bytes_read(),
            bytes_of_input=proxy.bytes_read(INPUT),
            bytes_of_listings=proxy.bytes_read(rf"GET /{BUCKET}/?\?"),
            bytes_of_logs=proxy.bytes_read(r"GET [^?]*/_delta_log/"),
            requests=len(proxy.requests),
            peak_mib={kind: round(peak_bytes / 2**20) for kind, peak_bytes in sorted(peak.items())},
            ids_once=int((times_seen == 1).sum()),
            ids_missing=int((times_seen == 0).sum()),
            ids_more_than_once=int((times_seen > 1).sum()),
        )

    @contextlib.contextmanager
    def _started(
        self, side: Side, count: Path, which: str
    ) -> Iterator[tuple["subprocess.Popen[bytes]", CountingProxy]]:
        """The side's command under way; whatever is left of it at the end is killed, all of it at once."""
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        log = self.folder / f"{count.name}-{which}.log"
        with counting_proxy(self.store.endpoint) as proxy, log.open("wb") as words:
            environment = {
                **os.environ,
                **self.store.environment(),
                "AWS_ENDPOINT_URL": proxy.endpoint,
                "PYTHONPATH": f"{REPOSITORY / 'benchmarks' / 'counted'}:{REPOSITORY}",
                VARIABLE: str(count),
                "RAY_TMPDIR": str(self.folder / "ray"),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
            process = subprocess.Popen(
                [sys.executable, *side.command], cwd=self.folder, env=environment, stdout=words, stderr=words
            )
            try:
                yield process, proxy
            except BaseException:
                print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
                raise
            finally:
                _kill(process, spared=before)

    def _ids(self, side: Side) -> Any:
        endpoint = urlsplit(self.store.endpoint)
        store = S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=endpoint.netloc, scheme="http", region="us-east-1"
        )
        return ds.dataset(side.data, filesystem=store, format="parquet").to_table(columns=["id"])["id"].to_numpy()


def _kill(process: "subprocess.Popen[bytes]", *, spared: set[int]) -> None:
    """SIGKILL to a process and all its descendants. Orphans come to this process (see `main`), and are killed too."""
    me, until = psutil.Process(), time.monotonic() + STRAYS_S
    while members := [each for each in me.children(recursive=True) if each.pid not in spared]:
        for each in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(members, timeout=1)  # it also takes the exit codes of orphans, or they would stay for ever
        if time.monotonic() > until:
            raise RuntimeError(f"{len(members)} processes of a killed run are still there after {STRAYS_S:g} s")


def upload(corpus: Path, store: S3Server) -> int:
    """The corpus into the store; its bytes."""
    client = store.client()
    client.create_bucket(Bucket=BUCKET)
    files = sorted(corpus.iterdir())
    for file in files:
        client.upload_file(str(file), BUCKET, f"corpus/{file.name}")
    return sum(file.stat().st_size for file in files)


def table(results: Sequence[Result]) -> str:
    """The results for people."""
    rows = [("killed at", "side", "first file", "commit", "wall", "MB read", "input", "twice", "driver MiB", "ids")]
    for one in results:
        missing, more = one.ids_missing, one.ids_more_than_once
        rows.append(
            (
                f"{one.killed_at:.0%}",
                one.side,
                _seconds(one.first_file_s),
                _seconds(one.first_commit_s),
                _seconds(one.wall_s),
                f"{one.bytes_read / 1e6:.2f}",
                f"{one.bytes_of_input / 1e6:.2f}",
                f"{one.rows_twice:,}",
                f"{one.peak_mib.get('driver', 0)}",
                "each once" if missing == more == 0 else f"{missing:,} missing, {more:,} more than once",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def main(rows: int) -> None:
    # Orphans of a killed run become children of this process, not of init: so none is left behind unseen.
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="resume-") as name:
        folder = Path(name)
        (folder / "weed").mkdir()
        corpus = folder / "corpus"
        write_corpus(corpus, rows, rows_of_a_shard=ROWS_OF_A_SHARD, rows_of_a_group=ROWS_OF_A_GROUP)
        with weed_server(folder / "weed") as store:
            corpus_bytes = upload(corpus, store)
            for share in SHARES:
                for side in sides(share):
                    result = Bench(folder, store, rows).resumed(side, share)
                    results.append(result)
                    print(json.dumps(asdict(result)), file=sys.stderr)
    print(f"{rows:,} rows in {corpus_bytes / 1e6:.1f} MB of Parquet")
    print(table(results))
    by_side = {(one.side, one.killed_at): one.bytes_read for one in results}
    ratios = {f"{share:g}": round(by_side["ray", share] / by_side["ours", share], 1) for share in SHARES}
    print(f"bytes read, Ray's over ours: {', '.join(f'{share}: {ratio}' for share, ratio in ratios.items())}")
    summary = {"benchmark": "resume", "rows": rows, "corpus_bytes": corpus_bytes, "bytes_ratio": ratios}
    command = f"python -m benchmarks.resume {rows}"
    print(json.dumps({**summary, "results": [asdict(one) for one in results], **circumstances(command)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
