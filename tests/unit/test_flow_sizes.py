"""Units shrink towards the end of a run, so that several engines end together."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tail import answered
from pipelines import flow_sizes
from pipelines.changes import Reason, ShardWork
from pipelines.config import RunConfig, SourceConfig
from pipelines.flow_sizes import handed_out, with_tail
from pipelines.source.shards import list_source
from pipelines.source.units import Tail
from tests.accounts_samples import run_config
from tests.runs import write_texts

SEQS = 64  # with half as many waiting, and 4 units of which 8 run at once: units of 12 rows would fill an engine


def config_of(folder: Path, *, replicas: int | tuple[int, int] = 2, rows: int = 100, **unit: Any) -> RunConfig:
    config = run_config(folder)
    return replace(
        config, engine=replace(config.engine, replicas=replicas), unit=replace(config.unit, rows=rows, **unit)
    )


def works(folder: Path, **changes: Any) -> list[ShardWork]:
    shards = list_source(SourceConfig(uri=str(folder))).shards
    return [ShardWork(shard=shard, reason=Reason.NEW, limit=None, **changes) for shard in shards]


def tails(todo: list[ShardWork], config: RunConfig) -> list[Tail | None]:
    return [work.tail for work in with_tail(todo, config, max_num_seqs=SEQS)]


def test_the_last_shards_know_how_many_rows_come_after_them_and_earlier_ones_are_not_even_counted(
    tmp_path: Path,
) -> None:
    write_texts(tmp_path / "in", [["a"] * 10, ["a"] * 3000, ["a"] * 1000, ["a"] * 40])
    config = config_of(tmp_path)

    found = tails(works(tmp_path / "in"), config)

    shares = 2 * 4 * 2 * 2  # engines, units, at once, twice as slow
    assert found[3] == Tail(ends_at=40, shares=shares, least=32)
    assert found[2] == Tail(ends_at=1040, shares=shares, least=32)
    assert found[1] == Tail(ends_at=4040, shares=shares, least=32)
    assert found[0] is None  # more than 32 units of 100 rows come after it


def test_rows_that_are_done_come_after_nobody_and_a_limit_ends_the_run(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"] * 50, ["a"] * 70])
    first, last = works(tmp_path / "in")

    found = tails([first, replace(last, done=((0, 20), (40, 50)), limit=60)], config_of(tmp_path))

    assert [tail and tail.ends_at for tail in found] == [50 + 30, 60]


def test_one_engine_equal_units_and_sorted_prompts_have_no_tail(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"] * 50])
    todo = works(tmp_path / "in")

    assert tails(todo, config_of(tmp_path, replicas=1)) == [None]
    assert tails(todo, config_of(tmp_path, shrink=False)) == [None]
    assert tails(todo, replace(config_of(tmp_path), ordering="corpus")) == [None]
    assert tails(todo, config_of(tmp_path, replicas=(1, 2)))[0] == Tail(ends_at=50, shares=48, least=32)


def test_no_more_is_read_for_counting_than_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name, rows in (("a", 10), ("b", 20), ("c", 30)):
        (tmp_path / "in" / f"{name}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * rows))
    todo = works(tmp_path / "in")

    assert [tail and tail.ends_at for tail in tails(todo, config_of(tmp_path))] == [60, 50, 30]
    monkeypatch.setattr(flow_sizes, "MOST_COUNTED_BYTES", sum(work.shard.size for work in todo[1:]))
    assert [tail and tail.ends_at for tail in tails(todo, config_of(tmp_path))] == [None, 50, 30]
    monkeypatch.setattr(flow_sizes, "MOST_COUNTED", 1)
    assert [tail and tail.ends_at for tail in tails(todo, config_of(tmp_path))] == [None, None, 30]


def test_a_shard_that_is_gone_counts_as_the_one_row_that_reading_makes_of_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.jsonl").write_text('{"text": "a"}\n' * 6)
    todo = works(tmp_path / "in")
    (tmp_path / "in" / "a.jsonl").unlink()

    assert [tail and tail.ends_at for tail in tails(todo, config_of(tmp_path))] == [7, 6]


def test_a_pool_that_grows_hands_out_more_than_an_engine_runs_at_once_and_another_does_not() -> None:
    assert (handed_out(4, fixed=False), handed_out(4, fixed=True)) == (12, 8)


@pytest.mark.parametrize(
    ("rows", "seconds", "alike", "shrunk"),
    [(2_000, (1.0,) * 4, 0.75, 0.87), (2_000, (1.0, 2.0), 0.76, 0.86)],  # a row takes each engine so long
)
def test_engines_end_together_where_units_shrink_the_slow_with_the_others(
    rows: int, seconds: tuple[float, ...], alike: float, shrunk: float
) -> None:
    assert answered(rows, seconds, shrink=False).share < alike
    assert answered(rows, seconds, shrink=True).share > shrunk
