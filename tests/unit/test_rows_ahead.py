"""Rows to do, without reading much."""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.changes import Reason, ShardWork
from pipelines.config import SourceConfig
from pipelines.rows_ahead import MOST_BEGINNINGS, rows_ahead
from pipelines.sink.receipt import Redo
from pipelines.source.shards import list_shards
from tests.runs import write_texts


def work(folder: Path) -> list[ShardWork]:
    return [
        ShardWork(shard=shard, reason=Reason.NEW, limit=None) for shard in list_shards(SourceConfig(uri=str(folder)))
    ]


def write_lines(file: Path, texts: Sequence[str], *, packed: bool = False) -> None:
    file.parent.mkdir(exist_ok=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    file.write_bytes(gzip.compress(data) if packed else data)


def test_footers_and_small_files_tell_exactly_and_what_is_done_does_not_count(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a"] * 10, ["b"] * 5])
    write_lines(tmp_path / "in" / "z.jsonl", ["c", "d", "e"])
    first, *others = work(tmp_path / "in")

    assert rows_ahead([first, *others]) == (18, False)
    partial = replace(first, reason=Reason.PARTIAL, done=((0, 4), (6, 8)))
    assert rows_ahead([partial, *others]) == (12, False)
    assert rows_ahead([replace(first, limit=7), *others]) == (15, False)
    retried = replace(first, reason=Reason.RETRIED, done=((0, 6),), redo=(Redo(start=6, stop=10, replaces="x"),))
    assert rows_ahead([retried]) == (4, False)


@pytest.mark.parametrize("packed", [False, True])
def test_of_large_files_the_rows_are_estimated_by_the_beginnings_of_some_and_that_is_said(
    packed: bool, tmp_path: Path
) -> None:
    dice = random.Random(1)
    for number in range(2):
        texts = [f"{dice.random()} " * dice.randint(5, 15) for _ in range(40_000)]
        write_lines(tmp_path / "in" / f"{number}.jsonl{'.gz' * packed}", texts, packed=packed)
    found = rows_ahead(work(tmp_path / "in"))

    assert found is not None
    assert found[1] is True
    assert found[0] == pytest.approx(80_000, rel=0.1)


def test_of_many_files_few_are_looked_at(tmp_path: Path) -> None:
    for number in range(3 * MOST_BEGINNINGS):
        write_lines(tmp_path / "in" / f"{number}.jsonl", ["same length"] * 10)
    todo = work(tmp_path / "in")
    for one in todo[::2]:  # whoever reads these finds nothing
        Path(one.shard.uri).write_bytes(b"")
    asked = []

    def over() -> bool:
        asked.append(1)
        return False

    rows_ahead(todo, over=over)
    assert len(asked) == MOST_BEGINNINGS


def test_what_cannot_be_read_leaves_the_total_open(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl.gz", ["a"], packed=True)
    todo = work(tmp_path / "in")
    Path(todo[0].shard.uri).unlink()

    assert rows_ahead(todo) is None
    assert rows_ahead(todo, over=lambda: True) is None
