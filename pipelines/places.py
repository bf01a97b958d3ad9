"""Places: what a URI may be, `s3://bucket/prefix` or a local path, and the errors that name it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from pipelines import s3
from pipelines.config import RunFailed, UserError
from pipelines.s3 import shown


class Changed(Exception):
    """The object is not the one that was listed."""


class StoreFailed(RunFailed):
    """A store refused, or stayed away until the retries were used up."""


class Unconditional(StoreFailed):
    """The store cannot create an object on condition that it is not there."""


def is_s3(uri: str) -> bool:
    """Whether `uri` names an object store rather than a local path."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """`uri`, checked, and if it is a local path, from the root on: workers have other working directories."""
    return checked(uri) if is_s3(uri) else str(Path(checked(uri)).expanduser().absolute())


def checked(uri: str) -> str:
    """`uri`, if it is one that this module can use; a UserError that says why not, otherwise."""
    if not uri or "\x00" in uri or "\n" in uri:
        raise UserError(f"{uri!r} is no URI: give s3://bucket/prefix or a local path")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme != "s3":
        raise UserError(f"{shown(uri)}: {scheme}:// is not supported; give s3://bucket/prefix or a plain local path")
    bucket = rest.partition("/")[0]
    if "@" in bucket or ":" in bucket:
        safe = shown(uri) if "@" in bucket else "s3://***"
        raise UserError(
            f"{safe}: no credentials in a URI; use AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise UserError(f"{shown(uri)}: {bucket!r} is no bucket name; give s3://bucket/prefix")
    return uri


def join(uri: str, *parts: str) -> str:
    """The URI of `parts` below `uri`. S3 keys are taken to the letter; a local path may not climb out of `uri`."""
    if not is_s3(uri) and any(part.startswith("/") or ".." in part.split("/") for part in parts):
        raise ValueError(f"{'/'.join(parts)!r} leads out of {uri}")
    return "/".join(((uri or ".").rstrip("/"), *parts))


def bucket_key(uri: str) -> tuple[str, str]:
    """The bucket of an s3:// URI, and the key in it."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextlib.contextmanager
def naming(uri: str, failed: type[Exception] = StoreFailed) -> Iterator[None]:
    """Turn what boto3 and the file system raise into errors that name `uri`."""
    try:
        yield
    except ClientError as error:
        if s3.status(error) == 412:
            raise Changed(f"{shown(uri)} is another object than the one that was listed") from None
        if s3.is_missing(error):
            raise FileNotFoundError(errno.ENOENT, "no such object", shown(uri)) from None
        raise failed(s3.reason(uri, error)) from error
    except BotoCoreError as error:
        raise failed(s3.reason(uri, error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failed(os_reason(uri, error.errno, str(error.strerror or error))) from error


def os_reason(uri: str, number: int | None, otherwise: str) -> str:
    """One line: what a file system's error `number` means at `uri`, and what to do; `otherwise`: its own words."""
    todo = {
        errno.ENOSPC: "the disk is full; free some space and start again",
        errno.EDQUOT: "the disk quota is used up; free some space and start again",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.EACCES: "access denied; check the rights of the folder",
        errno.EPERM: "access denied; check the rights of the folder",
        errno.EFBIG: "the file is larger than this process may write (ulimit -f)",
        errno.EEXIST: "a part of this path is a file, not a folder; choose another place",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another place",
    }.get(number or 0, otherwise)
    return f"{uri}: {todo}"


def local_etag(found: os.stat_result) -> str:
    """What changes when a local file's bytes change: its size and its mtime in nanoseconds."""
    return f"{found.st_size}-{found.st_mtime_ns}"
