"""A Delta table with one writer at a time: open, create, commit; a writer that was overtaken is refused.

Every commit carries the Delta app transaction (WRITER, epoch). delta-rs refuses a commit if another one with the
same app id landed since its handle was refreshed, and before each commit we look whether the epoch in the table is
still ours. So a driver that slept through its successor's start is told so by the log itself, by no clock.

A store that is away is waited for (patience.py), delta-rs having few retries of its own.
"""

import itertools
import json
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipelines import patience, storage
from pipelines.config import RunFailed, UserError
from pipelines.sink.delta_errors import patiently, reason, rest

WRITER = "pipelines.writer"  # the app id of whoever writes to an output
TOKEN = "pipelines.commit"  # noqa: S105 – names a commit, so that one whose answer was lost is recognized
RUN, HOST = "pipelines.run", "pipelines.host"  # whose commit it is, for whoever reads the table's history
COMMIT_ATTEMPTS = 6  # of a commit that fails while the store answers
FEW_RETRIES = {"max_retries": "3", "retry_timeout": "5s"}  # of delta-rs: the waiting, and telling of it, is ours
FILES_AT_ONCE = 8  # read by threads, where the way to the store takes longer than the reading
RECENT = 24  # commits, back from the newest, among which one's own or another's is looked for
CONFIGURATION = {
    "delta.checkpointInterval": "50",  # commits; a table of 10^5 files opens from its newest checkpoint
    # Of columns we give no statistics, and delta-rs would make room for those of 32: of 10^5 files 22 MB, and as much
    # again with every few commits.
    "delta.dataSkippingNumIndexedCols": "0",
}


class Fenced(RunFailed):
    """Another run has taken over this output; this one may write no more."""


T = TypeVar("T")


@dataclass(slots=True)
class FencedTable:
    """A handle, and what it takes to renew it. StoreFailed, from any method: the store refused, or stayed away."""

    uri: str
    table: DeltaTable
    options: dict[str, str] | None
    signed: dict[str, str] = field(default_factory=dict)  # into the metadata of each commit
    gave_up: bool = False  # the store stayed away for too long: it is not waited for a second time
    known: tuple[int, int] | None = None  # a version of the table, and the epoch in it: to look it up reads the log

    @classmethod
    def open(cls, uri: str) -> "FencedTable | None":
        """The table at `uri`; None if there is none."""

        def opened() -> FencedTable | None:
            options = storage.delta_options(uri)
            try:
                return cls(uri, _handle(uri, options), options)
            except TableNotFoundError:
                return None

        return patiently(uri, opened)

    @classmethod
    def create(
        cls, uri: str, schema: pa.Schema, *, growing: bool = False, found: "FencedTable | None" = None
    ) -> "FencedTable":
        """The table at `uri`, made empty if it was not there; a UserError if it has another schema.

        A table that is `growing` may lack columns, which `grow` then adds. `found`: what `open` gave, earlier; a table
        is opened but once, for that takes two requests for each commit since its last checkpoint.
        """

        def created() -> FencedTable:
            options = storage.delta_options(uri)
            table = DeltaTable.create(
                uri,
                schema=Schema.from_arrow(schema),
                mode="ignore",  # another run may be just as fast
                configuration=CONFIGURATION,
                storage_options=_with_retries(options),
            )
            return cls(uri, table, options)

        if found is None:
            found = cls.open(uri) or patiently(uri, created)
        else:
            found.refresh()
        found.check(schema, growing=growing)
        return found

    def schema(self) -> pa.Schema:
        """Its columns now."""
        return pa.schema(self.table.schema().to_arrow())

    def check(self, schema: pa.Schema, *, growing: bool) -> None:
        """Raise UserError unless rows of this schema go into the table, with new columns if it is `growing`."""
        _same_schema(self.uri, self.schema(), schema, growing=growing)

    def grow(self, schema: pa.Schema, epoch: int) -> None:
        """Add the columns of `schema` that the table lacks. In the rows that are there they are null."""
        there = set(self.schema().names)
        more = Schema.from_arrow(pa.schema([field for field in schema if field.name not in there])).fields
        if more:
            self.commit(epoch, lambda table, properties: table.alter.add_columns(more, commit_properties=properties))

    def refresh(self) -> None:
        """Bring the handle up to the newest version, with credentials as they are now."""
        patiently(self.uri, self._renew)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows of the newest version, in no promised order."""

        def rows() -> pa.Table:
            self._renew()
            return self.table.to_pyarrow_dataset().to_table(columns=list(columns))

        return patiently(self.uri, rows)

    def names(self, expected: Iterable[str] = ()) -> set[str]:
        """Of the files of the newest version. Those that are `expected` are in memory, and are not held twice."""

        def named() -> set[str]:
            self._renew()
            found, there, uris = set(expected), 0, self.table.file_uris()
            before = len(found)
            while uris:  # 10^5 of them take 18 MB
                name = uris.pop().rpartition("/")[2]
                there += name in found
                found.add(name)
            # What was expected is there, and once: else it is found out the dear way.
            return found if there == before else self._names()

        return patiently(self.uri, named)

    def gathered(self, of_file: Callable[[str], list[T]]) -> list[T]:
        """What `of_file` makes of each file of the newest version, by its URI, together, in no promised order."""

        def all_of_them() -> list[T]:
            self._renew()
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                uris = [storage.join(self.uri, name) for name in self._names()]
                return list(chain.from_iterable(pool.map(of_file, uris)))

        return patiently(self.uri, all_of_them)

    def tidy(self, *, keep_hours: float) -> None:
        """Write a checkpoint of the log; remove files that have not been current for so long."""

        def tidied() -> None:
            self._renew()
            self.table.create_checkpoint()
            self.table.vacuum(retention_hours=keep_hours, enforce_retention_duration=False, dry_run=False)

        patiently(self.uri, tidied)

    def version(self) -> int:
        """Of the table, as this handle sees it: each commit makes the next one."""
        return int(self.table.version())

    def epoch(self) -> int:
        """Of the last writer that began here; 0: none has."""
        version = self.version()
        if self.known is None or self.known[0] != version:
            self.known = version, self.table.transaction_version(WRITER) or 0
        return self.known[1]

    def begin(self, epoch: int | None = None, *, run: str = "") -> int:
        """Fence off all earlier writers: from here on, commits of epochs below the returned one are refused.

        Without `epoch`, the next one. With it (that of the ledger, for the other tables), exactly that. `run` is who
        the others are told to have been overtaken by.
        """
        token, mine, conflicts = uuid.uuid4().hex, 0, 0
        self.signed = {RUN: run, HOST: socket.gethostname()} if run else {}
        with patience.waiting(storage.shown(self.uri)) as wait:
            for attempt in itertools.count(1):
                try:
                    self._renew()
                    if attempt > 1 and self._landed(token):
                        return mine
                    mine = self.epoch() + 1 if epoch is None else epoch
                    if self.epoch() >= mine:
                        raise self._overtaken(mine)
                    self._write(lambda properties: _append_actions(self.table, [], properties), mine, token)
                except CommitFailedError as error:  # another writer began at the same moment: the next number
                    conflicts += 1
                    if conflicts == RECENT:
                        where = storage.shown(self.uri)
                        raise storage.StoreFailed(
                            f"{where}: other runs keep starting on this output; stop them"
                        ) from error
                except (DeltaError, OSError) as error:
                    rest(self.uri, wait, attempt, error)
                else:
                    return mine
        raise AssertionError("unreachable")

    def commit(self, epoch: int, write: Callable[[DeltaTable, CommitProperties], None], *, always: bool = True) -> None:
        """Do `write` as one commit of `epoch`, once. A commit whose answer was lost is recognized by its token.

        `always`: it makes a commit or raises. Not so a compaction, which may find nothing to do.

        Raises:
            Fenced: a later epoch has begun.
            StoreFailed: the store stayed away; whether the commit landed is not known, the next start finds out.
        """
        token = uuid.uuid4().hex
        with patience.waiting(storage.shown(self.uri)) as wait:
            for attempt in itertools.count(1):
                try:
                    self._renew()
                    if attempt > 1 and self._landed(token):
                        return
                    self._check_writer(epoch)
                    self._write(lambda properties: write(self.table, properties), epoch, token)
                    self.known = self.known if always else None
                except (DeltaError, OSError) as error:
                    if self.gave_up:
                        raise storage.StoreFailed(reason(self.uri, error)) from error
                    try:
                        rest(self.uri, wait, attempt, error, tries=COMMIT_ATTEMPTS)
                    except storage.StoreFailed:
                        self.gave_up = True
                        raise
                else:
                    return

    def check_writer(self, epoch: int) -> None:
        """Raise Fenced if a later epoch has begun: before what no commit guards."""
        self.refresh()
        self._check_writer(epoch)

    def _check_writer(self, epoch: int) -> None:
        if self.epoch() != epoch:
            raise self._overtaken(epoch)

    def _names(self) -> set[str]:
        """By far cheaper than get_add_actions, which reads the statistics of all files.

        Names are not encoded, ours and those that delta-rs gives being of safe characters; the folders before them are.
        """
        return {uri.rpartition("/")[2] for uri in self.table.file_uris()}

    def _renew(self) -> None:
        options = storage.delta_options(self.uri)
        if options == self.options:
            self.table.update_incremental()
        else:
            self.table, self.options = _handle(self.uri, options), options

    def _write(self, write: Callable[[CommitProperties], None], epoch: int, token: str) -> None:
        metadata, before = {TOKEN: token, **self.signed}, self.version()
        write(CommitProperties(custom_metadata=metadata, app_transactions=[Transaction(WRITER, epoch)]))
        self.table.update_incremental()
        if self.version() == before + 1:  # then this version is ours, and nobody has begun since
            self.known = self.version(), epoch

    def _landed(self, token: str) -> bool:
        return any(entry.get(TOKEN) == token for entry in self._newest())

    def _overtaken(self, epoch: int) -> Fenced:
        newest = next((entry for entry in self._newest() if entry.get(RUN)), None)
        who = "another run" if newest is None else f"run {newest[RUN]} on host {newest.get(HOST)}"
        return Fenced(
            f"{storage.shown(self.uri)}: {who} has begun after this one (number {self.epoch()} of this output "
            f"after number {epoch}), which stops; what it had committed stays"
        )

    def _newest(self) -> Iterator[dict[str, Any]]:
        """What newest commits say of themselves, the last one first.

        Read from the log itself: deltalake 1.6's `history` asks the store without letting other threads run, so with
        one that is silent there would be no signal, no sign of life, and no word on the terminal.
        """
        version = self.table.version()
        for number in range(version, max(version - RECENT, -1), -1):
            try:
                text = storage.get(storage.join(self.uri, "_delta_log", f"{number:020}.json"))
            except FileNotFoundError:
                return  # an old one, cleaned up
            for line in text.splitlines():
                yield json.loads(line).get("commitInfo") or {}


def _handle(uri: str, options: dict[str, str] | None) -> DeltaTable:
    return DeltaTable(uri, storage_options=_with_retries(options))


def _with_retries(options: dict[str, str] | None) -> dict[str, str] | None:
    return None if options is None else options | FEW_RETRIES


def append_actions(actions: list[Any]) -> Callable[[DeltaTable, CommitProperties], None]:
    """A commit that adds and removes files which are there already."""
    return lambda table, properties: _append_actions(table, actions, properties)


def _append_actions(table: DeltaTable, actions: list[Any], properties: CommitProperties) -> None:
    table.create_write_transaction(actions, "append", table.schema(), commit_properties=properties)


def check_inside(sink_uri: str, name: str) -> str:
    """The URI of a folder of an output; refused if it is a link that leads out of the output."""
    uri = storage.join(sink_uri, name)
    if not storage.is_s3(uri):
        root = Path(sink_uri).resolve()
        if not Path(uri).resolve().is_relative_to(root):
            raise UserError(
                f"{uri} is a link to {Path(uri).resolve()}, outside of sink.uri={sink_uri}; remove the link"
            )
    return uri


def _same_schema(uri: str, found: pa.Schema, wanted: pa.Schema, *, growing: bool) -> None:
    image = pa.schema(Schema.from_arrow(wanted).to_arrow())
    if found.equals(image):
        return
    differences = [f"{name} is missing there" for name in image.names if name not in found.names and not growing]
    differences += [f"{name} is only there" for name in found.names if name not in image.names]
    differences += [
        f"{name} is {found.field(name).type} there, {image.field(name).type} now"
        for name in image.names
        if name in found.names and found.field(name).type != image.field(name).type
    ]
    if differences:  # the order of columns does not matter to a reader
        raise UserError(
            f"{storage.shown(uri)} has other columns than this run would write: {'; '.join(differences)}. "
            "Choose another sink.uri, or make them equal"
        )
