"""Rows and units ahead: counted as a run then cuts and reads them."""

import itertools
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ahead
from pipelines.ahead import Ahead, look_ahead
from pipelines.changes import Changes, Reason, ShardWork
from pipelines.config import SourceConfig
from pipelines.sink.receipt import Receipt, Redo
from pipelines.source.shards import Shard, list_source
from pipelines.source.units import Tail, UnitSize
from pipelines.stages.read import ReadSpec, read_units
from tests.corpora import jsonl, reviews, write
from tests.receipts import receipt

SCHEMA = pa.schema([("id", pa.int64())])
MAX_ROW_BYTES = 2**20


def shard_of(folder: Path, rows: int, name: str = "part.parquet") -> Shard:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"id": pa.array(range(rows), pa.int64())}), folder / name, row_group_size=7)
    else:
        write(folder / name, jsonl(reviews(rows)))
    return next(shard for shard in list_source(SourceConfig(uri=str(folder))).shards if shard.path == name)


def look(*works: ShardWork, receipts: tuple[Receipt, ...] = (), unit_rows: int = 10, **changes: object) -> Ahead:
    known = {"unchanged": (), "known": 0, "removed": (), "other_fingerprints": frozenset(), "other_rows": 0}
    todo = Changes(todo=works, **(known | changes))  # type: ignore[arg-type]
    size = UnitSize(rows=unit_rows, bytes=2**30)
    return look_ahead(todo, receipts, shards=len(works), size=size, max_row_bytes=MAX_ROW_BYTES, seed=0)


def of_unit(path: str, start: int, stop: int, identity: str, errors: dict[str, int]) -> Receipt:
    dead = sum(errors.values())
    counts = {"rows_ok": stop - start - dead, "rows_error": dead, "errors_by_type": errors}
    return receipt(shard=path, start=start, stop=stop, identity=identity, attempt=f"of-{path}-{start}", **counts)


@pytest.mark.parametrize("seed", range(60))
def test_units_and_rows_are_those_that_reading_then_cuts(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows, unit_rows = rng.choice(((60, 20), (1000, 200)))
    rows, unit_rows, leads = rng.randrange(rows), rng.randrange(1, unit_rows), rng.choice((True, False))
    shard = shard_of(tmp_path, rows)
    cuts = sorted(rng.sample(range(rows + 1), min(rows, rng.randrange(8))))
    ranges = list(itertools.pairwise(cuts))
    kinds = [rng.choice(("done", "redo", "new")) for _ in ranges]
    done = tuple(each for each, kind in zip(ranges, kinds, strict=True) if kind == "done")
    redo = tuple(Redo(start=a, stop=b) for (a, b), kind in zip(ranges, kinds, strict=True) if kind == "redo")
    limit = rng.choice((None, None, rows, max((unit.stop for unit in redo), default=rows)))
    tail = Tail(ends_at=rows + rng.randrange(200), shares=rng.randrange(1, 20), least=rng.randrange(1, 30))
    tail_of_it = rng.choice((None, tail))
    work = ShardWork(
        shard=shard, reason=Reason.PARTIAL, limit=limit, done=done, redo=redo, leads=leads, tail=tail_of_it
    )
    spec = ReadSpec(schema=SCHEMA, size=UnitSize(rows=unit_rows, bytes=2**30), max_row_bytes=MAX_ROW_BYTES)

    read = list(read_units(shard, spec, done=done, redo=redo, limit=limit, leads=leads, tail=tail_of_it))

    counted = look(work, unit_rows=unit_rows)
    assert counted.units == len(read)
    assert counted.rows == sum(parcel.rows.num_rows for parcel in read)
    assert counted.exact
    assert counted.units_exact


def test_a_shard_whose_letters_are_asked_again_counts_those_and_keeps_its_answers(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, 30)
    old = of_unit(shard.path, 10, 20, shard.identity, {"timeout": 2, "too_long": 1})
    again = Redo(start=10, stop=20, replaces=old.attempt)
    work = ShardWork(shard=shard, reason=Reason.RETRIED, limit=20, done=((0, 10), (20, 30)), redo=(again,))
    todo = Changes(todo=(work,), unchanged=(), known=1, removed=(), other_fingerprints=frozenset(), other_rows=0)
    size = UnitSize(rows=10, bytes=2**30)

    def looked(retry: tuple[str, ...] | None) -> Ahead:
        return look_ahead(todo, [old], shards=1, size=size, max_row_bytes=MAX_ROW_BYTES, seed=0, retry=retry)

    assert (looked(None).rows, looked(None).rows_kept, looked(None).units) == (3, 7, 1)
    assert (looked(("timeout",)).rows, looked(("timeout",)).rows_kept) == (2, 8)


def test_what_stays_is_counted_with_its_dead_letters_and_what_goes_with_its_rows(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, 20)
    stays = of_unit(shard.path, 0, 20, shard.identity, {"too_long": 2})
    gone = of_unit("gone.parquet", 0, 5, "x:1", {})

    counted = look(receipts=(stays, gone), unchanged=(shard,), removed=("gone.parquet",))

    assert (counted.rows, counted.units) == (0, 0)
    assert (counted.unchanged_shards, counted.unchanged_rows) == (1, 20)
    assert (counted.removed_shards, counted.removed_rows) == (1, 5)
    assert counted.dead_letters == {"too_long": 2}


def test_where_not_all_lines_are_counted_the_rest_is_estimated_by_bytes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [shard_of(tmp_path, 200, f"part-{number}.jsonl") for number in range(10)]
    monkeypatch.setattr(ahead, "MOST_BYTES", sum(shard.size for shard in shards[:3]))

    counted = look(*(ShardWork(shard=shard, reason=Reason.NEW, limit=None) for shard in shards))

    assert sum(one.exact for one in counted.counted) == 3
    assert not counted.exact
    assert counted.rows == pytest.approx(2000, rel=0.02)


def test_rows_that_fill_a_unit_by_bytes_make_more_units(tmp_path: Path) -> None:
    shard = shard_of(tmp_path, 100)
    counted = look(ShardWork(shard=shard, reason=Reason.NEW, limit=None), unit_rows=50)
    size = UnitSize(rows=50, bytes=1000)

    assert ahead.fewer_rows_a_unit(counted, 1.0, size) is counted
    large = ahead.fewer_rows_a_unit(counted, 100.0, size)
    assert (large.units, large.units_exact) == (10, False)
