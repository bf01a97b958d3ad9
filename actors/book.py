"""The answers of a run by row key, for all its hosts: what one engine has answered, no engine is asked again.

One small actor. A few megabytes of it stand in memory, the rest in a file on its node's disk, up to a bound; from there
on it takes in no more, and says so. It is a memory and not the truth: should it be lost, or too slow, rows are asked
again, and no more happens.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.exchange import from_ipc, to_ipc

logger = logging.getLogger(__name__)

MOST_BYTES = 8 * 2**30  # on disk: some 10^7 answers of classify with their alternatives
CACHE_KIB = 65_536  # of the file, in memory
PATIENCE_S = 5.0  # for the book: rows wait for what it says before they are asked
REST_S = 60.0  # for which a book that took longer is left alone
_TABLES = """
    PRAGMA temp_store = FILE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{cache};
    CREATE TABLE pages (page INTEGER PRIMARY KEY, unit TEXT, answers BLOB);
    CREATE TABLE keys (key BLOB PRIMARY KEY, page INTEGER, line INTEGER) WITHOUT ROWID;
"""


class Book:
    """The actor's body. A page is what one unit handed in at one time: NOTED, a line for each row."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._file = _empty()
        self._most_bytes, self._bytes = min(most_bytes, free_bytes() // 2), 0

    def note(self, unit: str, page: bytes) -> bool:
        """Take in the answers of some rows; of two under one key the first one stays. False: it is full, or closed."""
        if self._bytes + len(page) > self._most_bytes:
            return False
        try:
            self._take_in(unit, page)
        except sqlite3.Error as error:  # the disk is full; without a journal the file is not to be trusted any more
            logger.warning("the book of answers is closed, rows with one key may be asked more than once: %s", error)
            self._file.close()
            self._file, self._most_bytes = _empty(), 0
            return False
        return True

    def _take_in(self, unit: str, page: bytes) -> None:
        keys = [bytes.fromhex(key) for key in from_ipc(page)["_key"].to_pylist()]
        self._bytes += len(page) + 64 * len(keys)
        self._file.execute("BEGIN")
        number = self._file.execute("INSERT INTO pages (unit, answers) VALUES (?, ?)", (unit, page)).lastrowid
        self._file.executemany(
            "INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", [(key, number, line) for line, key in enumerate(keys)]
        )
        self._file.execute("COMMIT")

    def find(self, keys: Sequence[str]) -> dict[str, bytes]:
        """What is known under these keys: lines of NOTED, by the unit that they were asked for."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for key in keys:
            for page, line in self._file.execute("SELECT page, line FROM keys WHERE key = ?", (bytes.fromhex(key),)):
                wanted[page].append(line)
        found: dict[str, list[pa.Table]] = defaultdict(list)
        for page, lines in wanted.items():
            ((unit, answers),) = self._file.execute("SELECT unit, answers FROM pages WHERE page = ?", (page,))
            found[unit].append(from_ipc(answers).take(lines))
        return {unit: to_ipc(pa.concat_tables(tables)) for unit, tables in found.items()}


def free_bytes() -> int:
    """Where SQLite puts its files."""
    named = (os.environ.get(name) for name in ("SQLITE_TMPDIR", "TMPDIR"))
    return shutil.disk_usage(next(filter(None, named), "/var/tmp")).free  # noqa: S108 - its own choice


def _empty() -> sqlite3.Connection:
    # Without a name it is a file that SQLite unlinks at once: it is gone with this process, however that ends.
    file = sqlite3.connect("", isolation_level=None)
    file.executescript(_TABLES.format(cache=CACHE_KIB))
    return file


@dataclass(slots=True)
class AnswerBook:
    """A handle on the run's Book, for its hosts."""

    actor: Any  # ray.actor.ActorHandle
    patience_s: float = PATIENCE_S
    _rests_until: float = field(default=0.0, init=False)  # monotonic, in one process

    @classmethod
    def create(cls, *, most_bytes: int = MOST_BYTES) -> "AnswerBook":
        """A new Book, on the driver's node where it can be; it reserves no CPU."""
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=True)
        made = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)
        return cls(made(Book).remote(most_bytes))

    async def note(self, unit: str, page: pa.Table) -> bool:
        """See `Book.note`. Returns when it is done, so that who asks from then on finds it."""
        return await self._told("note", unit, to_ipc(page)) is not False

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        """See `Book.find`."""
        found: dict[str, bytes] = await self._told("find", list(keys)) or {}
        return {unit: from_ipc(page) for unit, page in found.items()}

    async def _told(self, call: str, *arguments: Any) -> Any:
        """What the actor returns; None: it is lost, or has not said in time. Nobody waits longer for a mere memory."""
        if time.monotonic() < self._rests_until:
            return None
        answer = asyncio.wrap_future(getattr(self.actor, call).remote(*arguments).future())
        why: object = f"nothing for {self.patience_s:g} s"
        try:
            return await asyncio.wait_for(answer, self.patience_s)
        except TimeoutError:
            pass
        except RayError as error:
            why = error
        self._rests_until = time.monotonic() + REST_S
        logger.warning("the book of answers is lost, rows with one key may be asked more than once: %s", why)
        return None
