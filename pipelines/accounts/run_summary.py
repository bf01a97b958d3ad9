"""What a run was asked and did, in one small file: <sink>/runs/<run id>/summary.json, for whoever looks at many runs.

A manifest has a line for each shard and file, which may be 10^5; this has none. It is written with the manifest, when
the work begins and when it has ended or failed. docs/run-summary.schema.json says what each field means.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts.summary import without_secrets
from pipelines.gathered import gathered

log = logging.getLogger(__name__)

FILE = "summary.json"
MANIFEST_BYTES = 64 * 2**20  # read of the manifests of runs that are older than this file
_ERROR_CHARS = 300
_TOLERANT = ConfigDict(extra="ignore", allow_inf_nan=False)  # a later version may say more
_COUNTS = (
    "units", "rows_in", "rows_ok", "rows_error", "rows_carried", "rows_shared", "prompt_tokens", "cached_tokens",
    "output_tokens", "gold_rows", "gold_correct",
)  # fmt: skip
_TIMES = ("startup_s", "steady_s", "engines", "rows_per_s", "tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True, config=_TOLERANT)
class RunSummary:
    """One run. None: not known yet, or not measured."""

    version: Literal[1] = 1
    run_id: str
    job: str
    model: str
    fingerprint: str
    fingerprint_parts: Mapping[str, str] = field(default_factory=dict)  # by name
    engine: str | None = None  # its kind
    gpu: str | None = None  # that engines had, as its driver calls it; None: they were on CPU
    devices_each: int = 1  # of an engine
    engines_least: int = 1  # that the run was given
    state: Literal["running", "ended", "failed"]  # running: or killed
    exit_code: int | None = None
    started_at: str  # UTC, ISO 8601
    finished_at: str | None = None
    stopped_by: str | None = None
    error: str | None = None  # why it failed, cut
    units: int | None = None  # of this run, as all counts are
    rows_in: int | None = None
    rows_ok: int | None = None
    rows_error: int | None = None
    rows_carried: int | None = None
    rows_shared: int | None = None
    prompt_tokens: int | None = None  # cached ones included
    cached_tokens: int | None = None
    output_tokens: int | None = None
    gold_rows: int | None = None
    gold_correct: int | None = None
    device_seconds: float | None = None  # in which engines were at work, as receipts share it out
    startup_s: float | None = None
    steady_s: float | None = None
    engines: float | None = None  # held on the mean while they answered; those on CPU are one machine
    rows_per_s: float | None = None  # of steady time
    tokens_per_s: float | None = None
    billed_device_s: float | None = None
    billed_usd: Decimal | None = None  # as it said at its end; the table of costs is what holds
    devices_most: int | None = (
        None  # of all engines that it might have had; on CPU one each, though they share a machine
    )

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """What a manifest says of its run.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        told = manifest["summary"] or {}
        did, error, bill = told.get("this_run") or {}, manifest.get("error"), told.get("bill")
        figures: dict[str, Any] = {name: did.get(name) for name in _COUNTS}
        figures |= {name: told.get(name) for name in _TIMES}
        engine, hardware = manifest["engine"], manifest.get("hardware") or {}
        replicas = manifest["config"].get("engine", {}).get("replicas") or 1
        fewest, most = replicas if isinstance(replicas, list) else (replicas, replicas)
        each = engine.get("tensor_parallel", 1) * engine.get("pipeline_parallel", 1)
        device_seconds = did.get("device_seconds")
        return cls(
            **{name: manifest[name] for name in ("run_id", "fingerprint", "state", "exit_code", "started_at")},
            finished_at=manifest["finished_at"],
            fingerprint_parts=manifest.get("fingerprint_parts") or {},
            engine=engine.get("kind"),
            gpu=hardware.get("gpu_name") if engine.get("device") == "gpu" else None,
            devices_each=each,
            engines_least=fewest,
            job=manifest["config"]["job"]["name"],
            model=manifest["config"]["model"]["name"],
            stopped_by=told.get("stopped_by"),
            error=None if error is None else error[:_ERROR_CHARS],
            **figures,
            device_seconds=None if device_seconds is None else float(device_seconds),
            billed_device_s=None if bill is None else float(bill["device_seconds"]),
            billed_usd=None if bill is None else Decimal(bill["usd"]),
            devices_most=most * each,
        )

    @property
    def tokens(self) -> int:
        """Of both kinds; 0: none are known."""
        return (self.prompt_tokens or 0) + (self.output_tokens or 0)


_JSON: TypeAdapter[RunSummary] = TypeAdapter(RunSummary)


def keep(sink_uri: str, summary: RunSummary) -> None:
    """Store it beside the output, without secrets. Raises StoreFailed."""
    text = json.dumps(without_secrets(_JSON.dump_python(summary, mode="json")), indent=1)
    storage.put(storage.join(sink_uri, "runs", summary.run_id, FILE), text.encode())


def runs(sink_uri: str) -> dict[str, tuple[bool, int]]:
    """Of each run that has left a manifest, whether it has left a summary as well, and the bytes of the manifest."""
    sizes: dict[str, int] = {}
    summaries = set()
    for stored in storage.listing(storage.join(sink_uri, "runs"), missing_ok=True):
        run, _, name = stored.path.partition("/")
        if name == FILE:
            summaries.add(run)
        elif name == "manifest.json":
            sizes[run] = stored.size
    return {run: (run in summaries, size) for run, size in sizes.items()}


def newest(sink_uri: str, most: int | None = None) -> Iterator[RunSummary]:
    """The newest runs first, read as they are asked for; `most` of them, or all."""
    left = runs(sink_uri)
    yield from of_runs(sink_uri, [(run, left[run][0]) for run in sorted(left, reverse=True)[:most]])


def of_runs(sink_uri: str, wanted: Sequence[tuple[str, bool]]) -> Iterator[RunSummary]:
    """Of these runs, in order, side by side; each with whether it has left FILE, else its manifest is read.

    What is gone or not understood is left out, and said in the log.
    """
    uris = [storage.join(sink_uri, "runs", run, FILE if small else "manifest.json") for run, small in wanted]
    for (run, small), uri, text in zip(wanted, uris, gathered(uris), strict=True):
        try:
            if text is None:
                continue
            found = _JSON.validate_json(text) if small else RunSummary.of(json.loads(text))
            if found.run_id != run:
                raise ValueError("it is of another run")
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s is left out: it is not understood (%s)", storage.shown(uri), type(error).__name__)
            continue
        yield found
