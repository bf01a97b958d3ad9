"""Stores that go away: for a while, which a run waits out and says so; for good, which ends it with all that is
committed safe."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipelines import patience, storage
from pipelines.config import Exit, UserError
from pipelines.sink.fenced import FencedTable
from tests.conftest import S3Server
from tests.proxies import Answer, Proxy, Request, proxy
from tests.runs import write_texts
from tests.unit.sink.test_fenced import add, numbers

ROOT = Path(__file__).parents[2]
SCHEMA = pa.schema([("number", pa.int64())])


@pytest.fixture
def between(weed: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between this process and the store of `s3_bucket`."""
    with proxy(weed) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def refusing(store: Proxy) -> Callable[[], None]:
    store.down()
    return store.up


def throttling(store: Proxy) -> Callable[[], None]:
    store.rule = lambda request: Answer(503, "SlowDown")
    return lambda: setattr(store, "rule", lambda request: None)


def silent(store: Proxy) -> Callable[[], None]:
    awake = threading.Event()

    def rule(request: Request) -> None:
        awake.wait(120)

    store.rule = rule
    return awake.set


@pytest.mark.parametrize(
    ("goes_away", "words"),
    [(refusing, "does not answer"), (throttling, "does not answer (503"), (silent, "no answer yet")],
    ids=["refuses connections", "throttles", "is silent"],
)
def test_a_put_and_a_commit_wait_out_a_store_that_is_away_and_say_so(
    between: Proxy, s3_bucket: str, goes_away: Callable[[Proxy], Callable[[], None]], words: str
) -> None:
    table = FencedTable.create(f"{s3_bucket}/table", SCHEMA)
    epoch = table.begin()

    put = told_while(lambda: storage.put(f"{s3_bucket}/x", b"x"), comes_back=goes_away(between))
    committed = told_while(lambda: add(table, epoch, 1), comes_back=goes_away(between))

    for said in (put, committed):
        assert words in said[0]
        assert "waiting since" in said[0]
        assert "answers again, after" in said[-1]
    assert storage.get(f"{s3_bucket}/x") == b"x"
    assert numbers(table) == [1]


def told_while(work: Callable[[], object], *, comes_back: Callable[[], None]) -> list[str]:
    """What is said while `work` is done; what is said first lets the store come back."""
    said: list[str] = []
    again = threading.Event()

    def hear(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            comes_back()
        if "again" in text:
            again.set()

    with patience.telling(hear, look_s=0.05):
        work()
        assert again.wait(60)
    return said


def test_a_store_that_stays_away_is_named_with_how_long_it_was_waited_for(
    between: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FencedTable.create(f"{s3_bucket}/table", SCHEMA)
    epoch = table.begin()
    add(table, epoch, 1)
    monkeypatch.setenv("STORE_PATIENCE_S", "6")
    between.down()

    with pytest.raises(storage.StoreFailed, match=r"does not answer for \d+ s") as put:
        storage.put(f"{s3_bucket}/x", b"x")
    began = time.monotonic()
    with pytest.raises(storage.StoreFailed, match=r"does not answer for \d+ s") as commit:
        add(table, epoch, 2)
    waited = time.monotonic() - began
    began = time.monotonic()
    with pytest.raises(storage.StoreFailed):
        add(table, epoch, 2)

    for told in (str(put.value), str(commit.value)):
        assert "\n" not in told
        assert s3_bucket in told
        assert between.endpoint in told
    assert time.monotonic() - began < waited  # who has given a store up does not wait for it a second time
    between.up()
    assert numbers(FencedTable.create(f"{s3_bucket}/table", SCHEMA)) == [1]


def test_a_store_that_answers_no_is_not_waited_for(
    between: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FencedTable.create(f"{s3_bucket}/table", SCHEMA)
    monkeypatch.setenv("STORE_PATIENCE_S", "3600")
    between.rule = lambda request: Answer(403, "AccessDenied")

    with pytest.raises(storage.StoreFailed, match="access denied"):
        storage.put(f"{s3_bucket}/x", b"x")
    with pytest.raises(storage.StoreFailed, match="403"):
        table.begin()


def test_what_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("STORE_PATIENCE_S", text)
        with pytest.raises(UserError, match="STORE_PATIENCE_S"):
            patience.patience_s()


def start(between: Proxy, bucket: str, corpus: Path, **environment: str) -> "subprocess.Popen[str]":
    """A run with a Ray of its own, whose processes all reach the store by way of the proxy."""
    words = ["+job=classify", "engine=simulated", "tracking=none", "unit.rows=5", "engine.units_in_flight=2"]
    words += ["engine.simulated.latency_s=0.5", "batching.max_num_seqs=5"]
    words += [f"source.uri={corpus}", f"sink.uri={bucket}/out"]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**alone, **environment},
    )


def outage(process: "subprocess.Popen[str]", between: Proxy, weed: S3Server, bucket: str, seconds: float | None) -> str:
    """Take the store away once the first units are committed, for so long (None: for good); what the run said."""
    said: list[str] = []
    away = threading.Event()

    def take_away() -> None:
        client = weed.client()
        while process.poll() is None:
            listed = client.list_objects_v2(Bucket=bucket.removeprefix("s3://"), Prefix="out/data/_delta_log/")
            if listed["KeyCount"] >= 3:  # made, begun, and units added
                between.down()
                away.set()
                if seconds is not None:
                    time.sleep(seconds)  # the fault itself
                    between.up()
                return
            time.sleep(0.1)

    thread = threading.Thread(target=take_away)
    thread.start()
    with process:
        assert process.stderr is not None
        said += process.stderr
    thread.join()
    assert away.is_set(), "".join(said)
    return "".join(said)


def places(weed: S3Server, bucket: str) -> list[tuple[str, int]]:
    options = {**weed.environment(), "AWS_ALLOW_HTTP": "true"}
    rows = pl.read_delta(f"{bucket}/out/data", storage_options=options).to_dicts()
    return sorted((row["_shard"], row["_row"]) for row in rows)


def test_a_run_waits_out_a_store_that_is_away_for_20_s_and_ends_well(
    between: Proxy, weed: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    write_texts(tmp_path / "in", [[f"row {shard} {n}" for n in range(50)] for shard in range(3)])

    process = start(between, s3_bucket, tmp_path / "in")
    said = outage(process, between, weed, s3_bucket, seconds=20)

    assert process.returncode == Exit.DONE, said
    assert "does not answer" in said
    assert "answers again" in said
    assert places(weed, s3_bucket) == [(f"part-{shard}.parquet", n) for shard in range(3) for n in range(50)]


@pytest.mark.slow
def test_a_store_that_never_comes_back_ends_the_run_in_1_and_what_is_committed_stays(
    between: Proxy, weed: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    write_texts(tmp_path / "in", [[f"row {shard} {n}" for n in range(50)] for shard in range(3)])

    process = start(between, s3_bucket, tmp_path / "in", STORE_PATIENCE_S="5")
    said = outage(process, between, weed, s3_bucket, seconds=None)

    assert process.returncode == Exit.FAILED, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert between.endpoint in last
    assert "does not answer for" in last
    assert "Traceback" not in said
    found = places(weed, s3_bucket)
    assert 0 < len(found) < 150
    assert len(set(found)) == len(found)
    assert len(found) % 5 == 0  # units, whole
