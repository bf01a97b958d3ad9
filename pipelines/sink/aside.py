"""Aside: where files lie that no reader should see yet, in `_waiting/` beside those that are current.

Units of a changed shard wait until the shard is whole. A run that stops before leaves their files in `_waiting/`, so
that `data/*.parquet` read as plain Parquet is what the table says; the run that makes the shard whole brings them
back. Each step can be repeated, and cut off at any point: a file is copied before it is deleted.
"""

from collections.abc import Callable, Collection, Iterable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.sink.receipt import Receipt

WAITING = "_waiting"


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

    `check_writer`, before each, raises if another run has begun since, which may have made that file current. What is
    moved in spite of it, a run that slept between the two, comes back with the next run's end or start.
    """
    for folder, names in _names(waiting).items():
        if not names:
            continue
        there = {stored.path for stored in storage.listing(storage.join(sink_uri, folder), missing_ok=True)}
        for name in names & there:
            check_writer()
            _move(storage.join(sink_uri, folder, name), storage.join(sink_uri, folder, WAITING, name))


def bring_back(sink_uri: str, current: Iterable[Receipt], aside: Collection[str]) -> None:
    """Move the files of these receipts back to where readers find them, if they are among those `aside`."""
    if aside:
        for folder, names in _names(current).items():
            for name in names.intersection(aside):
                source = storage.join(sink_uri, folder, WAITING, name)
                if storage.exists(source):  # a name is given twice, to a data file and to its dead letters
                    _move(source, storage.join(sink_uri, folder, name))


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


def _move(source: str, target: str) -> None:
    storage.put(target, storage.get(source))
    storage.delete(source)
