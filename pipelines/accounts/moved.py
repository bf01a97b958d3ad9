"""What a candidate changes, row by row: answers moved from one value to another, with examples.

Only units that both versions cut alike from the same shard are compared; memory is that of one of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sink.aside import open_file
from pipelines.sink.receipt import Receipt

EXAMPLE_CHARACTERS = 80
MOST_MOVES = 1000  # different ones of a column that are counted apart; free text has as many as rows
OTHERS = ("…", "…")  # stands for the rest


@dataclass(frozen=True, slots=True)
class Example:
    """A row whose answer is another one."""

    shard: str
    row: int
    text: str  # of the input's first column of text, its beginning
    before: str
    after: str


@dataclass(slots=True)
class Column:
    """One column of the output, in rows that both versions answered."""

    rows: int = 0
    changed: int = 0
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Moved:
    """Over all units that were compared."""

    units: int = 0
    units_alike: int = 0  # that could be compared
    lost: int = 0  # rows with an answer now that would be dead letters
    found: int = 0  # dead letters now that would have an answer
    columns: dict[str, Column] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        columns = {
            name: {
                "rows": column.rows,
                "changed": column.changed,
                "moves": [{"from": a, "to": b, "rows": n} for (a, b), n in column.moves.most_common()],
                "examples": [
                    {"shard": one.shard, "row": one.row, "text": one.text, "from": one.before, "to": one.after}
                    for one in column.examples
                ],
            }
            for name, column in self.columns.items()
        }
        plain = {name: getattr(self, name) for name in ("units", "units_alike", "lost", "found")}
        return {**plain, "columns": columns}


def moved(
    sink_uri: str,
    new: Iterable[Receipt],
    shown: Iterable[Receipt],
    *,
    inputs: Sequence[str],
    most_units: int,
    examples: int,
) -> Moved:
    """Compare the units of a candidate with those that readers see in their place. `inputs`: the corpus's columns."""
    before = {(one.shard, one.identity, one.start, one.stop): one for one in shown}
    pairs = [(old, one) for one in new if (old := before.get((one.shard, one.identity, one.start, one.stop)))]
    found = Moved(units_alike=len(pairs))
    step = max(1, -(-len(pairs) // most_units))  # spread over the corpus, the same each time
    for old, one in pairs[::step]:
        if old.data_file is not None and one.data_file is not None:
            found.units += 1
            _compare(one.shard, _read(sink_uri, old.data_file), _read(sink_uri, one.data_file), inputs, examples, found)
    return found


def _read(sink_uri: str, name: str) -> pa.Table:
    with open_file(sink_uri, "data", name) as file:
        return pq.read_table(file).sort_by("_row")


def _compare(shard: str, old: pa.Table, new: pa.Table, inputs: Sequence[str], examples: int, found: Moved) -> None:
    both, left, right = np.intersect1d(old["_row"].to_numpy(), new["_row"].to_numpy(), return_indices=True)
    found.lost += old.num_rows - len(both)
    found.found += new.num_rows - len(both)
    before, after = old.take(left), new.take(right)
    shared = [name for name in after.column_names if name in before.column_names]
    texts = next((name for name in inputs if name in shared and pa.types.is_string(after[name].type)), None)
    for name in shared:
        if name in inputs or name.startswith("_") or pa.types.is_floating(after[name].type):
            continue
        column = found.columns.setdefault(name, Column())
        column.rows += len(both)
        pairs = zip(before[name].to_pylist(), after[name].to_pylist(), strict=True)
        for line, (one, other) in enumerate(pairs):
            if one == other:
                continue
            column.changed += 1
            move = (str(one), str(other))
            column.moves[move if move in column.moves or len(column.moves) < MOST_MOVES else OTHERS] += 1
            if column.moves[move] == 1 and len(column.examples) < examples:
                text = "" if texts is None else str(after[texts][line].as_py())
                column.examples.append(Example(shard, int(both[line]), text[:EXAMPLE_CHARACTERS], *move))


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Of each value, 0..1; empty: nothing was counted."""
    total = sum(counts.values())
    return {value: count / total for value, count in counts.items()} if total else {}
