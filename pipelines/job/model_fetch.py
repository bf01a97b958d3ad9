"""A model's files from where they lie to a folder on this machine: from the Hub, or from s3://.

Before a start only small files are fetched; weights on the node of an engine. A file appears whole or not at all,
under a folder named after what was listed, so that a changed model is another folder.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that it has chosen

from pipelines import storage
from pipelines.config import UserError
from pipelines.storage import Stored

SMALL = (".json", ".jinja", ".txt", ".model")  # what describes a model: config, tokenizer, chat template
WEIGHTS = (".safetensors", ".gguf")
SMALL_BYTES = 128 * 2**20  # of one such file
COPY_BYTES = 8 * 2**20
AWAY = (OSError, ValueError, HTTPError)


def hub_files(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that `revision` names, and the files in it; from the local cache where the Hub cannot be asked.

    Raises:
        UserError: no such model or revision, no access, or the Hub is away and nothing is cached.
    """
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=30)
    except hub_errors.GatedRepoError:
        raise UserError(
            f"model.path={repo}: the Hub wants you to accept its terms first, at https://huggingface.co/{repo}, "
            "and to set HF_TOKEN"
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise UserError(f"model.revision={revision}: {repo} has no such commit, tag or branch") from None
    except hub_errors.RepositoryNotFoundError:
        raise UserError(
            f"model.path={repo}: no such model on the Hub, and no folder here (private? set HF_TOKEN)"
        ) from None
    except AWAY as error:
        return _cached(repo, revision, error)
    if info.sha is None:
        raise UserError(f"model.path={repo}: the Hub names no commit; give model.revision")
    return info.sha, [item.rfilename for item in info.siblings or []]


def _cached(repo: str, revision: str | None, error: Exception) -> tuple[str, list[str]]:
    try:
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except AWAY:
        _away(repo, error)
    return folder.name, [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _away(repo: str, error: Exception) -> NoReturn:
    raise UserError(
        f"model.path={repo}: the Hub cannot be reached ({type(error).__name__}) and the model is not cached here; "
        "give a local folder or s3://, or model=smollm2"
    ) from None


def hub_small_files(repo: str, commit: str) -> Path:
    """The small files of a commit on this machine.

    Raises:
        UserError: they cannot be fetched.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=commit, allow_patterns=[f"*{ending}" for ending in SMALL], ignore_patterns=["*/*"]
        )
    except AWAY as error:
        _away(repo, error)
    return Path(folder)


# ------------------------------------------------------------------------------------------------- s3://


def s3_files(uri: str) -> list[Stored]:
    """The files at the top of the folder, by name.

    Raises:
        UserError: nothing is there, or it cannot be listed.
    """
    return sorted((entry for entry in storage.listing(uri) if "/" not in entry.path), key=lambda entry: entry.path)


def s3_folder(uri: str, files: list[Stored], cache: Path) -> Path:
    """The folder on this machine for these versions of these files."""
    listed = "\n".join(f"{entry.path} {entry.size} {entry.etag}" for entry in files)
    digest = hashlib.sha256(f"{uri}\n{listed}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache / "fetched" / digest[:24]


def s3_fetch(uri: str, files: list[Stored], cache: Path, endings: tuple[str, ...]) -> Path:
    """Fetch those of the files that end so and are not here yet; the folder where they are."""
    folder = s3_folder(uri, files, cache)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in _wanted(files, endings):
        target = folder / entry.path
        with _alone(folder.with_suffix(".lock")):
            if not (target.is_file() and target.stat().st_size == entry.size):
                _fetch(entry, target)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One engine of a node fetches a file, and the others find it there. Whoever dies meanwhile lets go of the lock."""
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _fetch(entry: Stored, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file, storage.open_input(entry.uri, etag=entry.etag) as source:
            shutil.copyfileobj(source, file, COPY_BYTES)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def _wanted(files: list[Stored], endings: tuple[str, ...]) -> Iterator[Stored]:
    for entry in files:
        if entry.path.endswith(endings) and entry.path not in (".", "..") and "\x00" not in entry.path:
            if entry.path.endswith(SMALL) and entry.size > SMALL_BYTES:
                raise UserError(
                    f"{entry.uri} has {entry.size:,} bytes; at most {SMALL_BYTES:,} are read of such a file"
                )
            yield entry
