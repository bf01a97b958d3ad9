"""Rows that a report shows: lengths and labels of a run's answers, and some of its dead letters.

Columns are read, never whole rows, of so many files at most, and what is shown of a text is cut at once: a report
takes no more memory, and no more time, for a corpus of 10^9 rows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.sink.receipt import Receipt

FILES_READ = 200  # of data files; they are taken at even distances
FILES_AT_ONCE = 8
EXAMPLES = 3  # of each type of error
TYPES_SHOWN = 20  # of errors
ERROR_FILES = 3 * TYPES_SHOWN
CUT = 200  # characters of any text

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a run's data files hold, as far as they were read."""

    files: int = 0  # read
    of_files: int = 0
    prompt_tokens: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    output_tokens: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by column: how often each value stands

    @property
    def rows(self) -> int:
        return len(self.prompt_tokens)

    @property
    def sampled(self) -> bool:
        """Whether there were more files than were read."""
        return self.files < self.of_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A dead letter, cut."""

    shard: str
    row: int
    error: str
    text: str | None  # of the first column of text; None: the input has none


def label_columns(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the output whose values are of a closed set, as a run's config tells them."""
    output = config["job"]["output"]
    if output["kind"] == "labels":
        return ("label",)
    properties = (output.get("json_schema") or {}).get("properties", {}) if output["kind"] == "json" else {}
    return tuple(name for name, schema in properties.items() if isinstance(schema, dict) and "enum" in schema)


def answers(sink_uri: str, receipts: Sequence[Receipt], labels: Sequence[str]) -> Answers:
    """Lengths and labels of the rows that these receipts tell of; files that are there no more are left out."""
    told = sorted(
        (one.shard, one.start, one.data_file) for one in receipts if one.data_file is not None and one.rows_ok
    )
    drawn = [told[place * len(told) // FILES_READ] for place in range(FILES_READ)] if len(told) > FILES_READ else told
    wanted = ("_prompt_tokens", "_output_tokens", *labels)
    lengths: tuple[list[Any], list[Any]] = ([], [])
    counts: dict[str, Counter[str]] = {name: Counter() for name in labels}
    files = 0
    for rows in _each(lambda name: _columns(storage.join(sink_uri, "data", name), wanted), [one[2] for one in drawn]):
        if rows is None:
            continue
        files += 1
        for kept, name in zip(lengths, wanted, strict=False):
            if name in rows.column_names:
                kept.append(pc.fill_null(rows[name], 0).to_numpy())
        for name in labels:
            if name in rows.column_names:
                counts[name].update(_cut(rows[name]))
    joined = [np.concatenate([np.zeros(0, np.int64), *kept]).astype(np.int64) for kept in lengths]
    return Answers(
        files=files,
        of_files=len(told),
        prompt_tokens=joined[0],
        output_tokens=joined[1],
        labels={name: dict(counted) for name, counted in counts.items() if counted},
    )


def examples(sink_uri: str, receipts: Sequence[Receipt]) -> dict[str, list[Example]]:
    """By type of error the first few of these receipts' dead letters."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for receipt in sorted(receipts, key=lambda one: (one.shard, one.start)):
        for kind in receipt.errors_by_type:
            if receipt.errors_file is not None and len(wanted[kind]) < EXAMPLES and len(wanted) <= TYPES_SHOWN:
                wanted[kind].append(receipt.errors_file)
    names = list(dict.fromkeys(name for of_kind in wanted.values() for name in of_kind))[:ERROR_FILES]
    found: dict[str, list[Example]] = defaultdict(list)
    for rows in _each(lambda name: _dead(storage.join(sink_uri, "errors", name)), names):
        for kind, example in rows or ():
            if len(found[kind]) < EXAMPLES:
                found[kind].append(example)
    return dict(found)


def _each(read: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """What `read` makes of each, a few at a time, in order."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for start in range(0, len(names), FILES_AT_ONCE):
            yield from pool.map(read, names[start : start + FILES_AT_ONCE])


def _columns(uri: str, wanted: Sequence[str]) -> pa.Table | None:
    """Those of the wanted columns that the file has; None: it is replaced and gone."""
    try:
        with storage.open_input(uri) as file, pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            return parquet.read([name for name in wanted if name in names], use_threads=False)
    except FileNotFoundError:
        return None


def _cut(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands, as text of CUT characters at most."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_slice_codeunits(column, 0, CUT)
    else:
        column = pc.cast(column, pa.string())
    counted: dict[str, int] = {}
    for one in pc.value_counts(pc.drop_null(column)).to_pylist():
        counted[one["values"]] = counted.get(one["values"], 0) + one["counts"]
    return counted


def _dead(uri: str) -> list[tuple[str, Example]]:
    """Type and example of the first dead letters of each type in a file."""
    try:
        with storage.open_input(uri) as file, pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            text = next((one.name for one in schema if _is_text(one)), None)
            columns = [name for name in ("_shard", "_row", "_error_type", "_error", text) if name in schema.names]
            rows = parquet.read(columns, use_threads=False)
    except FileNotFoundError:
        return []
    taken: Counter[str] = Counter()
    lines = []
    for place, kind in enumerate(rows["_error_type"].to_pylist()):
        taken[kind] += 1
        if taken[kind] <= EXAMPLES:
            lines.append(place)
    shown = rows.take(lines)
    for name in ("_error", text):
        if name in shown.column_names:
            place = shown.column_names.index(name)
            shown = shown.set_column(place, name, pc.utf8_slice_codeunits(shown[name], 0, CUT + 1))
    return [
        (
            line["_error_type"],
            Example(
                shard=line["_shard"],
                row=line["_row"],
                error=line.get("_error") or "",
                text=None if text is None else line[text],
            ),
        )
        for line in shown.to_pylist()
    ]


def _is_text(column: pa.Field) -> bool:
    return not column.name.startswith("_") and (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    )
