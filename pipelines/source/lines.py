"""Lines of a text-like shard and records of a CSV one: rows as bytes, each bounded, counted as they come."""

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.source.formats import Format, Unreadable

BLOCK_BYTES = 2**20  # of lines handed on together
_EXCERPT = 80  # characters of a row that an error may quote: it goes to the dead letters
_LONGEST = 64  # times max_row_bytes: a longer line is a bomb, and its shard is given up
_UNCLOSED_TWICE = 100  # times that the lines behind an unclosed quote are read once more; then they are one record
_BOM = b"\xef\xbb\xbf"
_DOCUMENT = re.compile(r"\.json(\.(gz|gzip|zst|zstd))?$")


@dataclass(frozen=True, slots=True)
class Oversize:
    """A line or record longer than allowed, which was never held whole."""

    length: int  # bytes; so many at least
    excerpt: bytes
    quotes: int  # of the character `"`, to know whether a CSV record goes on behind it


Line = bytes | Oversize


def line_blocks(chunks: Iterator[bytes], max_row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[list[Line]]:
    """Lines without their end, a list for each `block_bytes` or so; the last one need not have an end.

    Where `chunks` raises, the whole lines before it are yielded first. A byte order mark is taken off.

    Raises:
        Unreadable: a line without end, many times as long as allowed.
    """
    held = bytearray()
    dropped: Oversize | None = None
    first = True
    failure: Exception | None = None
    while failure is None:
        try:
            chunk = next(chunks, None)
        except Exception as error:  # noqa: BLE001 - raised again below, behind the lines that came before it
            failure, chunk = error, b""
        if chunk is None:
            break
        if first and chunk:
            chunk, first = chunk.removeprefix(_BOM), False
        if dropped is not None:
            end = chunk.find(b"\n")
            part = chunk if end < 0 else chunk[:end]
            dropped = Oversize(dropped.length + len(part), dropped.excerpt, dropped.quotes + part.count(b'"'))
            if dropped.length > _LONGEST * max_row_bytes:
                raise Unreadable(f"a line of more than {_LONGEST * max_row_bytes:,} bytes: {excerpt(dropped.excerpt)}")
            if end < 0:
                continue
            yield [dropped]
            dropped, chunk = None, chunk[end + 1 :]
        held += chunk
        if len(held) < block_bytes and failure is None:
            continue
        end = held.rfind(b"\n")
        if end >= 0:
            yield [_bounded(line, max_row_bytes) for line in bytes(held[:end]).split(b"\n")]
            del held[: end + 1]
        if len(held) > max_row_bytes:
            dropped = _oversize(held)
            held = bytearray()
    if failure is not None:
        raise failure
    if dropped is not None:
        yield [dropped]
    elif held:
        lines = bytes(held).removesuffix(b"\n").split(b"\n")
        yield [_bounded(line, max_row_bytes) for line in lines]


def is_blank(line: Line) -> bool:
    """Whether the line is no row: one without anything but blanks."""
    return not isinstance(line, Oversize) and not line.strip()


def of_lines(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The chunks of a JSONL shard; one that is called .json may be a single document instead.

    Raises:
        Unreadable: it is. Taken for lines, each of its lines would be a dead letter.
    """
    if not _DOCUMENT.search(path.lower()):
        yield from chunks
        return
    beginning, line, end = b"", b"", b""
    for chunk in chunks:
        beginning += chunk
        line, end, _ = beginning.removeprefix(_BOM).lstrip().partition(b"\n")
        if line and (end or len(beginning) >= BLOCK_BYTES):
            break
    if line.startswith(b"[") or (end and line.strip() == b"{"):
        kind = "array" if line.startswith(b"[") else "object"
        raise Unreadable(f"one JSON {kind} over the whole file, not an object on each line")
    yield beginning
    yield from chunks


def _bounded(line: bytes, max_row_bytes: int) -> Line:
    return line if len(line) <= max_row_bytes else _oversize(line)


def _oversize(line: bytes | bytearray) -> Oversize:
    return Oversize(len(line), bytes(line[: _EXCERPT * 4]), line.count(b'"'))


def excerpt(line: bytes) -> str:
    """The beginning of a line, fit for an error: printable, on one line."""
    text = ascii(line[: _EXCERPT * 4].decode("utf-8", "replace")[:_EXCERPT])
    return text if len(line) <= _EXCERPT else text + "…"


@dataclass(frozen=True, slots=True)
class Record:
    """One CSV record: its cells, or why it has none."""

    line: int  # of the file, from 1, on which it begins
    size: int  # bytes
    cells: list[str]  # undecodable bytes as surrogates
    error_type: str | None = None
    error: str | None = None


def delimiter_of(shape: Format) -> str:
    """What stands between two cells."""
    return "\t" if shape is Format.TSV else ","


def header_names(record: Record) -> list[str]:
    """Column names in a CSV's first record; one without a name is called `column_N`, counted from 1.

    Raises:
        Unreadable: it is no header, so no record below it can be understood.
    """
    if record.error is not None:
        raise Unreadable(f"CSV header: {record.error}")
    names = [cell.strip() or f"column_{index}" for index, cell in enumerate(record.cells, 1)]
    try:
        "".join(names).encode("utf-8")
    except UnicodeEncodeError:
        raise Unreadable("CSV header: not UTF-8") from None
    for name in names:
        if names.count(name) > 1:
            raise Unreadable(f"CSV header: column {name!r} is there twice")
    return names


class _TooLong(Exception):
    """A record has grown beyond its bound."""


class _Feed:
    """The lines of a shard as `csv.reader` pulls them: counts them, and stops a record that grows without bound."""

    def __init__(self, blocks: Iterator[list[Line]], max_row_bytes: int) -> None:
        self._lines = (line for block in blocks for line in block)
        self._again: deque[Line] = deque()  # lines handed back
        self._max = max_row_bytes
        self.line = 0  # last one pulled
        self.size = 0  # bytes of the record so far
        self.quotes = 0  # in it
        self.record: list[Line] = []  # its lines, as long as they are within the bound

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = self._pull()
        if line is None:
            raise StopIteration
        self.record.append(line)
        if isinstance(line, Oversize) or self.size > self._max:
            raise _TooLong
        return line.decode("utf-8", "surrogateescape") + "\n"

    def _pull(self) -> Line | None:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is not None:
            self.line += 1
            self.size += (line.length if isinstance(line, Oversize) else len(line)) + 1
            self.quotes += line.quotes if isinstance(line, Oversize) else line.count(b'"')
        return line

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.size, self.quotes, self.record = 0, 0, []

    def excerpt(self) -> str:
        """How the record begins."""
        first = self.record[0] if self.record else b""
        return excerpt(first.excerpt if isinstance(first, Oversize) else first)

    def skip_record(self) -> None:
        """Go behind the record that was too long: to the line at which its quotes are even again."""
        self.record = self.record[:1]
        while self.quotes % 2 and self._pull() is not None:
            pass

    def hand_back(self) -> None:
        """Read all but the first line of the record once more, as records of their own."""
        later = self.record[1:]
        self._again.extendleft(reversed(later))
        self.line -= len(later)


def csv_records(blocks: Iterator[list[Line]], max_row_bytes: int, delimiter: str) -> Iterator[Record]:
    """Records of a CSV file, header included; empty lines are none. Quoted cells may hold line ends.

    A record longer than `max_row_bytes` is `too_large`, one that is no CSV is `unreadable`; both are one record.
    A quote that is never closed would swallow the rest of the file: its line is unreadable, and the next begins anew.
    """
    # The bound on a record is ours, in bytes; csv's own, in characters and for the whole process, must not come first.
    csv.field_size_limit(max(csv.field_size_limit(), max_row_bytes + 1))
    feed = _Feed(blocks, max_row_bytes)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    unclosed = 0
    while True:
        feed.begin()
        line = feed.line + 1
        try:
            cells = next(reader, None)
        except _TooLong:
            start = feed.excerpt()
            feed.skip_record()
            reason = f"line {line}: the record has {feed.size:,} bytes, more than {max_row_bytes:,}"
            yield Record(line, feed.size, [], "too_large", f"{reason}: {start}")
            continue
        except csv.Error as error:
            if "unexpected end of data" in str(error) and unclosed < _UNCLOSED_TWICE:
                unclosed += 1
                feed.hand_back()
            yield Record(line, feed.size, [], "unreadable", f"line {line}: {error}: {feed.excerpt()}")
            continue
        if cells is None:
            return
        if cells:
            yield Record(line, feed.size, cells)
