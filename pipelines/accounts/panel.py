"""A panel: the same few rows of an output, looked at after each run, so that changed answers are seen row by row.

A row is in the panel by a hash of its place, so each run finds the same rows without keeping a list, and a corpus that
grows moves few of them. By its row key it could not be: that changes with model and template, which is when a panel
is wanted. Files are read by column, and so many at most, whatever the size of the output.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import pyarrow.parquet as pq

from pipelines.sink.aside import open_file
from pipelines.sink.receipt import Receipt

UNITS = 40  # looked at: those whose place hashes lowest
ROWS_OF_UNIT = 10
FILES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows of the panel: identity of the shard, and a digest of the answer, by shard and row number in it."""

    answers: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, list[str]]:
        """For JSON."""
        return {place: list(answer) for place, answer in self.answers.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Sequence[str]]) -> Self:
        """What `to_plain` made."""
        return cls({place: (identity, digest) for place, (identity, digest) in plain.items()})


def panel(sink_uri: str, current: Iterable[Receipt], columns: Sequence[str]) -> Panel:
    """The panel of an output. `current`: receipts of what it holds now; `columns`: those that the job's contract makes.

    Raises:
        StoreFailed: the store refused or stayed away.
    """
    units = heapq.nsmallest(
        UNITS,
        (one for one in current if one.rows_ok),
        key=lambda one: (hash_of(one.shard, one.start), one.shard, one.start),
    )
    answers: dict[str, tuple[str, str]] = {}
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for found in pool.map(partial(_of_unit, sink_uri, columns), sorted(units, key=lambda one: one.shard)):
            answers |= found
    return Panel(answers)


def changed(new: Panel, old: Panel) -> tuple[int, int]:
    """Rows of both panels whose shard is the same still, and those of them with another answer."""
    both = [
        place for place in new.answers.keys() & old.answers.keys() if _identity(new, place) == _identity(old, place)
    ]
    return len(both), sum(1 for place in both if new.answers[place] != old.answers[place])


def _of_unit(sink_uri: str, columns: Sequence[str], receipt: Receipt) -> dict[str, tuple[str, str]]:
    """The panel's rows in a unit; none if its file is gone."""
    try:
        with open_file(sink_uri, "data", receipt.data_file or "") as file:
            rows = pq.read_table(file, columns=["_row", *columns])
    except FileNotFoundError:
        return {}
    numbers = rows["_row"].to_pylist()
    lowest = heapq.nsmallest(ROWS_OF_UNIT, range(len(numbers)), key=lambda line: hash_of(receipt.shard, numbers[line]))
    said = rows.select(list(columns)).take(lowest).to_pylist()
    return {
        f"{receipt.shard}:{numbers[line]}": (receipt.identity, _digest(answer))
        for line, answer in sorted(zip(lowest, said, strict=True), key=lambda pair: pair[0])
    }


def _identity(of: Panel, place: str) -> str:
    return of.answers[place][0]


def hash_of(shard: str, number: int) -> bytes:
    """Of a place: rows or units with the lowest are looked at."""
    return hashlib.blake2b(f"{shard}\0{number}".encode(), digest_size=8).digest()


def _digest(answer: Mapping[str, Any]) -> str:
    """Of an answer's values but for its confidence, whose last digits depend on what else was in the engine."""
    values = {name: value for name, value in answer.items() if name != "confidence"}
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
