"""An adapter: a LoRA that is laid over a model's weights, a folder on this machine or at s3://, as PEFT saves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.config import UserError
from pipelines.job.model_fetch import SMALL, s3_fetch, s3_files
from pipelines.job.model_files import (
    below,
    document_of,
    etags_of,
    fetch_as_found,
    hashes_of,
    identity_of,
    refuse_auto_map,
    refuse_code,
)

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 512  # that vLLM 0.32 has room for


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """An adapter that was found and may be used. Plain values: it crosses processes."""

    source: str  # as the config says: a folder, or s3://…
    folder: str  # what the engine opens; for s3:// the folder that `fetch_adapter` fills on its node
    cache: str  # folder below which files are fetched, on any machine
    rank: int
    file_hashes: dict[str, str]  # sha256 of each file, or the store's size and ETag
    identity: str  # changes when the adapter does


def resolve_adapter(path: str, *, cache: Path) -> AdapterFiles:
    """Find the adapter, read its rank, and see that nothing in it is code.

    Raises:
        UserError: it is not there, a file is missing, it is of a kind that the engine cannot take, or holds code.
    """
    if storage.is_s3(path):
        listed = s3_files(path)
        refuse_code([entry.path for entry in listed], path, pickles_too=True)
        folder, hashes = s3_fetch(path, listed, cache, SMALL), etags_of(listed)
    else:
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"model.adapter={path}: there is no such folder; give one, or s3://bucket/folder")
        files = sorted(below(folder))
        refuse_code([file.relative_to(folder).as_posix() for file in files], path, pickles_too=True)
        hashes = hashes_of([file for file in files if file.parent == folder], cache)
    for name in (CONFIG, TENSORS):
        if name not in hashes:
            raise UserError(f"model.adapter={path} holds no {name}; save the adapter there with PEFT's save_pretrained")
    refuse_auto_map(sorted(folder.glob("*.json")), path)
    return AdapterFiles(
        source=path,
        folder=str(folder),
        cache=str(cache),
        rank=_rank(document_of(folder / CONFIG), path),
        file_hashes=hashes,
        identity=identity_of(hashes),
    )


def fetch_adapter(files: AdapterFiles) -> str:
    """The folder that the engine opens on this machine; fetched from s3://, once.

    Raises:
        RunFailed: it cannot be fetched, or is no longer the one that the run began with.
    """
    if not storage.is_s3(files.source):
        return files.folder
    return fetch_as_found(files.source, files.identity, Path(files.cache))


def _rank(config: dict[str, Any], path: str) -> int:
    """Of a plain LoRA. Else the engine would refuse it once it has loaded the model, or leave out what it cannot do."""
    kind, rank = config.get("peft_type"), config.get("r")
    if kind != "LORA":
        raise UserError(f"model.adapter={path} is of kind {kind}; the engine takes LORA")
    if not isinstance(rank, int) or not 1 <= rank <= MOST_RANK:
        raise UserError(f"model.adapter={path}: its rank r is {rank}; the engine has room for 1 to {MOST_RANK}")
    odd = [name for name in ("use_dora", "modules_to_save") if config.get(name)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    if odd:
        raise UserError(f"model.adapter={path} has {', '.join(odd)}, which the engine cannot take; merge it instead")
    return rank
