"""Aside: where files lie that no reader should see yet, in `_waiting/` beside those that are current.

Units of a changed shard wait until the shard is whole. A run that stops before leaves their files in `_waiting/`, so
that `data/*.parquet` read as plain Parquet is what the table says; the run that makes the shard whole brings them
back. Each step can be repeated, and cut off at any point: a file is copied before it is deleted.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.sink.receipt import Receipt

WAITING = "_waiting"
TOGETHER = 16  # files moved behind one look at who is the writer, on S3 at once: a move is requests that are waited for


def open_file(sink_uri: str, folder: str, name: str) -> BinaryIO:
    """One of an output's files, current or waiting.

    Raises:
        FileNotFoundError: it is neither in `folder` nor aside.
    """
    try:
        return storage.open_input(storage.join(sink_uri, folder, name))
    except FileNotFoundError:
        return storage.open_input(storage.join(sink_uri, folder, WAITING, name))


def missing(sink_uri: str, receipts: Iterable[Receipt]) -> list[str]:
    """Files of these receipts that are neither where readers find them nor aside, as `data/…` or `errors/…`."""
    found: list[str] = []
    for folder, names in _names(receipts).items():
        listed = storage.listing(storage.join(sink_uri, folder), missing_ok=True)
        there = {stored.path.removeprefix(f"{WAITING}/") for stored in listed}
        found += [f"{folder}/{name}" for name in sorted(names - there)]
    return found


def schemas(sink_uri: str, receipts: Iterable[Receipt]) -> dict[str, pa.Schema]:
    """The columns of the newest of these receipts' files in `data` and in `errors`; absent: there is none."""
    newest = sorted(receipts, key=lambda receipt: receipt.finished_at, reverse=True)
    found: dict[str, pa.Schema] = {}
    for folder, names in (("data", [r.data_file for r in newest]), ("errors", [r.errors_file for r in newest])):
        name = next((name for name in names if name is not None), None)
        if name is not None:
            with open_file(sink_uri, folder, name) as file:
                found[folder] = pq.read_schema(file).remove_metadata()
    return found


def set_aside(sink_uri: str, waiting: Iterable[Receipt], check_writer: Callable[[], None]) -> None:
    """Move the files of these receipts out of sight.

    `check_writer`, before each `TOGETHER` of them, raises if another run has begun since, which may have made a file
    current. What is moved in spite of it, by a run that slept between the two, comes back with the next run's end or
    start.
    """
    for folder, names in _names(waiting).items():
        if not names:
            continue
        there = {stored.path for stored in storage.listing(storage.join(sink_uri, folder), missing_ok=True)}
        here = sorted(names & there)
        for start in range(0, len(here), TOGETHER):
            check_writer()
            some = here[start : start + TOGETHER]
            _move_all(storage.join(sink_uri, folder), storage.join(sink_uri, folder, WAITING), some)


def bring_back(sink_uri: str, current: Iterable[Receipt], aside: Collection[str]) -> None:
    """Move the files of these receipts back to where readers find them, if they are among those `aside`."""
    if aside:
        for folder, names in _names(current).items():
            back = sorted(names.intersection(aside))
            _move_all(storage.join(sink_uri, folder, WAITING), storage.join(sink_uri, folder), back)


def names_aside(sink_uri: str) -> frozenset[str]:
    """The files that lie aside."""
    return frozenset(
        stored.path
        for folder in ("data", "errors")
        for stored in storage.listing(storage.join(sink_uri, folder, WAITING), missing_ok=True)
    )


def _names(receipts: Iterable[Receipt]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {"data": set(), "errors": set()}
    for receipt in receipts:
        for folder, name in (("data", receipt.data_file), ("errors", receipt.errors_file)):
            if name is not None:
                names[folder].add(name)
    return names


def _move_all(source: str, target: str, names: Sequence[str]) -> None:
    moves = [(storage.join(source, name), storage.join(target, name)) for name in names]
    if not storage.is_s3(source):
        for move in moves:
            _move(*move)
        return
    with ThreadPoolExecutor(TOGETHER) as pool:
        for done in [pool.submit(_move, *move) for move in moves]:
            done.result()


def _move(source: str, target: str) -> None:
    with suppress(FileNotFoundError):  # a name is given twice, to a data file and to its dead letters
        storage.copy(source, target)
        storage.delete(source)
