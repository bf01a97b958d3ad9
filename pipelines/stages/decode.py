"""Rows of one shard in pieces of about a MiB, whatever its format; lines of text and CSV records here."""

from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.source.formats import Format, Unreadable, unpacked
from pipelines.source.lines import (
    Line,
    Oversize,
    Record,
    csv_records,
    delimiter_of,
    excerpt,
    header_names,
    is_blank,
    line_blocks,
    of_lines,
)
from pipelines.source.parquet import open_parquet
from pipelines.source.shards import Shard, open_shard
from pipelines.stages.columns import fit
from pipelines.stages.decode_jsonl import jsonl_pieces
from pipelines.stages.decode_parquet import parquet_pieces
from pipelines.stages.pieces import PIECE_BYTES, PIECE_ROWS, Bad, Cursor, Piece, finished, fixed_bytes, too_long


def decode(shard: Shard, schema: pa.Schema, max_row_bytes: int, carry_all: bool, cursor: Cursor) -> Iterator[Piece]:
    """The wanted rows of a shard in row order; the cursor ends behind the last one.

    Raises:
        Unreadable: from this row on nothing can be read; what came before has been yielded.
    """
    with closing(open_shard(shard)) as file:
        if shard.format is Format.PARQUET:
            yield from parquet_pieces(file, schema, max_row_bytes, carry_all, cursor)
            return
        chunks = unpacked(file, shard.compression)
        if shard.format is Format.JSONL:
            chunks = of_lines(chunks, shard.path)
        blocks = line_blocks(chunks, max_row_bytes)
        if shard.format is Format.JSONL:
            yield from jsonl_pieces(blocks, schema, max_row_bytes, carry_all, cursor)
        elif shard.format is Format.TEXT:
            yield from _text(blocks, schema, max_row_bytes, cursor)
        else:
            yield from _csv(csv_records(blocks, max_row_bytes, delimiter_of(shard.format)), schema, carry_all, cursor)


def counted(shard: Shard, at_most: int, max_row_bytes: int) -> int:
    """Rows of a shard, without their values; stops at the first count that is `at_most` or more.

    A remainder that cannot be read is one row.
    """
    rows = 0
    with closing(open_shard(shard)) as file:
        if shard.format is Format.PARQUET:
            return max(0, int(open_parquet(file).metadata.num_rows))
        try:
            chunks = unpacked(file, shard.compression)
            if shard.format is Format.JSONL:
                chunks = of_lines(chunks, shard.path)
            blocks = line_blocks(chunks, max_row_bytes)
            if shard.format in (Format.CSV, Format.TSV):
                rows = -1  # the header
                for _ in csv_records(blocks, max_row_bytes, delimiter_of(shard.format)):
                    rows += 1
                    if rows >= at_most:
                        break
                return max(0, rows)
            for block in blocks:
                rows += sum(not is_blank(line) for line in block)
                if rows >= at_most:
                    break
        except Unreadable:
            rows = max(0, rows) + 1
    return rows


def _text(blocks: Iterator[list[Line]], schema: pa.Schema, max_row_bytes: int, cursor: Cursor) -> Iterator[Piece]:
    extra = fixed_bytes(schema)
    before = 0  # lines, in the blocks that came before
    for block in blocks:
        there = [(before + index, line) for index, line in enumerate(block, 1) if not is_blank(line)]
        before += len(block)
        start = cursor.row
        for low, high in cursor.take(len(there)):
            bad: Bad = {}
            texts: list[str | None] = []
            for index, (number, line) in enumerate(there[low:high]):
                text = None
                if isinstance(line, Oversize):
                    bad[index] = ("too_large", too_long(number, line, max_row_bytes))
                else:
                    try:
                        text = line.removesuffix(b"\r").decode("utf-8")
                    except UnicodeDecodeError as error:
                        reason = f"not UTF-8 at byte {error.start}"
                        bad[index] = ("unreadable", f"line {number}: {reason}: {excerpt(line)}")
                texts.append(text)
            sizes = [extra + (200 if isinstance(line, Oversize) else len(line)) for _, line in there[low:high]]
            table = fit({"text": pa.array(texts, pa.string())}, len(texts), schema, start + low, bad)
            yield finished(start + low, table, sizes, bad)
        if cursor.full():
            return


def _csv(records: Iterator[Record], schema: pa.Schema, carry_all: bool, cursor: Cursor) -> Iterator[Piece]:
    first = next(records, None)
    if first is None:
        return
    header = header_names(first)
    unknown = [name for name in header if name not in schema.names] if carry_all else []
    held: list[Record] = []
    size = 0
    try:
        for record in records:
            held.append(record)
            size += record.size
            if size >= PIECE_BYTES or len(held) >= PIECE_ROWS:
                yield from _csv_pieces(held, header, unknown, schema, cursor)
                held, size = [], 0
                if cursor.full():
                    return
    except Unreadable:
        yield from _csv_pieces(held, header, unknown, schema, cursor)
        raise
    yield from _csv_pieces(held, header, unknown, schema, cursor)


def _csv_pieces(
    records: list[Record], header: list[str], unknown: list[str], schema: pa.Schema, cursor: Cursor
) -> Iterator[Piece]:
    start = cursor.row
    extra = fixed_bytes(schema)
    for low, high in cursor.take(len(records)):
        part = records[low:high]
        bad: Bad = {}
        cells: list[list[str | None]] = []
        for index, record in enumerate(part):
            if record.error is not None:
                bad[index] = (record.error_type or "unreadable", record.error)
            elif len(record.cells) != len(header):
                counts = f"{len(record.cells)} cells, the header has {len(header)}"
                bad[index] = ("unreadable", f"line {record.line}: {counts}: {_shown(record.cells)}")
            elif not _encodable(record.cells):
                bad[index] = ("unreadable", f"line {record.line}: not UTF-8: {_shown(record.cells)}")
            cells.append([None] * len(header) if index in bad else list(record.cells))
        columns = {}
        for position, name in enumerate(header):
            if name in schema.names:
                column = pa.array([row[position] for row in cells], pa.string())
                typed = not pat.is_string(schema.field(name).type)
                columns[name] = pc.if_else(pc.equal(column, ""), None, column) if typed else column
        table = fit(columns, len(part), schema, start + low, bad)
        sizes = [extra + min(record.size, 2**24) for record in part]
        yield finished(start + low, table, sizes, bad, dict.fromkeys(unknown, len(part)))


def _shown(cells: list[str]) -> str:
    return excerpt("|".join(cells)[:400].encode("utf-8", "surrogateescape"))


def _encodable(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
