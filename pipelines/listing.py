"""Listing: what lies below a URI, each file with its size, and an etag that changes with its bytes."""

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import patience, s3, s3_parts
from pipelines.config import UserError
from pipelines.places import bucket_key, checked, is_s3, local_etag, naming
from pipelines.s3 import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One object or file as it was listed."""

    uri: str
    path: str  # below the listed prefix, with "/" between folders
    size: int  # bytes
    etag: str | None  # changes when the bytes change; of a local file: size and mtime in nanoseconds
    mtime: float  # seconds since the epoch


def listing(
    uri: str, *, missing_ok: bool = False, links_out: bool = True, expected: Sequence[str] = ()
) -> Iterator[Stored]:
    """All files below `uri`, in no promised order; if `uri` is one file, that one, under its own name.

    Without `links_out` a link in a local folder that leads out of it is skipped, with a warning. `expected`: names of
    most of the files, if they lie right below `uri`, where no folder's name begins like one of them; many of them on S3
    are listed in parts at once.

    Raises:
        UserError: nothing is there (unless `missing_ok`), or it cannot be reached or listed.
    """
    checked(uri)
    entries = _listed_s3(uri, expected) if is_s3(uri) else _listed_local(uri, links_out)
    try:
        first = next(entries, None)
    except FileNotFoundError:
        if missing_ok:
            return iter(())
        raise UserError(f"{shown(uri)}: there is nothing there; check the path, or create it") from None
    return iter(()) if first is None else _chained(first, entries)


def _chained(first: Stored, rest: Iterator[Stored]) -> Iterator[Stored]:
    yield first
    yield from rest


def _listed_s3(uri: str, expected: Sequence[str]) -> Iterator[Stored]:
    bucket, key = bucket_key(uri)
    prefix = key if not key or key.endswith("/") else f"{key}/"
    found = False
    with naming(uri, UserError):
        # Asked with little patience first: a wrong endpoint is told in seconds, a long listing is patient.
        with patience.at_most(s3.PROBE_S):
            s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, **s3.payer())
        cuts = s3_parts.cut(expected)
        pages = s3_parts.pages(bucket, prefix, cuts) if cuts else None
        for page in _one_by_one(bucket, prefix) if pages is None else pages:
            for item in page:
                found = True
                if not item["Key"].endswith("/"):  # a console's marker for an empty folder
                    yield _stored(bucket, item["Key"], item["Key"][len(prefix) :], item["Size"], item)
        if not found and prefix:
            head = s3.client().head_object(Bucket=bucket, Key=key, **s3.payer())
            yield _stored(bucket, key, key.rpartition("/")[2], head["ContentLength"], head)


def _one_by_one(bucket: str, prefix: str) -> Iterator[Sequence[Any]]:
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **s3.payer())
    return (page.get("Contents", ()) for page in pages)


def _stored(bucket: str, key: str, path: str, size: int, item: Any) -> Stored:
    etag, mtime = item["ETag"].strip('"'), item["LastModified"].timestamp()
    return Stored(uri=f"s3://{bucket}/{key}", path=path, size=size, etag=etag, mtime=mtime)


def _listed_local(uri: str, links_out: bool) -> Iterator[Stored]:
    root = Path(uri)
    with naming(uri, UserError):
        found = root.stat()
        if stat.S_ISDIR(found.st_mode):
            yield from _walked(uri.rstrip("/"), "", (), None if links_out else os.path.realpath(root))
        elif stat.S_ISREG(found.st_mode):
            yield _stored_local(uri, root.name, found)
        else:
            raise UserError(f"{uri}: neither a folder nor a file; give one of the two")


def _walked(root: str, below: str, above: tuple[tuple[int, int], ...], inside: str | None) -> Iterator[Stored]:
    """The files of a folder; `inside`: the folder out of which no link may lead."""
    folder = Path(f"{root}/{below}")
    here = (folder.stat().st_dev, folder.stat().st_ino)
    if here in above:  # a link that leads back to where we come from
        return
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_symlink()) for entry in entries)
    for name, link in names:
        if link and inside is not None and not _within(os.path.realpath(f"{folder}/{name}"), inside):
            log.warning("%s: skipped, a link out of the folder; source.follow_links=true reads it", folder / name)
            continue
        try:
            found = os.stat(f"{folder}/{name}")  # noqa: PTH116 – Path takes as long again, 10^5 times
        except FileNotFoundError:  # a link to nowhere, or deleted since
            log.warning("%s: skipped, it leads nowhere", folder / name)
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _walked(root, f"{below}{name}/", (*above, here), inside)
        elif stat.S_ISREG(found.st_mode):
            yield _stored_local(f"{root}/{below}{name}", f"{below}{name}", found)


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _stored_local(uri: str, path: str, found: os.stat_result) -> Stored:
    return Stored(uri=uri, path=path, size=found.st_size, etag=local_etag(found), mtime=found.st_mtime)
