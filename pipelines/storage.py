"""Bytes at a URI: `s3://bucket/prefix` or a local path. How S3 is reached, and by which settings, is in s3.py.

Errors: `UserError` from what is asked before a start (`checked`, `listing`); `FileNotFoundError`
where a single object is missing; `Changed` where it is another than was listed; `StoreFailed`, which ends a run,
for all else, once the retries are used up. Each names the URI, without any secret in it.
"""

import base64
import errno
import hashlib
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from pipelines import s3
from pipelines.listing import Stored, listing
from pipelines.places import (
    Changed,
    StoreFailed,
    Unconditional,
    absolute,
    bucket_key,
    checked,
    is_s3,
    join,
    local_etag,
    naming,
)
from pipelines.s3 import shown

__all__ = [
    "Changed",
    "StoreFailed",
    "Stored",
    "Unconditional",
    "absolute",
    "checked",
    "copy",
    "create",
    "delete",
    "delete_all",
    "delta_options",
    "exists",
    "get",
    "is_s3",
    "join",
    "listing",
    "open_input",
    "put",
    "shown",
]

WINDOW_MIN_BYTES = 256 * 2**10  # first ranged GET at a place: a Parquet footer is one request
WINDOW_MAX_BYTES = 16 * 2**20  # grows to this while a reader goes straight on
WHOLE_BYTES = 2**20  # an object of at most so many is kept as it is read, and no byte of it is asked for twice
DELETE_BATCH = 1000  # S3's own limit for one DeleteObjects


# ---------------------------------------------------------------------------------------------------- reading


def open_input(uri: str, *, etag: str | None = None) -> BinaryIO:
    """The bytes at `uri`, seekable and buffered; with `etag`, only if they are still those that were listed.

    Raises:
        Changed: another object, or none, is there; on S3 also later, from any read.
        FileNotFoundError: nothing is there (without `etag`).
        StoreFailed: the store refused or stayed away.
    """
    try:
        with naming(uri):
            if is_s3(uri):
                return cast(BinaryIO, io.BufferedReader(_Ranges(uri, etag), buffer_size=128 * 2**10))
            file = Path(uri).open("rb")  # noqa: SIM115 – the caller closes it
            if etag is not None and local_etag(os.fstat(file.fileno())) != etag:
                file.close()
                raise Changed(f"{uri} was changed since it was listed")
            return file
    except FileNotFoundError:
        if etag is None:
            raise
        raise Changed(f"{shown(uri)} is gone since it was listed") from None


class _Ranges(io.RawIOBase):
    """An S3 object by ranged GETs, each for a window that grows while the reader goes straight on.

    A small object takes two at most: from where its reader begins to its end (a Parquet footer), and what is before.
    """

    def __init__(self, uri: str, etag: str | None) -> None:
        super().__init__()
        self._uri = uri
        self._bucket, self._key = bucket_key(uri)
        same: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
        head = s3.client().head_object(Bucket=self._bucket, Key=self._key, **same, **s3.payer())
        self._size = head["ContentLength"]
        self._etag = head["ETag"]  # all windows are of one object, whether or not the caller knew which
        self._at = 0
        self._start = 0  # of the window
        self._window = memoryview(b"")
        self._grow = WINDOW_MIN_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"seek to {at} in {self._uri}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._window):
            self._fetch(len(buffer))
        offset = self._at - self._start
        piece = self._window[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _fetch(self, wanted: int) -> None:
        if self._size <= WHOLE_BYTES:
            if not self._window:
                self._start, self._window = self._at, memoryview(self._range(self._at, self._size))
            else:
                self._start, self._window = 0, memoryview(self._range(0, self._start) + self._window)
            return
        straight_on = self._window and self._at == self._start + len(self._window)
        self._grow = min(self._grow * 4, WINDOW_MAX_BYTES) if straight_on else WINDOW_MIN_BYTES
        stop = min(self._at + min(max(wanted, self._grow), WINDOW_MAX_BYTES), self._size)
        self._window = memoryview(b"")  # not two windows at once
        self._start, self._window = self._at, memoryview(self._range(self._at, stop))

    def _range(self, start: int, stop: int) -> bytes:
        try:
            with naming(self._uri):
                found = s3.body(self._bucket, self._key, Range=f"bytes={start}-{stop - 1}", IfMatch=self._etag)
        except FileNotFoundError:
            raise Changed(f"{shown(self._uri)} is gone since it was listed") from None
        if len(found) != stop - start:
            raise StoreFailed(f"{shown(self._uri)}: {len(found)} bytes came for {start} to {stop}; see the store")
        return found

    def close(self) -> None:
        self._window = memoryview(b"")
        super().close()


def get(uri: str) -> bytes:
    """All bytes at `uri`; for small things."""
    with naming(uri):
        return s3.body(*bucket_key(uri)) if is_s3(uri) else Path(uri).read_bytes()


# ---------------------------------------------------------------------------------------------------- writing


def put(uri: str, data: bytes) -> str | None:
    """Store `data` at `uri`, whole or not at all; what stood there is replaced. Returns its etag."""
    with naming(uri):
        if not is_s3(uri):
            return _put_local(Path(uri), data)
        bucket, key = bucket_key(uri)
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        stored = s3.client().put_object(Bucket=bucket, Key=key, Body=data, ContentMD5=md5, **s3.payer())
        return stored["ETag"].strip('"')


def copy(source: str, target: str) -> None:
    """Store at `target` what is at `source`, of the same store; S3 does so itself, for objects of up to 5 GB.

    Raises:
        FileNotFoundError: nothing is at `source`.
        StoreFailed: the store refused or stayed away.
    """
    if not is_s3(source):
        put(target, get(source))
        return
    from_bucket, from_key = bucket_key(source)
    bucket, key = bucket_key(target)
    with naming(source):
        s3.client().copy_object(
            Bucket=bucket, Key=key, CopySource={"Bucket": from_bucket, "Key": from_key}, **s3.payer()
        )


def create(uri: str, data: bytes) -> bool:
    """Store `data` at `uri` if nothing is there; whether it was. Asked by delta-rs for each commit in this very way.

    False is no proof that another stored it: of a request that was repeated because its answer was lost, the store
    refuses the second for the first's sake. Read the object to know.

    Raises:
        Unconditional: the store, or the file system, cannot do this.
        StoreFailed: it refused for another reason, or stayed away.
    """
    with naming(uri):
        if not is_s3(uri):
            return _create_local(Path(uri), data)
        bucket, key = bucket_key(uri)
        try:
            s3.client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", **s3.payer())
        except ClientError as error:
            if s3.status(error) in (409, 412):  # 409: another is just doing so
                return False
            if s3.status(error) in (400, 405, 501):
                said = s3.code(error) or s3.status(error)
                raise Unconditional(f"the store answered {said} to a conditional write") from error
            raise
        return True


def _create_local(path: Path, data: bytes) -> bool:
    _make_folder(path.parent)
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(5)}.part")
    try:
        aside.write_bytes(data)
        path.hardlink_to(aside)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) and aside.exists():
            raise Unconditional(f"its file system makes no hard links ({error.strerror})") from error
        raise
    finally:
        aside.unlink(missing_ok=True)
    return True


def _put_local(path: Path, data: bytes) -> str:
    _make_folder(path.parent)
    # A dotted name without the final suffix: no reader's glob finds it, and it lies on the same file system.
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(5)}.part")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            etag = local_etag(os.fstat(file.fileno()))
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return etag


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(uri: str) -> None:
    """Take away the object at `uri`; no error if there is none."""
    with naming(uri):
        if is_s3(uri):
            bucket, key = bucket_key(uri)
            s3.client().delete_object(Bucket=bucket, Key=key, **s3.payer())
        else:
            Path(uri).unlink(missing_ok=True)


def delete_all(uris: Sequence[str]) -> None:
    """Take away many objects of one bucket, or many files."""
    if not uris or not is_s3(uris[0]):
        for uri in uris:
            delete(uri)
        return
    bucket = bucket_key(uris[0])[0]
    for start in range(0, len(uris), DELETE_BATCH):
        keys = [bucket_key(uri)[1] for uri in uris[start : start + DELETE_BATCH]]
        with naming(uris[start]):
            answer = s3.client().delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}, **s3.payer()
            )
        for failure in answer.get("Errors", ()):
            if failure.get("Code") != "NoSuchKey":
                where = f"s3://{bucket}/{failure.get('Key')}"
                raise StoreFailed(f"{where}: not deleted ({failure.get('Code')}); check the rights of this run")


def exists(uri: str) -> bool:
    """Whether there is an object or file at `uri`; a prefix or folder is none."""
    if not is_s3(uri):
        return Path(uri).is_file()
    bucket, key = bucket_key(uri)
    try:
        with naming(uri):
            s3.client().head_object(Bucket=bucket, Key=key, **s3.payer())
    except FileNotFoundError:
        return False
    return True


def delta_options(uri: str) -> dict[str, str] | None:
    """What `deltalake` must be told to reach `uri` as this module does; None for a local path.

    Asked anew for every table that is opened: the credentials of a role change while a run lasts.
    """
    if not is_s3(uri):
        return None
    with naming(uri):
        return s3.delta_options(bucket_key(uri)[0])
