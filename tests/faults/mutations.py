"""Safeguards, each with how to take it out of a driver: a campaign that cannot fail proves nothing.

Each names the kind of fault that must tell. What two safeguards hold, either alone, is taken out together.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from deltalake import CommitProperties, Transaction

from pipelines import changes, preparation, storage
from pipelines.sink import committed, fenced, output, tables
from pipelines.sink.receipt import Receipt
from tests.faults import seams

sink_output: Any = output  # with what it imports by name


@dataclass(frozen=True)
class Mutation:
    """A safeguard that is missing, and the kind of fault that must tell."""

    kind: str
    take_out: Callable[[], None]
    finding: str  # a pattern of what the checks must say: that a driver merely fails proves nothing


WITHOUT: dict[str, Mutation] = {}


FOUND = r"I[1-6] |verify is not content"


def safeguard(name: str, kind: str, finding: str = FOUND) -> Callable[[Callable[[], None]], None]:
    """Enter a safeguard into the list."""

    def entered(take_out: Callable[[], None]) -> None:
        WITHOUT[name] = Mutation(kind, take_out, finding)

    return entered


def _exchange(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: let the mutation find where it went"
    setattr(owner, name, value)


class _Mine(int):
    """A number that is every other."""

    def __ne__(self, other: object) -> bool:
        return False


@safeguard("fence", "driver sleeps before a commit while another takes its place")
def _() -> None:
    """Commits carry no epoch, and nobody looks whose turn it is."""
    epoch = fenced.FencedTable.epoch

    def unfenced(app: str, version: int) -> Transaction:
        return Transaction(app if seams.doing() == "begin" else uuid.uuid4().hex, version)

    _exchange(fenced, "Transaction", unfenced)
    _exchange(fenced.FencedTable, "epoch", lambda table: _Mine(epoch(table)))


@safeguard("ledger first", "driver killed at an append to the ledger, the commit")
def _() -> None:
    """The tables show units that the ledger does not have yet."""

    def commit(self: output.Output, receipts: Any) -> None:
        sink_output.follow(self.tables, self.view, committed.Change(new=tuple(receipts), gone=()))
        self.ledger.append(receipts)

    _exchange(output.Output, "commit", commit)


@safeguard("tables follow at the start", "driver killed at a commit of data")
def _() -> None:
    """Only what a run commits itself comes into the tables."""
    follow = sink_output.follow

    def follow_changes_alone(there: Any, view: Any, change: Any = None) -> None:
        if change is not None:
            follow(there, view, change)

    _exchange(output, "follow", follow_changes_alone)


@safeguard("one commit for what comes and what goes", "prompt changed, driver killed at a commit")
def _() -> None:
    """Replaced files go in one commit, their successors come in the next."""

    def append(actions: list[Any]) -> Callable[..., None]:
        def two(table: Any, properties: CommitProperties) -> None:
            for some in ([a for a in actions if hasattr(a, "deletion_timestamp")], actions):
                kept = [a for a in some if some is not actions or not hasattr(a, "deletion_timestamp")]
                if kept:
                    table.create_write_transaction(kept, "append", table.schema())
                    table.update_incremental()

        return two

    _exchange(tables, "append_actions", append)


@safeguard("dead letters first, and looked for", "driver killed at the write of dead letters")
def _() -> None:
    """Data files are stored before their dead letters, and taken over without them."""
    put, late = storage.put, list[tuple[str, bytes]]()

    def put_in_the_wrong_order(uri: str, data: bytes) -> Any:
        if "/errors/" in uri:
            late.append((uri, data))
            return None
        stored = put(uri, data)
        while "/data/" in uri and late:
            put(*late.pop())
        return stored

    _exchange(storage, "put", put_in_the_wrong_order)
    _exchange(tables, "_errors_there", lambda *_: True)


@safeguard("of two receipts the first counts", "driver sleeps at a write while another takes its place")
def _() -> None:
    """A unit that was done twice is shown twice."""
    add = committed._Shard.add

    def add_both(shard: Any, receipt: Receipt) -> Any:
        current = shard.current.receipts
        here = current.get((receipt.start, receipt.stop))
        if here is None or here.fingerprint != receipt.fingerprint or receipt.replaces == here.attempt:
            return add(shard, receipt)
        current[(receipt.start, receipt.stop, receipt.attempt)] = receipt
        return [receipt], []

    _exchange(committed._Shard, "add", add_both)


@safeguard("taken over is what was asked now", "prompt changed after a kill")
def _() -> None:
    """A finished unit is taken over whatever it was asked."""
    take_over, evidence, wanted = sink_output.take_over, tables._evidence, [""]

    def take_over_all(*words: Any, fingerprint: str, **more: Any) -> Any:
        wanted[0] = fingerprint
        return take_over(*words, fingerprint=fingerprint, **more)

    def evidence_of_now(stored: Any) -> Receipt | None:
        found = evidence(stored)
        return None if found is None else replace(found, fingerprint=wanted[0])

    _exchange(output, "take_over", take_over_all)
    _exchange(tables, "_evidence", evidence_of_now)


@safeguard("taken over is what was read from this input", "shard changed between a kill and the next start")
def _() -> None:
    """A finished unit is taken over whatever its shard was."""
    take_over, evidence, now = sink_output.take_over, tables._evidence, list[Any]([{}])

    def take_over_all(*words: Any, identities: Any, **more: Any) -> Any:
        now[0] = identities
        return take_over(*words, identities=identities, **more)

    def evidence_of_now(stored: Any) -> Receipt | None:
        found = evidence(stored)
        return None if found is None else replace(found, identity=now[0].get(found.shard, found.identity))

    _exchange(output, "take_over", take_over_all)
    _exchange(tables, "_evidence", evidence_of_now)


@safeguard(
    "a changed shard waits until it is whole", "shard of a whole output changed, driver killed as it exchanges it"
)
def _() -> None:
    """The first unit of a changed shard replaces all that was there."""
    _exchange(committed._Units, "whole", lambda units: bool(units.receipts))


@safeguard("what waits is kept", "driver killed as it brings waiting files back")
def _() -> None:
    """Cleaning takes away the files of units that wait for their shard."""
    clean, waiting = sink_output.clean, committed.Committed.waiting

    def clean_all(*words: Any, **more: Any) -> Any:
        def none(_: committed.Committed) -> Iterator[Receipt]:
            yield from ()

        _exchange(committed.Committed, "waiting", none)
        try:
            return clean(*words, **more)
        finally:
            committed.Committed.waiting = waiting  # type: ignore[method-assign]

    _exchange(output, "clean", clean_all)


@safeguard("leftovers are removed", "files that lie about: torn, without receipt, not ours")
def _() -> None:
    _exchange(output, "clean", lambda *_, **__: 0)


@safeguard("what is committed is not done again", "unit.rows changed after a kill")
def _() -> None:
    """The plan knows no row of a shard that is partly done."""
    work = changes._work

    def forgetful(*words: Any) -> Any:
        found = work(*words)
        return found and replace(found, done=())

    _exchange(changes, "_work", forgetful)


@safeguard("finished files are taken over", "driver killed at an append to the ledger, the commit")
def _() -> None:
    """What was paid for and not committed is thrown away."""
    _exchange(output, "take_over", lambda *_, **__: [])


@safeguard("a run at work is left alone", "a second run while one is at work", r"exit \d where \(2,\)|was not told")
def _() -> None:
    _exchange(preparation, "refuse_if_alive", lambda *_, **__: None)


@safeguard("an overtaken run removes nothing", "driver sleeps as it cleans what another takes over")
def _() -> None:
    _exchange(fenced.FencedTable, "check_writer", lambda *_: None)
