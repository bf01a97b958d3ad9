"""A model's files: code among them is refused, small ones are read within bounds, all are told apart by their bytes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.config import RunFailed, UserError
from pipelines.job.model_fetch import SMALL, SMALL_BYTES, WEIGHTS, s3_fetch, s3_files

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MAX_FILES = 10_000  # of a model's folder


def below(folder: Path) -> Iterator[Path]:
    """All files of a folder. Raises UserError where there are too many for a model's."""
    for count, path in enumerate(folder.rglob("*")):
        if count >= MAX_FILES:
            raise UserError(f"{folder} holds more than {MAX_FILES:,} files; that is no model's folder")
        if path.is_file():
            yield path


def refuse_code(names: Iterable[str], where: str, *, pickles_too: bool) -> None:
    """Raise UserError if one of these file names is that of code, or with `pickles_too` of what may hold code."""
    for name in names:
        if name.lower().endswith(".py"):
            raise UserError(
                f"{where} holds code ({name}); a model that needs its own code is not run. Remove it if not"
            )
        if pickles_too and name.lower().endswith(PICKLED):
            raise UserError(f"{where} holds pickled weights ({name}), which can run code; convert them to safetensors")


def refuse_auto_map(paths: Iterable[Path], where: str) -> None:
    """Raise UserError for `auto_map` in a config: it names code to load, here or in any other repository."""
    for path in paths:
        if path.suffix == ".json" and b"auto_map" in (raw := small_bytes(path)):
            with contextlib.suppress(ValueError, RecursionError):
                if not _has_key(json.loads(raw), "auto_map"):
                    continue
            raise UserError(f"{where}: {path.name} has auto_map, which loads code; use a model without it")


def _has_key(document: Any, name: str) -> bool:
    level = [document]
    while level:
        if any(isinstance(part, dict) and name in part for part in level):
            return True
        level = [
            child
            for part in level
            if isinstance(part, dict | list)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
    return False


def document_of(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file, empty if that is of another kind. Raises UserError for no file, or too large a one."""
    try:
        document = json.loads(small_bytes(path))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise UserError(f"{path} is missing; without it nobody knows what model this is") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON document: {error}") from None
    return document if isinstance(document, dict) else {}


def small_bytes(path: Path) -> bytes:
    """What is in a file that describes a model. Raises UserError if it is too large for one."""
    if (size := path.stat().st_size) > SMALL_BYTES:
        raise UserError(f"{path} has {size:,} bytes; at most {SMALL_BYTES:,} are read of such a file")
    return path.read_bytes()


def etags_of(listed: Iterable[storage.Stored]) -> dict[str, str]:
    """Size and ETag of each file of a model on S3, by its name."""
    return {entry.path: f"{entry.size} {entry.etag}" for entry in listed if entry.path.endswith((*SMALL, *WEIGHTS))}


def identity_of(hashes: dict[str, str]) -> str:
    """One text for all of them, which changes when one of them does."""
    return "files " + hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def fetch_as_found(uri: str, identity: str, cache: Path) -> str:
    """The folder on this machine with the files of a model, or of an adapter, at s3://; fetched once.

    Raises:
        RunFailed: they cannot be fetched, or are no longer those of this identity, with which the run began.
    """
    try:
        listed = s3_files(uri)
        if identity_of(etags_of(listed)) != identity:
            raise RunFailed(f"{uri} was changed since the run began; start it again")
        return str(s3_fetch(uri, listed, cache, (*SMALL, *WEIGHTS)))
    except UserError as error:
        raise RunFailed(f"{uri} cannot be fetched: {error}") from None


def hashes_of(paths: list[Path], cache: Path) -> dict[str, str]:
    """sha256 of each file; remembered by size and time of change, since weights take a second per gigabyte."""
    remembered_in = cache / "hashes.json"
    try:
        remembered = json.loads(remembered_in.read_text())
    except (OSError, ValueError):
        remembered = {}
    hashes = {}
    for path in paths:
        status = path.stat()
        key = f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        hashes[path.name] = remembered[key] = remembered.get(key) or _sha256(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a second the next time
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f".hashes-{os.getpid()}"
        part.write_text(json.dumps(remembered))
        part.replace(remembered_in)
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
