"""What is left to do, from a corpus and a ledger."""

from pipelines.changes import Reason, since
from pipelines.sink.receipt import Receipt
from pipelines.source.formats import Compression, Format
from pipelines.source.shards import Shard
from tests.receipts import receipt


def shard(path: str, identity: str = "v1") -> Shard:
    return Shard(
        uri=f"corpus/{path}",
        path=path,
        size=1,
        identity=identity,
        format=Format.PARQUET,
        compression=Compression.NONE,
    )


def of(path: str, start: int, stop: int, *, last: bool = False, identity: str = "v1", prompt: str = "f") -> Receipt:
    return receipt(shard=path, start=start, stop=stop, last=last, identity=identity, fingerprint=prompt)


def test_a_shard_without_receipts_is_new() -> None:
    changes = since([], [(shard("a"), None)], fingerprint="f")
    assert [(work.shard.path, work.reason, work.done) for work in changes.todo] == [("a", Reason.NEW, ())]


def test_a_shard_whose_ranges_reach_its_end_is_unchanged() -> None:
    committed = [of("a", 5, 9, last=True), of("a", 0, 5)]
    changes = since(committed, [(shard("a"), None)], fingerprint="f")
    assert changes.todo == ()
    assert [s.path for s in changes.unchanged] == ["a"]


def test_a_gap_keeps_a_shard_on_the_list_with_what_is_done() -> None:
    committed = [of("a", 0, 5), of("a", 7, 9, last=True)]
    changes = since(committed, [(shard("a"), None)], fingerprint="f")
    assert [(work.reason, work.done) for work in changes.todo] == [(Reason.PARTIAL, ((0, 5), (7, 9)))]


def test_rows_up_to_a_limit_suffice_although_the_shard_goes_on() -> None:
    committed = [of("a", 0, 5)]
    assert since(committed, [(shard("a"), 5)], fingerprint="f").todo == ()
    assert [work.limit for work in since(committed, [(shard("a"), 6)], fingerprint="f").todo] == [6]


def test_an_empty_shard_that_was_read_is_done() -> None:
    assert since([of("a", 0, 0, last=True)], [(shard("a"), None)], fingerprint="f").todo == ()


def test_other_bytes_are_a_change_and_nothing_of_them_counts_as_done() -> None:
    committed = [of("a", 0, 9, last=True, identity="v0")]
    changes = since(committed, [(shard("a"), None)], fingerprint="f")
    assert [(work.reason, work.done) for work in changes.todo] == [(Reason.CHANGED, ())]


def test_units_that_were_asked_something_else_are_counted() -> None:
    committed = [of("a", 0, 9, last=True, prompt="old"), of("b", 0, 3, last=True)]
    changes = since(committed, [(shard("a"), None), (shard("b"), None)], fingerprint="f")
    assert changes.other_fingerprints == {"old"}
    assert changes.other_rows == 9
    assert [work.shard.path for work in changes.todo] == ["a"]


def test_the_first_shard_with_work_leads_the_run() -> None:
    changes = since([of("a", 0, 9, last=True)], [(shard(path), None) for path in "abc"], fingerprint="f")
    assert [(work.shard.path, work.leads) for work in changes.todo] == [("b", True), ("c", False)]
