"""A run is cut off at every single thing that it does to its store, one after the other; the next run mends it all.

The commits of each kind of run are tried on every change; all else that a run does is `slow`.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import TableNotFoundError

from pipelines.config import ModelConfig
from pipelines.job.model import ModelFiles, resolve
from pipelines.sink import ledger
from pipelines.sink.audit import audit
from tests.in_process import INPUT, Order, Place, Session, run
from tests.unit.job.models import bytes_bpe
from tests.unit.sink.test_machine import Crash, failing

ASKED = Order(fingerprint="f" * 64, unit_rows=4, refused={"bad": "engine"})
A, B = ("one", "two", "bad three", "four", None, "six"), ("seven", "bad eight")
Change = Callable[[Place], Order]


def write(place: Place, name: str, texts: tuple[str | None, ...]) -> None:
    rows = [{"version": len(texts), "text": text} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows, INPUT), place.source / name)


def first_run(place: Place) -> Order:
    shutil.rmtree(place.sink)
    return ASKED


def reprocessed(place: Place) -> Order:
    return replace(ASKED, fingerprint="e" * 64)


def retried(place: Place) -> Order:
    return replace(ASKED, retry=True, refused={})


def shard_changed(place: Place) -> Order:
    write(place, "a.parquet", ("new", *A, "newer", "newest"))
    return ASKED


def shard_gone(place: Place) -> Order:
    (place.source / "b.parquet").unlink()
    return ASKED


def shard_new(place: Place) -> Order:  # and its commits are joined with those before
    write(place, "c.parquet", ("nine", "ten"))
    return ASKED


CHANGES = (first_run, reprocessed, retried, shard_changed, shard_gone, shard_new)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A corpus of two shards, and its output."""
    folder = tmp_path_factory.mktemp("crash")
    model = bytes_bpe(folder / "model")
    files: ModelFiles = resolve(ModelConfig(name="mine", path=str(model)), cache=folder / "cache")
    place = Place(source=folder / "in", sink=str(folder / "out"), model=files)
    place.source.mkdir()
    write(place, "a.parquet", A)
    write(place, "b.parquet", B)
    run(Session(place, ASKED), random.Random(0))
    return place


def copies(whole: Place, folder: Path) -> Iterator[Place]:
    """As many as are asked for: the same bytes and times."""
    for number in count():
        shutil.copytree(whole.source, folder / f"{number}" / "in")
        shutil.copytree(whole.sink, folder / f"{number}" / "out")
        yield replace(whole, source=folder / f"{number}" / "in", sink=str(folder / f"{number}" / "out"))


def shown(place: Place) -> set[tuple[str, int]]:
    """Rows that a Delta reader sees in data or errors."""
    found: set[tuple[str, int]] = set()
    for name in ("data", "errors"):
        try:
            rows = pl.read_delta(f"{place.sink}/{name}", columns=["_shard", "_row"]).rows()
        except (TableNotFoundError, FileNotFoundError):
            continue
        assert len(set(rows)) == len(rows), name
        found.update(rows)
    return found


def at_every_point(whole: Place, folder: Path, change: Change, operation: str, how: str) -> int:
    """Cut the run off at its first such operation, at its second, and so on; how many there are."""
    for number, place in enumerate(copies(whole, folder), 1):
        order = change(place)
        kept = shown(place) if change in (reprocessed, retried, shard_new) else set()
        with failing(operation, number, how):
            try:
                run(Session(place, order), random.Random(0))
            except Crash:
                ended = False
            else:
                ended = True
        assert kept <= shown(place), f"{operation} {number}"
        run(Session(place, order), random.Random(1))
        told = [one for check in audit(place.sink).checks for one in check.findings]
        assert told == [], f"{operation} {number}"
        rows = {path.name: pq.read_metadata(path).num_rows for path in place.source.iterdir()}
        assert shown(place) == {(name, row) for name, many in rows.items() for row in range(many)}
        if ended:
            return number - 1
    raise AssertionError("unreachable")


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_ends_at_any_commit_is_mended_by_the_next(
    whole: Place, tmp_path: Path, change: Change, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ledger, data and errors: as each begins its epoch, as units are committed, as the ledger is compacted."""
    monkeypatch.setattr(ledger, "COMPACT_FILES", 2)

    assert at_every_point(whole, tmp_path, change, "_write", how) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after", "torn"])
@pytest.mark.parametrize("operation", ["put", "delete", "tidy"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_ends_at_any_other_point_is_mended_too(
    whole: Place, tmp_path: Path, change: Change, operation: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "COMPACT_FILES", 2)

    at_every_point(whole, tmp_path, change, operation, how)
