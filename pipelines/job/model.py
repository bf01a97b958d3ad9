"""Where a model lies, what it is, and that nothing in it is code.

A model is a folder on this machine, a folder at s3://, a Hub id, or the embedded one. Before a start only its small
files are read; weights are fetched where an engine needs them.
"""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from actors.engine import ModelHere
from pipelines import storage
from pipelines.config import ModelConfig, RunFailed, UserError
from pipelines.job.adapter import AdapterFiles, fetch_adapter, resolve_adapter
from pipelines.job.model_fetch import SMALL, WEIGHTS, hub_files, hub_small_files, s3_fetch, s3_files
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

EMBEDDED = "embedded://"
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that was found and may be used. Plain values: it crosses processes."""

    source: str  # as the config says: a folder, s3://…, or a Hub id
    folder_or_id: str  # what the engine opens; for s3:// the folder that `located` fills on its node
    tokenizer_folder: str  # its small files, on the machine that resolved it
    cache: str  # folder below which files are fetched, on any machine
    revision: str | None  # of a Hub id: the commit
    context_length: int  # tokens, prompt and answer together
    vocab_size: int  # rows of the embedding: ids from here on do not exist
    dtype: str  # of the checkpoint: float32, float16 or bfloat16
    quantization: str | None  # of the checkpoint
    file_hashes: dict[str, str]  # what identifies each file: sha256, or the store's ETag; of the Hub only small files
    identity: str  # changes when the model does
    weights_location: str | None  # s3://… to fetch from; None: the engine finds them itself
    adapter: AdapterFiles | None = None  # laid over it; None: the model alone
    long_above: int | None = None  # a max_model_len over this changes what is computed; None: none does
    chat_arguments: str = ""  # of its chat template, as JSON; set by the preparation from model and job


def cache_dir() -> Path:
    """The folder for what is made once per machine: $XDG_CACHE_HOME (else ~/.cache) + /batch-pipelines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batch-pipelines"


def resolve(model: ModelConfig, *, cache: Path) -> ModelFiles:
    """Find the model and its adapter, read what they are, and see that nothing in them is code.

    Raises:
        UserError: one is not there or not to be had, a file is missing, or there is code in it.
    """
    files = _resolved(model, cache)
    return replace(files, adapter=resolve_adapter(model.adapter, cache=cache)) if model.adapter else files


def _resolved(model: ModelConfig, cache: Path) -> ModelFiles:
    if model.path.startswith(EMBEDDED):
        folder = cache / "models" / PurePosixPath(model.path.removeprefix(EMBEDDED)).name
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path={model.path}: {folder} is not there yet; run make setup, which makes it")
        return _local(model, folder, cache)
    if storage.is_s3(model.path):
        return _in_s3(model, cache)
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return _local(model, folder.absolute(), cache)
    if _HUB_ID.fullmatch(model.path):
        return _on_hub(model, cache)
    raise UserError(f"model.path={model.path}: there is no such folder; give a folder, s3://bucket/folder or a Hub id")


def tokenizer_here(files: ModelFiles) -> str:
    """The folder of the model's tokenizer on this machine; fetched if another machine resolved the model.

    Raises:
        RunFailed: it is not here and cannot be fetched.
    """
    folder = Path(files.tokenizer_folder)
    if (folder / "tokenizer.json").is_file():
        return str(folder)
    try:
        if files.revision is not None:
            return str(hub_small_files(files.source, files.revision))
        if files.weights_location is not None:
            return str(s3_fetch(files.source, s3_files(files.source), Path(files.cache), SMALL))
    except UserError as error:
        raise RunFailed(f"a worker cannot get the tokenizer: {error}") from None
    raise RunFailed(f"{folder} is not on this node; put the model where all nodes find it: s3://, or a shared folder")


def located(files: ModelFiles) -> ModelHere:
    """What the engine opens on this machine: from s3:// it is fetched, once; else it is what was resolved.

    Raises:
        RunFailed: the files cannot be fetched, or are no longer those that the run began with.
    """
    model = files.folder_or_id
    if files.weights_location is not None:
        model = fetch_as_found(files.weights_location, files.identity, Path(files.cache))
    return ModelHere(model=model, adapter=fetch_adapter(files.adapter) if files.adapter else None)


# ------------------------------------------------------------------------------------------------- the three places


def _local(model: ModelConfig, folder: Path, cache: Path) -> ModelFiles:
    paths = sorted(below(folder))
    names = [path.relative_to(folder).as_posix() for path in paths]
    refuse_code(names, str(folder), pickles_too=True)
    refuse_auto_map(paths, str(folder))
    wanted = [path for path in paths if path.name.endswith((*SMALL, *WEIGHTS)) and path.parent == folder]
    hashes = hashes_of(wanted, cache)
    if not any(name.endswith(WEIGHTS) for name in hashes):
        raise UserError(f"{folder} holds no weights (*.safetensors); save the model there with save_pretrained")
    return _described(model, folder, cache, hashes, identity_of(hashes), folder_or_id=str(folder))


def _in_s3(model: ModelConfig, cache: Path) -> ModelFiles:
    listed = s3_files(model.path)
    refuse_code([entry.path for entry in listed], model.path, pickles_too=True)
    folder = s3_fetch(model.path, listed, cache, SMALL)
    refuse_auto_map(sorted(folder.glob("*.json")), model.path)
    etags = etags_of(listed)
    if not any(name.endswith(WEIGHTS) for name in etags):
        raise UserError(
            f"model.path={model.path} holds no weights (*.safetensors); there are {len(listed)} other files"
        )
    identity = identity_of(etags)
    return _described(model, folder, cache, etags, identity, folder_or_id=str(folder), weights_location=model.path)


def _on_hub(model: ModelConfig, cache: Path) -> ModelFiles:
    commit, names = hub_files(model.path, model.revision)
    top = [name for name in names if "/" not in name]
    # With safetensors beside them pickles are never fetched: engines take the former.
    refuse_code(top, model.path, pickles_too=not any(name.endswith(WEIGHTS) for name in top))
    folder = hub_small_files(model.path, commit)
    small = sorted(path for path in folder.iterdir() if path.name.endswith(SMALL))
    refuse_auto_map(small, model.path)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in small}
    return _described(model, folder, cache, hashes, f"{model.path}@{commit}", folder_or_id=model.path, revision=commit)


def _described(
    model: ModelConfig,
    folder: Path,
    cache: Path,
    file_hashes: dict[str, str],
    identity: str,
    *,
    folder_or_id: str,
    revision: str | None = None,
    weights_location: str | None = None,
) -> ModelFiles:
    config = document_of(folder / "config.json")
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    vocab_size = text.get("vocab_size")
    context = next((text[key] for key in CONTEXT if isinstance(text.get(key), int)), None)
    if not isinstance(vocab_size, int) or context is None:
        raise UserError(
            f"{model.path}: config.json tells no vocab_size or max_position_embeddings; is it a text model?"
        )
    said = document_of(folder / "tokenizer_config.json", missing_ok=True).get("model_max_length")
    if isinstance(said, int) and said > 0:  # vLLM bounds the context by it as well
        context = min(context, said)
    if model.max_model_len is not None and model.max_model_len > context:
        raise UserError(
            f"model.max_model_len={model.max_model_len}: {model.path} was made for {context} tokens at most"
        )
    quantization = (config.get("quantization_config") or {}).get("quant_method", model.quantization)
    return ModelFiles(
        source=model.path,
        folder_or_id=folder_or_id,
        tokenizer_folder=str(folder),
        cache=str(cache),
        revision=revision,
        context_length=context,
        vocab_size=vocab_size,
        dtype=str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or model.dtype),
        quantization=quantization,
        file_hashes=file_hashes,
        identity=identity,
        weights_location=weights_location,
        long_above=_long_above(text),
    )


def _long_above(text: dict[str, Any]) -> int | None:
    """The max_model_len above which vLLM 0.32 computes a model another way, prompts that are short included.

    LongRoPE, as of Phi-3.5 and Phi-4-mini, then takes its factors for long texts (phi3_long_rope_scaled_rope.py), and
    Llama 4 another temperature of attention (llama4.py).
    """
    if str(text.get("model_type")).startswith("llama4"):
        return 32_768
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    for part in (rope, *rope.values()):  # of the model, or one for each kind of its layers
        if isinstance(part, dict) and part.get("rope_type", part.get("type")) in ("longrope", "su"):
            made_for = part.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
            return made_for if isinstance(made_for, int) else None
    return None
