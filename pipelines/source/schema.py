"""One schema for the whole output, found before the start: from Parquet footers and the first rows of other shards.

Of more than 1,000 shards, 1,000 spread evenly are looked at. CSV has no types: its columns are strings, unless a
shard of another format gives a column a type; then cells are read as that type. A shard that turns out later to have
other types gives dead letters, one a row, and its further columns are not carried. Nanoseconds become microseconds
where that loses nothing: a row that would lose is a dead letter, a footer that tells of such rows is refused.
"""

import difflib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipelines.config import SourceConfig, UserError
from pipelines.source import json_values
from pipelines.source.formats import Format, Unreadable, Watched, unpacked
from pipelines.source.lines import Line, csv_records, delimiter_of, header_names, line_blocks, of_lines
from pipelines.source.parquet import has_nanoseconds, open_parquet
from pipelines.source.shards import Shard, open_shard
from pipelines.source.types import Refused, common, widened

logger = logging.getLogger(__name__)

RESERVED = (
    "_shard",
    "_row",
    "_key",
    "_model",
    "_prompt_tokens",
    "_cached_tokens",
    "_output_tokens",
    "_finish_reason",
    "_error_type",
    "_first_tried",
    "_last_tried",
    "_cut_chars",
    "_asked_again",
    "_error",
    "_attempts",
)
MOST_SHARDS = 1000  # looked at
MOST_ROWS = 5000  # of one JSONL shard; fewer where there are many shards
_ALL_ROWS = 200_000  # of all JSONL shards together
MOST_BYTES = 8 * 2**20  # of one JSONL shard, unpacked; fewer where there are many shards
_ALL_BYTES = 512 * 2**20
_THREADS = 16


_THE_OUTPUT = Shard(uri="", path="the output as it is", size=0, identity="", format=Format.PARQUET)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A column as one shard shows it."""

    name: str
    kind: pa.DataType  # as it stands in the shard; null: no value seen
    shard: Shard
    untyped: bool = False  # CSV
    refused: str | None = None  # why Delta cannot hold it


def corpus_schema(
    shards: Sequence[Shard], config: SourceConfig, needed_columns: Sequence[str], *, before: pa.Schema | None = None
) -> pa.Schema:
    """Name and type of every input column of the output, in the order of the first shard, new ones behind.

    `before` are the input's columns in an output that is there: they come first, and all must go with them. With
    source.columns, those and `needed_columns` alone. Every type is one that Delta has.

    Raises:
        UserError: a column that is missing, reserved or there twice; types that do not go together or do not exist
            in Delta; no shard that can be read.
    """
    looked_at = _spread(shards)
    rows, size = _share(MOST_ROWS, _ALL_ROWS, 50, looked_at), _share(MOST_BYTES, _ALL_BYTES, 2**18, looked_at)
    with ThreadPoolExecutor(min(_THREADS, max(1, len(looked_at)))) as pool:
        found = list(pool.map(lambda shard: _columns(shard, config, rows, size), looked_at))
    broken = [(shard, seen) for shard, seen in zip(looked_at, found, strict=True) if isinstance(seen, Unreadable)]
    for shard, reason in broken:
        logger.warning("shard %r is unreadable: %s", shard.path, reason)
    if broken and len(broken) == len(looked_at) and before is None:
        shard, reason = broken[0]
        raise UserError(f"no shard of {config.uri} can be read; the first, {shard.path!r}: {reason}")
    there = [_Seen(field.name, field.type, _THE_OUTPUT) for field in before or ()]
    columns: dict[str, list[_Seen]] = {}
    for seen in chain(there, *(seen for seen in found if not isinstance(seen, Unreadable))):
        columns.setdefault(seen.name, []).append(seen)
    chosen = _chosen(columns, config, needed_columns)
    _check_names(chosen, columns)
    return pa.schema([(name, _merged(name, columns[name])) for name in chosen])


def _spread(shards: Sequence[Shard]) -> Sequence[Shard]:
    if len(shards) <= MOST_SHARDS:
        return shards
    logger.info("columns and types are found from %d of %d shards, spread evenly", MOST_SHARDS, len(shards))
    return [shards[index * (len(shards) - 1) // (MOST_SHARDS - 1)] for index in range(MOST_SHARDS)]


def _share(most: int, together: int, least: int, shards: Sequence[Shard]) -> int:
    return max(least, min(most, together // max(1, len(shards))))


# ---------------------------------------------------------------------------------------------- one shard


def _columns(shard: Shard, config: SourceConfig, rows: int, size: int) -> list[_Seen] | Unreadable:
    try:
        with closing(open_shard(shard)) as file:
            if shard.format is Format.PARQUET:
                arrow = open_parquet(file)
                return [_parquet_column(field, file, arrow, shard) for field in arrow.schema_arrow]
            if shard.format is Format.TEXT:
                return [_Seen("text", pa.string(), shard)]
            chunks = _beginning(unpacked(file, shard.compression), size + config.max_row_bytes)
            if shard.format is Format.JSONL:
                chunks = of_lines(chunks, shard.path)
            blocks = line_blocks(chunks, config.max_row_bytes, block_bytes=2**16)
            if shard.format is Format.JSONL:
                return _jsonl_columns(blocks, shard, rows, size)
            return [_Seen(name, pa.string(), shard, untyped=True) for name in _csv_header(blocks, shard, config)]
    except Unreadable as error:
        return error


def _beginning(chunks: Iterator[bytes], most: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        most -= len(chunk)
        if most <= 0:
            return


def _parquet_column(field: pa.Field, file: Watched, arrow: pq.ParquetFile, shard: Shard) -> _Seen:
    try:
        if pat.is_timestamp(field.type) and field.type.unit == "ns" and has_nanoseconds(file, arrow, field.name):
            raise Refused(f"{field.type} with parts of a microsecond, which Delta cannot hold")
        if b"ARROW:extension:name" in (field.metadata or {}):
            raise Refused(f"extension type {field.metadata[b'ARROW:extension:name'].decode('utf-8', 'replace')!r}")
        return _Seen(field.name, widened(field.type, null=pa.null()), shard)
    except Refused as error:
        return _Seen(field.name, pa.null(), shard, refused=str(error))


def _jsonl_columns(blocks: Iterator[list[Line]], shard: Shard, rows: int, size: int) -> list[_Seen]:
    kinds: dict[str, pa.DataType] = {}
    good = bad = seen_bytes = 0
    try:
        for line in chain.from_iterable(blocks):
            if not isinstance(line, bytes) or not line.strip():
                continue
            seen_bytes += len(line)
            try:
                for name, value in json_values.parsed(line).items():
                    kinds[name] = json_values.mixed(kinds.get(name, pa.null()), json_values.suggested(value))
                good += 1
            except json_values.Unfit:
                bad += 1
            if good + bad >= rows or seen_bytes >= size:
                break
    except Unreadable:
        if not good:
            raise
    return [_Seen(name, _without_empty(kind), shard) for name, kind in kinds.items()]


def _csv_header(blocks: Iterator[list[Line]], shard: Shard, config: SourceConfig) -> list[str]:
    record = next(csv_records(blocks, config.max_row_bytes, delimiter_of(shard.format)), None)
    return [] if record is None else header_names(record)


def _without_empty(kind: pa.DataType) -> pa.DataType:
    """The type with null for structs that have no field, which no file could hold."""
    return widened(kind, null=pa.null())


# ---------------------------------------------------------------------------------------------- all of them


def _chosen(columns: dict[str, list[_Seen]], config: SourceConfig, needed: Sequence[str]) -> list[str]:
    known = ", ".join(list(columns)[:30]) or "none"
    for origin, names in (("the job", needed), ("source.columns", config.columns or ())):
        for name in names:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{origin} names column {name!r}, which no shard has.{hint} Columns: {known}")
    if config.columns is None:
        return list(columns)
    wanted = {*config.columns, *needed}
    return [name for name in columns if name in wanted]


def _check_names(chosen: Sequence[str], columns: dict[str, list[_Seen]]) -> None:
    way_out = "rename it, or leave it out with source.columns"
    by_case: dict[str, str] = {}
    for name in chosen:
        where = columns[name][0].shard.path
        if not name:
            raise UserError(f"shard {where!r} has a column without a name: {way_out}")
        if name.casefold() in RESERVED:
            raise UserError(f"shard {where!r} has a column {name!r}, a name that the output uses itself: {way_out}")
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"columns {other!r} (shard {columns[other][0].shard.path!r}) and {name!r} (shard {where!r}) differ by "
                f"case alone, which a table does not tell apart: {way_out}"
            )


def _merged(name: str, seen: Sequence[_Seen]) -> pa.DataType:
    typed = [one for one in seen if not one.untyped]
    kind: pa.DataType = pa.null()
    for at, one in enumerate(typed):
        if one.refused is not None:
            raise UserError(
                f"column {name!r} of shard {one.shard.path!r}: {one.refused}; "
                "cast it in the source, or leave it out with source.columns"
            )
        try:
            kind = common(kind, one.kind)
        except Refused:
            raise _conflict(name, typed[:at], one) from None
    cells = next((one for one in seen if one.untyped), None)
    if cells is not None and (pat.is_nested(kind) or pat.is_binary(kind)):
        raise _conflict(name, typed, cells)
    return widened(kind)


def _conflict(name: str, before: Sequence[_Seen], other: _Seen) -> UserError:
    """The conflict told by a shard of each side; the first before `other` that it does not go with."""
    for one in before:
        try:
            if not other.untyped:
                common(one.kind, other.kind)
                continue
        except Refused:
            pass
        if not pat.is_null(one.kind):
            return UserError(
                f"column {name!r} is {one.kind} in shard {one.shard.path!r} and "
                f"{'text' if other.untyped else other.kind} in shard {other.shard.path!r}: make them one type, leave "
                "one shard out with source.exclude, or the column with source.columns"
            )
    return UserError(
        f"column {name!r}: shard {other.shard.path!r} has {other.kind}, which does not go with the shards before it: "
        "make them one type, leave it out with source.exclude, or the column with source.columns"
    )
