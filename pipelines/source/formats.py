"""Format of a shard, told by its file name, and its bytes: opened, unpacked, never more than a little at a time.

A shard may be broken or hostile. What is wrong with its bytes is `Unreadable`, and the rest of the run goes on;
what is wrong with the store (it stays away, it denies) keeps its own exception and is not a shard's fault.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import Enum
from typing import BinaryIO

import pyarrow as pa

from pipelines.storage import Changed

CHUNK_BYTES = 64 * 2**10  # unpacked at once; a cut shard loses at most this much of what could still be read
_RAW_BYTES = 32 * 2**10  # packed bytes at once: at gzip's worst ratio, 1,029, they are held back by `max_length`


class Format(Enum):
    """What is inside a shard once it is unpacked."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    TEXT = "text"


class Compression(Enum):
    """How a shard is packed. Parquet packs its own pages and is not packed once more."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class Unreadable(Exception):
    """The bytes of a shard cannot be read from here on: broken, cut, hostile or changed since they were listed."""


EXTENSIONS = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".jsonlines": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".txt": Format.TEXT,
    ".text": Format.TEXT,
}
_PACKED = {".gz": Compression.GZIP, ".gzip": Compression.GZIP, ".zst": Compression.ZSTD, ".zstd": Compression.ZSTD}


def format_of(name: str) -> tuple[Format, Compression] | None:
    """Format and compression by file name, case aside; None: no name of ours.

    `part.gz.parquet` and `part.snappy.parquet`, as Spark writes them, are Parquet whose pages are packed.
    """
    stem, compression = name.lower(), Compression.NONE
    for ending, packed in _PACKED.items():
        if stem.endswith(ending):
            stem, compression = stem.removesuffix(ending), packed
            break
    for ending, shape in EXTENSIONS.items():
        if stem.endswith(ending):
            return None if shape is Format.PARQUET and compression is not Compression.NONE else (shape, compression)
    return None


class Watched:
    """A shard's file that remembers the store's own failure, so that it is not taken for broken bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: BaseException | None = None
        self.closed = False
        self.seen: Callable[[int, bytes], None] | None = None  # told of all that is read, with its place

    def read(self, size: int = -1) -> bytes:
        try:
            place = self._file.tell() if self.seen is not None else 0
            data = self._file.read(size)
        except BaseException as error:
            self.failure = error
            raise
        if self.seen is not None:
            self.seen(place, data)
        return data

    def raise_failure(self) -> None:
        """Raise what the store raised, if it did; a file that has changed is the shard's own trouble."""
        if isinstance(self.failure, Changed):
            raise Unreadable("it has changed since it was listed") from self.failure
        if self.failure is not None:
            raise self.failure

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is ever written."""

    def close(self) -> None:
        self.closed = True
        self._file.close()


def unpacked(file: Watched, compression: Compression) -> Iterator[bytes]:
    """The shard's bytes, unpacked, in pieces of at most CHUNK_BYTES.

    Raises:
        Unreadable: after all that could be unpacked has been yielded.
    """
    try:
        if compression is Compression.GZIP:
            yield from _gunzip(file)
        elif compression is Compression.ZSTD:
            yield from _unzstd(file)
        else:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (zlib.error, pa.ArrowException, OSError, MemoryError, Changed) as error:
        file.raise_failure()
        raise Unreadable(f"{compression.value}: {short(error)}") from error


def _gunzip(file: Watched) -> Iterator[bytes]:
    """Members of a gzip file one after the other, as `gzip -d` takes them."""
    member, packed, started = zlib.decompressobj(31), b"", False
    while True:
        packed = packed or file.read(_RAW_BYTES)
        if not packed:
            break
        if not started:
            packed = packed.lstrip(b"\0")  # padding between or after members
            if not packed:
                continue
            started = True
        if chunk := member.decompress(packed, CHUNK_BYTES):
            yield chunk
        packed = member.unconsumed_tail
        if member.eof:
            packed, member, started = member.unused_data, zlib.decompressobj(31), False
        elif not packed:
            # What zlib still holds back from a chunk that was full.
            while chunk := member.decompress(b"", CHUNK_BYTES):
                yield chunk
    if started:
        raise Unreadable("gzip: the file is cut, its end is missing")


def _unzstd(file: Watched) -> Iterator[bytes]:
    # Arrow's stream tells a cut frame from a whole one, and refuses windows of more than 128 MiB.
    with closing(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def short(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, bounded and without control characters: it may quote a hostile file."""
    text = " ".join(str(error).split()) or type(error).__name__
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if len(clean) <= limit else clean[:limit] + "…"
