"""Which sort of a corpus is whose."""

from typing import Any

from pipelines.changes import Reason, ShardWork
from pipelines.corpus_order import digest_of
from pipelines.source.formats import Format
from pipelines.source.shards import Shard


def work(identity: str = "1:9", **changes: Any) -> ShardWork:
    shard = Shard(uri="in/a.parquet", path="a.parquet", size=9, identity=identity, format=Format.PARQUET)
    return ShardWork(shard=shard, reason=Reason.NEW, limit=None, **changes)


def test_other_rows_or_another_question_are_another_sort() -> None:
    one = digest_of("f", [work()])

    assert digest_of("f", [work(leads=True)]) == one
    others = [
        digest_of("g", [work()]),
        digest_of("f", [work(identity="2:9")]),
        digest_of("f", [work(done=((0, 3),))]),
        digest_of("f", [work(), work()]),
    ]
    assert len({one, *others}) == 5
