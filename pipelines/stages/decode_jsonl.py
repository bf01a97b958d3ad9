"""JSONL: whole blocks by Arrow where it changes nothing, line by line where a block has trouble.

An empty line is no row. Any line that is no object, or holds a value that its column cannot hold unchanged, is one
row with an error.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.types as pat

from pipelines.source import json_values
from pipelines.source.formats import short
from pipelines.source.lines import Line, Oversize, excerpt
from pipelines.stages.pieces import Bad, Cursor, Piece, empty, finished, fixed_bytes, too_long

MOST_NAMES = 20  # of keys that the schema lacks, counted for one piece


def jsonl_pieces(
    blocks: Iterator[list[Line]],
    schema: pa.Schema,
    max_row_bytes: int,
    carry_all: bool,
    cursor: Cursor,
) -> Iterator[Piece]:
    """The wanted rows; with `carry_all`, keys that the schema lacks are counted, not left out silently."""
    line = 1
    extra = fixed_bytes(schema)
    bulk = _Bulk(schema, carry_all)
    for block in blocks:
        stripped = [one if isinstance(one, Oversize) else one.strip() for one in block]
        numbers = [line + index for index, one in enumerate(stripped) if one]
        rows = [one for one in stripped if one]
        line += len(block)
        start = cursor.row
        for low, high in cursor.take(len(rows)):
            part = rows[low:high]
            bad: Bad = {}
            table = bulk.read(part)
            unknown: Counter[str] = Counter()
            if table is None:
                table, bad = _one_by_one(part, numbers[low:high], schema, max_row_bytes, unknown)
            sizes = [extra + (200 if isinstance(one, Oversize) else len(one)) for one in part]
            yield finished(start + low, table, sizes, bad, dict(unknown) if carry_all else {})
        if cursor.full():
            break


class _Bulk:
    """Arrow's own JSON reader, for blocks of lines in which it changes no value."""

    def __init__(self, schema: pa.Schema, carry_all: bool) -> None:
        self._schema = schema
        self._possible = len(schema.names) > 0 and all(_bulk_type(field.type) for field in schema)
        self._options = pa_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error" if carry_all else "ignore"
        )

    def read(self, lines: Sequence[Line]) -> pa.Table | None:
        """The lines as a table; None: read them one by one, something is not as it should be."""
        # With braces at both ends of every line, line ends can only lie between objects: one line is one row.
        if not self._possible or not all(
            isinstance(line, bytes) and line[0] == 0x7B and line[-1] == 0x7D for line in lines
        ):
            return None
        data = b"\n".join(lines)  # type: ignore[arg-type]
        try:
            data.decode("utf-8")
            options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
            table = pa_json.read_json(BytesIO(data), read_options=options, parse_options=self._options)
        except (pa.ArrowException, ValueError):
            return None
        whole = table.num_rows == len(lines) and table.schema.equals(self._schema)
        return None if not whole or any(_perhaps_rounded(column) for column in table.columns) else table


def _bulk_type(kind: pa.DataType) -> bool:
    if pat.is_struct(kind):
        return all(_bulk_type(field.type) for field in kind)
    if pat.is_list(kind):
        return _bulk_type(kind.value_type)
    return any(test(kind) for test in (pat.is_boolean, pat.is_signed_integer, pat.is_float64, pat.is_string))


def _perhaps_rounded(column: pa.ChunkedArray | pa.Array) -> bool:
    """Whether a float is so large that it may stand for an integer that it does not equal."""
    kind = column.type
    if pat.is_struct(kind):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return any(_perhaps_rounded(field) for chunk in chunks for field in chunk.flatten())
    if pat.is_list(kind):
        return _perhaps_rounded(pc.list_flatten(column))
    return pat.is_floating(kind) and bool(pc.any(pc.greater_equal(pc.abs(column), 2.0**53)).as_py())


def _unreadable(number: int, error: Exception, line: bytes) -> tuple[str, str]:
    return "unreadable", f"line {number}: {short(error)}: {excerpt(line)}"


def _one_by_one(
    lines: Sequence[Line],
    numbers: Sequence[int],
    schema: pa.Schema,
    max_row_bytes: int,
    unknown: Counter[str],
) -> tuple[pa.Table, Bad]:
    bad: Bad = {}
    columns: list[list[object]] = [[] for _ in schema]
    names = set(schema.names)
    for index, line in enumerate(lines):
        values: list[object] = [None] * len(columns)
        try:
            if isinstance(line, Oversize):
                bad[index] = ("too_large", too_long(numbers[index], line, max_row_bytes))
            else:
                row = json_values.parsed(line)
                lacking = {name for name in row.keys() - names if row[name] is not None}
                for place, field in enumerate(schema):
                    try:
                        values[place] = json_values.fitted(row.get(field.name), field.type, lacking, field.name)
                    except (json_values.Unfit, RecursionError) as error:  # of one cell: the others stay
                        bad.setdefault(index, _unreadable(numbers[index], error, line))
                unknown.update(name for name in lacking if name in unknown or len(unknown) < MOST_NAMES)
        except (json_values.Unfit, RecursionError) as error:
            bad[index] = _unreadable(numbers[index], error, bytes(line))  # type: ignore[arg-type]
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    if not arrays:
        return empty(schema, 0), bad
    return pa.table(arrays, schema=schema), bad
