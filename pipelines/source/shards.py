"""Shards: the input files below source.uri, each with its format, size and identity.

A shard is known by its path below source.uri. That path is the user's and may be anything (`../x`, NUL, unicode on
S3); it is only ever read from, and what we write is named by `units.unit_name`.
"""

import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipelines import storage
from pipelines.config import SourceConfig, UserError
from pipelines.places import naming
from pipelines.source.formats import EXTENSIONS, Compression, Format, Unreadable, Watched, format_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One input file as it was when it was listed."""

    uri: str
    path: str  # below source.uri; what receipts call it
    size: int  # bytes, packed
    identity: str  # changes when its bytes change: S3 etag:size, local mtime in ns:size or sha256:size
    format: Format
    compression: Compression = Compression.NONE
    stat: str | None = None  # of a local file whose identity is its sha256: its mtime in ns:size, when it was listed


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies below source.uri."""

    shards: tuple[Shard, ...]  # to be read, by path
    left_out: frozenset[str]  # by `source.include` and `exclude`: there, and not this run's affair


def list_shards(config: SourceConfig) -> list[Shard]:
    """All shards below source.uri that include and exclude let through, by path; see `list_source`."""
    return list(list_source(config).shards)


def list_source(config: SourceConfig) -> Listing:
    """All shards below source.uri, and the paths of those that include and exclude leave out.

    `_SUCCESS`, dotfiles, what lies below `_` or `.` folders, and empty files are no shards. Files whose name tells
    no format are skipped with one warning that counts them by ending.

    Raises:
        UserError: nothing to read, with what was seen instead; a shard whose name no output could hold.
    """
    shards: list[Shard] = []
    unknown: Counter[str] = Counter()
    left_out: set[str] = set()
    hidden = empty = 0
    for stored in storage.listing(config.uri, links_out=config.follow_links):
        if not _visible(stored.path):
            hidden += 1
        elif not _chosen(stored.path, config):
            left_out.add(stored.path)
        elif (known := format_of(PurePosixPath(stored.path).name)) is None:
            unknown[_ending(stored.path)] += 1
        elif stored.size == 0:
            empty += 1
        else:
            _check_name(stored.path, config)
            shards.append(
                Shard(
                    uri=stored.uri,
                    path=stored.path,
                    size=stored.size,
                    identity=identity_of(stored),
                    format=known[0],
                    compression=known[1],
                )
            )
    endings = ", ".join(f"{count} × {ending}" for ending, count in unknown.most_common(5))
    if not shards:
        seen = [
            f"{sum(unknown.values())} of no known format ({endings})" if unknown else "",
            f"{len(left_out)} left out by source.include and source.exclude" if left_out else "",
            f"{empty} empty" if empty else "",
            f"{hidden} hidden (a name that begins with _ or .)" if hidden else "",
        ]
        raise UserError(
            f"source.uri {config.uri} has no shard to read; files seen: {', '.join(filter(None, seen)) or 'none'}. "
            f"A shard's name ends in {' '.join(EXTENSIONS)}, all but Parquet also with .gz or .zst."
        )
    if unknown:
        logger.warning(
            "%d files below %s skipped, their names tell no known format: %s",
            sum(unknown.values()),
            config.uri,
            endings,
        )
    if config.identity == "content" and not storage.is_s3(config.uri):
        shards = _hashed(shards)
    return Listing(tuple(sorted(shards, key=lambda shard: shard.path)), frozenset(left_out))


def _hashed(shards: Sequence[Shard]) -> list[Shard]:
    """These local shards, with their bytes for an identity.

    A file that is written to meanwhile is not taken for what it was before: whoever reads it looks at its `stat`, which
    was listed before its bytes were read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and reading let other threads run
        digests = pool.map(_sha256, [shard.uri for shard in shards])
        return [
            replace(shard, identity=f"sha256-{digest}:{shard.size}", stat=shard.identity)
            for shard, digest in zip(shards, digests, strict=True)
        ]


def _sha256(path: str) -> str:
    try:
        with naming(path, UserError), Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: it is gone since it was listed; start again") from None


def _check_name(path: str, config: SourceConfig) -> None:
    """A local file may be named by any bytes; `_shard` is text, and so are receipts."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(
            f"source.uri {config.uri} has a shard whose name is no UTF-8: {shown!r}; rename it, or leave it out with "
            "source.exclude, where ? stands for such a byte"
        ) from None


def identity_of(stored: storage.Stored) -> str:
    """What changes when the file's bytes change."""
    return f"{stored.etag or int(stored.mtime * 1e9)}:{stored.size}"


def open_shard(shard: Shard) -> Watched:
    """The shard's packed bytes, as they were when it was listed.

    Raises:
        Unreadable: it is gone or has changed since.
    """
    try:
        check_unchanged(shard)
        etag = shard.identity.rpartition(":")[0] if storage.is_s3(shard.uri) else None
        return Watched(storage.open_input(shard.uri, etag=etag))
    except storage.Changed as error:
        raise Unreadable("it has changed since it was listed") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Unreadable("it is gone since it was listed") from error


def check_unchanged(shard: Shard) -> None:
    """Raise Unreadable where a local shard is not the one that was listed; S3 checks each read by its ETag."""
    if storage.is_s3(shard.uri):
        return
    now = list(storage.listing(shard.uri, missing_ok=True))
    if not now:
        raise Unreadable("it is gone since it was listed")
    if identity_of(now[0]) != (shard.stat or shard.identity):
        raise Unreadable("it has changed since it was listed")


def _visible(path: str) -> bool:
    # `..` as part of a key is a name like any other: nothing is ever written to a shard's path.
    return not any(part[:1] in ("_", ".") and part != ".." for part in path.split("/"))


def _ending(path: str) -> str:
    suffixes = PurePosixPath(path).suffixes[-2:]
    ending = "".join(
        suffixes if suffixes and suffixes[-1].lower() in (".gz", ".gzip", ".zst", ".zstd") else suffixes[-1:]
    )
    return repr(ending)[1:-1] if ending else "no ending"


def _chosen(path: str, config: SourceConfig) -> bool:
    included = any(_glob(pattern).fullmatch(path) for pattern in config.include)
    return included and not any(_glob(pattern).fullmatch(path) for pattern in config.exclude)


@functools.lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    """A glob over a whole path: `*` and `?` stay inside a folder, `**` crosses folders, `[a-c]` is one of these.

    A pattern without a slash is meant for the file's name, in whatever folder it lies.
    """
    if "/" not in pattern and pattern != "**":
        pattern = f"**/{pattern}"
    pattern = pattern.removeprefix("/")
    out, at = [], 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out.append("(?:[^/]*/)*")
            at += 3
        elif pattern.startswith("**", at):
            out.append(".*")
            at += 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            out.append(f"[{'^' + inside[1:] if inside[0] == '!' else inside}]")
            at = end + 1
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])))
            at += 1
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        raise UserError(
            f"source.include or source.exclude holds the pattern {pattern!r}, which is not a glob: "
            "use * ? [a-c] inside a folder and ** across folders"
        ) from None
