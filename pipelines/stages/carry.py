"""Carry: what an output already says of a unit's rows, so that no engine is asked for it again.

Two cases. A unit whose dead letters are asked again keeps its answers, and the dead letters that are not asked, by
row number: the shard is the same. A shard that has changed keeps the answers to what it still asks, by row key: one
key has one answer, wherever the row stands now.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.sink.aside import open_file
from pipelines.sink.receipt import Redo

log = logging.getLogger(__name__)

OF_ANSWER = ("_key", "_model", "_prompt_tokens", "_cached_tokens", "_output_tokens", "_finish_reason")
OF_ERROR = ("_error_type", "_error", "_attempts", "_first_tried", "_last_tried")
FILES_OPEN = 4  # decoded data files that a lookup holds: rows of a changed shard mostly keep their order


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrySpec:
    """Where answers are carried from, and which columns of them."""

    sink_uri: str
    outputs: tuple[str, ...]  # the columns that the job's output contract makes
    retry: tuple[str, ...] | None = ()  # types of dead letters that are asked again; None: all
    earlier: tuple[str, ...] = ()  # data files that may have an answer to any row; all that a changed shard had, too

    @property
    def columns(self) -> list[str]:
        """Of a data file, all that does not come from the input or from the row's place."""
        return [*self.outputs, *OF_ANSWER]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What is known of some rows of a unit, by their line in it."""

    data: pa.Table  # `_line` (int64) and `CarrySpec.columns`: these rows have their answer
    dead: pa.Table | None = None  # `_line`, `OF_ERROR`, `_again` (bool): dead letters, and which are asked again

    @property
    def lines(self) -> npt.NDArray[np.int64]:
        """Rows for which no engine is asked."""
        answered: npt.NDArray[np.int64] = self.data["_line"].to_numpy()
        if self.dead is None:
            return answered
        return np.concatenate([answered, self.dead.filter(pc.invert(self.dead["_again"]))["_line"].to_numpy()])


def kept(redo: Redo, spec: CarrySpec) -> Carried | None:
    """What stays of a unit of which dead letters are asked again; None: it is asked anew as a whole.

    A file that is gone cannot be kept, so its rows are asked again: that repairs the output.
    """
    if redo.replaces is None or redo.data_file is None:
        return None
    data = _rows(spec.sink_uri, "data", redo.data_file, spec.columns, redo.start)
    dead = None if redo.errors_file is None else _rows(spec.sink_uri, "errors", redo.errors_file, OF_ERROR, redo.start)
    if data is None:
        return None
    if dead is not None:
        types = pc.is_in(dead["_error_type"], pa.array(spec.retry or (), pa.string()))
        again = pa.repeat(True, dead.num_rows) if spec.retry is None else types
        dead = dead.append_column("_again", again)
    return Carried(data=data, dead=dead)


def _rows(sink_uri: str, folder: str, name: str, columns: Sequence[str], start: int) -> pa.Table | None:
    """Some columns of one of our files, behind the lines of its rows; None: the file is gone."""
    try:
        with open_file(sink_uri, folder, name) as file:
            found = pq.read_table(file, columns=["_row", *columns])
    except FileNotFoundError:
        log.warning("%s/%s/%s is gone, though a receipt names it: its rows are asked again", sink_uri, folder, name)
        return None
    lines = pc.subtract(found["_row"], start)
    return found.select(list(columns)).add_column(0, "_line", lines)


class Answered:
    """Answers in some data files, by row key. Holds 16 bytes for each of their rows, and a few files' answers."""

    def __init__(self, spec: CarrySpec, files: Sequence[str], hashes: npt.NDArray[np.uint64], sizes: list[int]) -> None:
        self._spec = spec
        self._files = files
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._open: OrderedDict[int, pa.Table] = OrderedDict()

    @classmethod
    def open(cls, files: Sequence[str], spec: CarrySpec) -> Self:
        """Read the keys of these data files. Those that are gone have nothing to say."""
        there, hashes, sizes = [], [], []
        for name in files:
            try:
                with open_file(spec.sink_uri, "data", name) as file:
                    keys = pq.read_table(file, columns=["_key"])["_key"].to_pylist()
            except FileNotFoundError:
                log.warning("%s/data/%s is gone, though a receipt names it", spec.sink_uri, name)
                continue
            there.append(name)
            hashes.append(_hashed(keys))
            sizes.append(len(keys))
        return cls(spec, there, np.concatenate([np.zeros(0, np.uint64), *hashes]), sizes)

    def find(self, keys: Sequence[str | None]) -> Carried | None:
        """Answers to these row keys, by their place; None: there is none."""
        asked = np.array([line for line, key in enumerate(keys) if key is not None], np.int64)
        wanted = _hashed([key for key in keys if key is not None])
        at = np.searchsorted(self._hashes, wanted)
        hit = at < len(self._hashes)
        hit[hit] = self._hashes[at[hit]] == wanted[hit]
        if not hit.any():
            return None
        lines, rows = asked[hit], self._order[at[hit]]
        number = np.searchsorted(self._starts, rows, side="right") - 1
        found: list[pa.Table] = []
        for file in np.unique(number):
            mine = number == file
            answers = self._answers(int(file)).take(rows[mine] - self._starts[file])
            found.append(answers.add_column(0, "_line", pa.array(lines[mine])))
        table = pa.concat_tables(found)
        pairs = zip(table["_line"].to_pylist(), table["_key"].to_pylist(), strict=True)
        return Carried(data=table.filter(pa.array([keys[line] == key for line, key in pairs])))

    def _answers(self, file: int) -> pa.Table:
        if file not in self._open:
            with open_file(self._spec.sink_uri, "data", self._files[file]) as source:
                self._open[file] = pq.read_table(source, columns=self._spec.columns)
            if len(self._open) > FILES_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]


@lru_cache(maxsize=1)
def earlier(spec: CarrySpec) -> Answered:
    """Answers in all of `spec.earlier`; their keys are read once in each process."""
    return Answered.open(spec.earlier, spec)


def _hashed(keys: Collection[str]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of each key. That two of them meet by chance is seen when the whole keys are compared."""
    return np.fromiter((int(key[:16], 16) for key in keys), np.uint64, len(keys))
