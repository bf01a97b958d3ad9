"""Checker: what must hold of an output, while runs are disturbed and when all is over. It reads for itself.

I1 every row of the input is in exactly one place. I2 a Delta reader sees no row twice, and none go that was shown.
I3 every current file has its receipt, and no other file lies about. I4 the answers are those of an undisturbed run.
I5 no more is asked again than was in flight. I6 the same command once more asks and changes nothing.
"""

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.world import Key, Place, corpus, table, versions

LOOK_S = 0.3
Row = tuple[str, int, str | None]  # shard, row, and the text that is there


@dataclass(frozen=True)
class Expected:
    """What the output must be in the end."""

    answers: Mapping[str, str] | None  # by text; None: the engine is a real one, and any answer will do
    dead: Mapping[str, str] = field(default_factory=dict)  # texts that must be dead letters, and of which type
    foreign: frozenset[str] = frozenset()  # files that are not the pipeline's, and must stay


def at_the_end(source: Place, sink: Place, expected: Expected) -> list[str]:
    """What is wrong with an output at rest; nothing, if all is well."""
    rows = corpus(source)
    try:
        data, errors = table(sink.below("data")), table(sink.below("errors"))
    except FileNotFoundError as error:
        return [f"I3 a table cannot be read: {error}"]
    wrong = _each_once(rows, data, errors) + _right(rows, data, errors, expected)
    return wrong + _files(sink, data, errors, expected)


def _each_once(rows: Mapping[Key, str | None], data: list[dict[str, Any]], errors: list[dict[str, Any]]) -> list[str]:
    seen = Counter((row["_shard"], row["_row"]) for row in data + errors)
    return [
        *(f"I1 {key} is missing" for key in rows.keys() - seen.keys()),
        *(f"I1 {key} is there {count} times" for key, count in seen.items() if count > 1),
        *(f"I1 {key} is no row of the input" for key in seen.keys() - rows.keys()),
    ]


def _right(
    rows: Mapping[Key, str | None], data: list[dict[str, Any]], errors: list[dict[str, Any]], expected: Expected
) -> list[str]:
    wrong = []
    for row, kind in [(row, None) for row in data] + [(row, row["_error_type"]) for row in errors]:
        key = (row["_shard"], row["_row"])
        text = rows.get(key)
        if row["text"] != text or row["id"] != f"{key[0]}:{key[1]}":
            wrong.append(f"I1 {key} carries {row['id']}, {row['text']!r} of the input's {text!r}")
        due = "empty" if text is None or not text.strip() else expected.dead.get(text)
        if kind != due:
            wrong.append(f"I4 {key} ({text!r}) is {kind or 'data'}, and should be {due or 'data'}")
        if kind is None and expected.answers is not None and row["answer"] != expected.answers[text or ""]:
            wrong.append(f"I4 {key} ({text!r}) has another answer than an undisturbed run gives")
    return wrong


def _files(sink: Place, data: list[dict[str, Any]], errors: list[dict[str, Any]], expected: Expected) -> list[str]:
    wrong = []
    receipts = table(sink.below("ledger"))
    known = {receipt["data_file"]: receipt for receipt in receipts}
    current: dict[str, frozenset[str]] = {}
    for name, rows in (("data", data), ("errors", errors)):
        place = sink.below(name)
        *_, newest = versions(place)
        current[name] = newest.files
        files = {file for file in place.names() if not file.startswith("_delta_log/")}
        wrong += [f"I3 {name}/{file} lies about" for file in files - newest.files if file not in expected.foreign]
        wrong += [f"I3 {name}/{file} is gone" for file in newest.files - files]
        plain = _keys(place, newest.files & files)
        if Counter(plain) != Counter((row["_shard"], row["_row"]) for row in rows):
            wrong.append(f"I3 {name}/*.parquet read as plain Parquet are not the rows of the table")
    wrong += [f"I3 {file} has no receipt" for file in current["data"] - known.keys()]
    # A commit whose answer was lost may stand there twice, under one number. Under two it would be paid for twice.
    places = Counter(attempt for attempt, _, _ in {(one["attempt"], one["epoch"], one["seq"]) for one in receipts})
    wrong += [f"I3 attempt {attempt} was counted {count} times" for attempt, count in places.items() if count > 1]
    wrong += [f"foreign file {name} was removed" for name in expected.foreign if sink.below("data").read(name) is None]
    stays = sink.below("runs").names()
    wrong += [f"{name} stayed" for name in stays if name.endswith("alive.json") or name.startswith(".probe/")]
    return wrong


def after_a_kill(sink: Place) -> list[str]:
    """What holds even of an output that nobody has brought to rest: readers see nothing that is not committed."""
    shown = list(versions(sink.below("data")))[-1:]
    known = {receipt["data_file"] for receipt in table(sink.below("ledger"))} if shown else set()
    return [f"I3 {file} is shown, and has no receipt" for version in shown for file in version.files - known]


def finished(sink: Place) -> set[str]:
    """The keys of all prompts whose answers lie in whole files, committed or not."""
    place, found = sink.below("data"), set[str]()
    for name in place.names():
        data = place.read(name) if name.endswith(".parquet") and "/" not in name else None
        with contextlib.suppress(pa.ArrowException, OSError):
            found.update(pq.read_table(io.BytesIO(data or b""), columns=["_key"])["_key"].to_pylist())
    return found


def _keys(place: Place, files: frozenset[str] | set[str]) -> list[Key]:
    return [row[:2] for file in files for row in _rows_of(place, file) or ()]


def _rows_of(place: Place, file: str) -> tuple[Row, ...] | None:
    """The rows of a Parquet file; None: it is gone, or no such file."""
    data = place.read(file)
    if data is None:
        return None
    try:
        read = pq.read_table(io.BytesIO(data), columns=["_shard", "_row", "text"])
    except (pa.ArrowException, OSError):
        return None
    return tuple(zip(*(read[name].to_pylist() for name in ("_shard", "_row", "text")), strict=True))


def at_rest(sink: Place) -> tuple[Any, ...]:
    """All that a run which has nothing to do must leave as it is."""
    files = tuple(
        name for folder in ("data", "errors") for name in sink.below(folder).names() if "_delta_log" not in name
    )
    receipts = sorted((row["epoch"], row["seq"], row["attempt"]) for row in table(sink.below("ledger")))
    rows = sorted((row["_shard"], row["_row"], row["answer"]) for row in table(sink.below("data")))
    return files, tuple(receipts), tuple(rows)


# ------------------------------------------------------------------------------------------------- while runs go on


@dataclass
class Reader:
    """A reader who looks at an output all the time, and remembers what was in which file."""

    sink: Place
    looks: int = 0
    versions: int = 0
    missed: int = 0  # looks that the store did not answer
    wrong: list[str] = field(default_factory=list)
    _rows: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    _commits: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def looking(self) -> Iterator["Reader"]:
        thread = threading.Thread(target=self._look_on, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(30)

    def look(self) -> None:
        """Read the files that have appeared, and the table as any Delta reader does."""
        place = self.sink.below("data")
        for name in place.names():
            if name.endswith(".parquet") and "/" not in name and name not in self._rows:
                rows = _rows_of(place, name)
                if rows is not None:
                    self._rows[name] = rows
        commits = len(place.below("_delta_log").names())
        if commits == self._commits:
            return
        self._commits = commits
        try:
            seen = pl.read_delta(place.uri, storage_options=place.options, columns=["_shard", "_row"])
        except Exception:  # noqa: BLE001 – not there yet, or a file of a version that was replaced just now
            return
        self.looks += 1
        if seen.height != seen.unique().height:
            self.wrong.append(f"I2 a reader saw {seen.height - seen.unique().height} rows twice")

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self.look()
            except (TypeError, AttributeError, NameError, KeyError, ImportError) as error:  # blind by its own fault
                self.wrong.append(f"the reader failed: {type(error).__name__}: {error}")
                return
            except Exception:  # noqa: BLE001 – the store is away, or its bucket is not there yet
                self.missed += 1

    def history(self, inputs: Sequence[Mapping[Key, str | None]], dead: Collection[str] = ()) -> list[str]:
        """What was wrong in any version of the table. `inputs`: the corpus as it was, and after each change."""
        self.look()
        wrong = list(self.wrong)
        shards = {key[0] for rows in inputs for key in rows}
        states = {shard: [_answerable(shard, rows, dead) for rows in inputs] for shard in shards}
        before: dict[str, set[Row]] = {}
        for version in versions(self.sink.below("data")):
            if not all(file in self._rows for file in version.files):
                continue  # it was replaced before anybody looked
            shown = Counter(row for file in version.files for row in self._rows[file])
            now = {shard: {row for row in shown if row[0] == shard} for shard in shards}
            keys = Counter(row[:2] for row in shown.elements())
            wrong += [
                f"I2 version {version.number} of data shows {key} twice" for key, count in keys.items() if count > 1
            ]
            for shard in shards:
                wrong += [
                    f"I2 version {version.number}: {why}"
                    for why in _stepped(before.get(shard, set()), now[shard], states[shard])
                ]
            before = now
            self.versions += 1
        if not self.versions or not self.looks:
            wrong.append(f"nobody looked: {self.looks} looks, {self.missed} missed, {self.versions} versions read")
        return wrong


def _answerable(shard: str, rows: Mapping[Key, str | None], dead: Collection[str]) -> set[Row]:
    return {
        (*key, text) for key, text in rows.items() if key[0] == shard and text and text.strip() and text not in dead
    }


def _stepped(before: set[Row], now: set[Row], states: Sequence[set[Row]]) -> list[str]:
    """What is wrong with a step of one shard: it may grow, or go as a whole from what it was to what it is."""
    if not any(now <= state for state in states):
        return [f"rows of two inputs of one shard are shown together, such as {min(now)}"]
    if before <= now or (before in states and now in states):
        return []
    # Of an input that was never shown as a whole, what is there may go when the next is.
    if now in states and any(before <= state for state in states):
        return []
    return [f"{len(before - now)} rows are gone that were shown, {min(before - now)} for one"]
