"""source.identity=content: a local shard is its bytes, whatever its modification time says."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config import ModelConfig, SourceConfig
from pipelines.job.model import resolve
from pipelines.source.formats import Unreadable
from pipelines.source.shards import list_shards, open_shard
from tests.in_process import Order, Place, Session, run
from tests.unit.job.models import bytes_bpe

ASKED = Order(fingerprint="f" * 64, identity="content")
TEXT = '{"version": 1, "text": "one"}\n{"version": 1, "text": "two"}\n'


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model = resolve(
        ModelConfig(name="mine", path=str(bytes_bpe(tmp_path / "model"))),
        cache=tmp_path / "cache",
    )
    made = Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=model)
    made.source.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (made.source / name).write_text(TEXT.replace("one", name))
    return made


def ran(place: Place, order: Order = ASKED) -> Session:
    session = Session(place, order)
    run(session, random.Random(0))
    return session


def test_a_touched_file_costs_nothing_and_a_byte_that_changed_in_secret_is_seen(place: Place) -> None:
    assert len(ran(place).asked) == 4
    touched, altered = place.source / "a.jsonl", place.source / "b.jsonl"
    before = altered.stat()
    os.utime(touched, ns=(1, 1))
    altered.write_text(altered.read_text().replace("two", "tow"))
    os.utime(altered, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (altered.stat().st_size, altered.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)

    again = ran(place)

    assert {receipt.shard for receipt in again.written} == {"b.jsonl"}
    assert [(one.shard, one.row) for one in again.asked] == [("b.jsonl", 1)]
    assert ran(place).written == []


def test_by_its_modification_time_a_touched_file_is_written_anew_and_a_secret_change_is_missed(place: Place) -> None:
    order = replace(ASKED, identity="stat")
    ran(place, order)
    touched, altered = place.source / "a.jsonl", place.source / "b.jsonl"
    before = altered.stat()
    os.utime(touched, ns=(1, 1))
    altered.write_text(altered.read_text().replace("two", "tow"))
    os.utime(altered, ns=(before.st_atime_ns, before.st_mtime_ns))

    again = ran(place, order)

    assert {receipt.shard for receipt in again.written} == {"a.jsonl"}
    assert again.asked == []


def test_a_shard_known_by_its_bytes_is_not_read_once_it_was_written_to_since(place: Place) -> None:
    shard, other = list_shards(SourceConfig(uri=str(place.source), identity="content"))
    assert open_shard(other).read(4) == b'{"ve'

    (place.source / "a.jsonl").write_text(TEXT)

    with pytest.raises(Unreadable, match="changed since it was listed"):
        open_shard(shard)
