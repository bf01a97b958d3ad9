"""Sizes of Parquet pages, read from their headers as they pass by: the bound that no footer gives.

A decoder allocates what a page's header claims before it unpacks the page, so 60 KB of zstd can ask for gigabytes.
The pages of a column chunk follow one another, each behind a header with its packed size: whoever sees a chunk's
bytes from its start can find all headers, without reading a byte more.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

from pipelines.source import thrift
from pipelines.source.formats import Unreadable

MOST_PAGE_BYTES = 256 * 2**20  # unpacked; writers aim at 1 MiB, some make one page of a whole chunk
MOST_NESTED_VALUES = 2**24  # of one page, all of which may belong to one row; run lengths make them cost nothing
_MOST_HEADER_BYTES = 2**20

# Fields of a PageHeader, by Parquet's own numbers.
_UNPACKED, _PACKED = 2, 3
_DATA_PAGE, _DATA_PAGE_V2 = 5, 8
_NUM_VALUES = 1


@dataclass(slots=True)
class _Chunk:
    start: int
    stop: int
    nested: bool
    next: int  # where the next page header begins
    tail: bytearray = field(default_factory=bytearray)  # its bytes so far


class Pages:
    """The page headers of some column chunks, found in whatever is read of the file."""

    def __init__(self, chunks: list[tuple[int, int, bool]]) -> None:
        """Chunks are given by the bytes they span in the file, stop exclusive, and whether their column is nested.

        Raises:
            Unreadable: two share bytes, so that one could hide the other's pages.
        """
        chunks = [chunk for chunk in sorted(chunks) if chunk[1] > chunk[0]]
        if any(one[1] > other[0] for one, other in pairwise(chunks)):
            raise Unreadable("Parquet: a footer with column chunks that overlap")
        self._chunks = [_Chunk(start, stop, nested, start) for start, stop, nested in chunks]
        self._starts = [chunk.start for chunk in self._chunks]
        self.first: dict[int, int] = {}  # start of a chunk -> unpacked bytes of its first page

    def saw(self, offset: int, data: bytes) -> None:
        """Look at bytes that were read at `offset`.

        Raises:
            Unreadable: a page claims more than a page may be.
        """
        first = max(0, bisect_right(self._starts, offset) - 1)
        for chunk in self._chunks[first : bisect_left(self._starts, offset + len(data))]:
            self._walk(chunk, offset, data)

    def _walk(self, chunk: _Chunk, offset: int, data: bytes) -> None:
        end = offset + len(data)
        while chunk.next < chunk.stop and offset <= chunk.next + len(chunk.tail) < end:
            have = chunk.next + len(chunk.tail)
            header = bytes(chunk.tail) + data[have - offset : have - offset + _MOST_HEADER_BYTES]
            try:
                page, length = thrift.struct(header)
            except thrift.Cut:
                if len(header) >= _MOST_HEADER_BYTES:
                    raise Unreadable(f"Parquet: a page header of more than {_MOST_HEADER_BYTES:,} bytes") from None
                chunk.tail = bytearray(header)
                return
            except thrift.Malformed:
                raise Unreadable("Parquet: a page header that is none") from None
            chunk.tail.clear()
            sizes = page.get(_UNPACKED), page.get(_PACKED)
            if not all(isinstance(size, int) and size >= 0 for size in sizes):
                chunk.next = chunk.stop  # padding behind the last page; a decoder would refuse it as a page
                return
            self._check(chunk, page)
            self.first.setdefault(chunk.start, page[_UNPACKED])
            chunk.next += length + page[_PACKED]

    def _check(self, chunk: _Chunk, page: thrift.Struct) -> None:
        if page[_UNPACKED] > MOST_PAGE_BYTES:
            raise Unreadable(f"Parquet: a page unpacks to {page[_UNPACKED]:,} bytes, more than {MOST_PAGE_BYTES:,}")
        for kind in (_DATA_PAGE, _DATA_PAGE_V2):
            inner = page.get(kind)
            values = inner.get(_NUM_VALUES) if isinstance(inner, dict) else 0
            if chunk.nested and isinstance(values, int) and values > MOST_NESTED_VALUES:
                raise Unreadable(f"Parquet: a page of {values:,} nested values, more than {MOST_NESTED_VALUES:,}")
