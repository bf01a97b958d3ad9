"""The contract in types: what a run is told. Checked by `checked` in cli.py before anything starts.

Every class is a frozen pydantic dataclass that refuses unknown keys. Values come from Hydra's YAML and the
command line; a config is data, nothing in it names code.
"""

import os.path
import re
from dataclasses import field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from actors.engine import SimulatedFaults
from pipelines.alert_config import AlertsConfig
from pipelines.gate_config import GateConfig

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Exit(IntEnum):
    """How a command ended; the contract's exit codes."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # bad usage or config: nothing was started
    TOO_MANY_ERRORS = 3  # done, but over max_error_rate, or a shard was unreadable, or not published by its gate
    STOPPED = 4  # before the end, by budget, deadline or signal; the same command goes on


class UserError(Exception):
    """What the user can mend, found before anything started: one line, no traceback, exit 2."""


class RunFailed(Exception):
    """What ends a run that had begun (a store that stayed away, an engine that never started): one line, exit 1."""


def exit_of(error: BaseException) -> Exit:
    """How a command ends that is left by this error."""
    if isinstance(error, UserError):
        return Exit.USAGE
    return Exit.STOPPED if isinstance(error, KeyboardInterrupt) else Exit.FAILED


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _place(uri: str) -> str:
    """A local path or s3://bucket/prefix, and nothing secret in it."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if not uri.strip() or "\0" in uri:
        raise ValueError("is empty: give a local path or s3://bucket/prefix")
    if scheme and scheme[1] != "s3":
        raise ValueError(f"begins with {scheme[0]}: give a local path or s3://bucket/prefix")
    if scheme and not re.match(r"s3://[A-Za-z0-9]", uri):
        raise ValueError("names no bucket: write s3://bucket/prefix")
    if scheme and "@" in uri.removeprefix("s3://").split("/")[0]:
        raise ValueError("holds credentials: leave them out of it and set AWS_PROFILE or the usual AWS variables")
    return uri


def _inside(uri: str, of: str) -> bool:
    """Whether a place is another one or lies in it."""
    # abspath, not resolve: a config is checked without a look at the file system
    inner, outer = (place.rstrip("/") if "://" in place else os.path.abspath(place) for place in (uri, of))  # noqa: PTH100
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


Globs = Annotated[tuple[str, ...], BeforeValidator(_listed)]  # one pattern may stand without brackets
ErrorType = Literal[
    "contract",  # the answer is not what the job's output asks for
    "empty",  # nothing to ask about
    "engine",  # refused by it
    "poison",  # engines died of it
    "template",  # the prompt cannot be rendered
    "timeout",  # engines hung on it
    "too_large",  # over source.max_row_bytes
    "too_long",  # over the model's length
    "unreadable",  # the row
    "unreadable_shard",  # one for all that could not be read of a shard
]


def _error_types(value: Any) -> Any:
    """true, false, or types of dead letters, one or a list."""
    types = _listed(value)
    if isinstance(value, bool):
        return value
    if not isinstance(types, tuple) or not types or not set(types) <= set(get_args(ErrorType)):
        raise ValueError(f"retry_errors is {value}: give true, false, or some of {', '.join(get_args(ErrorType))}")
    return types


_DURATION = re.compile(r"(?:(?P<days>\d+)d)?(?:(?P<hours>\d+)h)?(?:(?P<minutes>\d+)m)?(?:(?P<seconds>\d+)s)?")


def finish_by(text: str) -> datetime | timedelta:
    """A moment, with its time zone, or a duration from the start on: `2026-11-25T06:00+01:00`, `6h`, `1h30m`.

    Raises:
        ValueError: it is neither.
    """
    duration = _DURATION.fullmatch(text.strip())
    if duration and any(duration.groups()):
        return timedelta(**{unit: int(count) for unit, count in duration.groupdict().items() if count})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("is neither a time such as 2026-11-25T06:00Z nor a duration such as 6h or 1h30m") from None
    if moment.tzinfo is None:
        raise ValueError("says no time zone: add Z, or +01:00")
    return moment


def _ending(text: str) -> str:
    finish_by(text)
    return text


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError("is no day: write it as 2026-11-25") from None


_OURS = ("messages", "tools", "documents", "add_generation_prompt")  # what a chat template is given in any case


def _chat_arguments(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if not name.isidentifier() or name in _OURS or name.endswith("_token"):
            raise ValueError(
                f"chat_template_args.{name}: is no argument that may be set; a name such as enable_thinking"
            )
    return given


# What the model's own chat template may be told besides the messages: enable_thinking of Qwen3, reasoning_effort of
# gpt-oss. Part of the fingerprint.
ChatArguments = Annotated[dict[str, bool | int | float | str], AfterValidator(_chat_arguments)]
RetryErrors = Annotated[bool | tuple[str, ...], BeforeValidator(_error_types)]
Place = Annotated[str, AfterValidator(_place)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MessageConfig:
    role: Literal["system", "user", "assistant"]
    content: str  # a Jinja2 template over the row's columns


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OutputConfig:
    """What the model must answer, and the columns that come of it."""

    kind: Literal["labels", "json", "text"]
    labels: tuple[str, ...] = ()  # kind=labels: exactly one of these; columns label, confidence
    json_schema: dict[str, Any] | None = None  # kind=json: a column for each property
    column: str = "text"  # kind=text: the column that holds the answer

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "labels" and len(set(self.labels)) < 2:
            raise ValueError(f"output.labels is {list(self.labels)}: a choice needs at least two different labels")
        if any(not label or label != label.strip() for label in self.labels):
            raise ValueError(f"output.labels is {list(self.labels)}: no label may be empty or have outer blanks")
        if self.kind == "json" and not self.json_schema:
            raise ValueError("output.kind=json needs output.json_schema, a JSON schema of type object")
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SamplingConfig:
    max_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stop: tuple[str, ...] = ()


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"fields names {', '.join(twice)} more than once: once is enough")
    return names


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LadderConfig:
    """What is tried for a row before it becomes a dead letter. Off by default: it changes what is asked."""

    ask_again: Annotated[int, Field(ge=0, le=8)] = 0  # times, an answer that breaks the contract, saying what is wrong
    too_long: Literal["error", "cut_end", "cut_start", "cut_middle"] = "error"  # what goes of the longest text


@dataclass(frozen=True, config=STRICT, kw_only=True)
class JobConfig:
    """What is asked of the model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    messages: Annotated[tuple[MessageConfig, ...], Field(min_length=1)]
    fields: Annotated[tuple[str, ...], AfterValidator(_different)] = ()  # columns that `{{ fields }}` prints, as JSON
    output: OutputConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    chat_template_args: ChatArguments = field(default_factory=dict)  # over those of the model
    gold: str | None = None  # input column that holds the expected label; accuracy is reported, answers do not change


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """Which model answers, and the engine settings that suit it."""

    name: str  # as people call it: column _model, MLflow, report
    path: str  # Hub id, local folder, s3://bucket/folder, or embedded://NAME for the model that ships with the demo
    revision: str | None = None  # of a Hub id: commit, tag or branch; pinned to its commit when the run starts
    max_model_len: Annotated[int, Field(ge=16)] | None = None  # None: what the model was made for
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"  # of the checkpoint
    quantization: str | None = None  # of the checkpoint, if it is quantized already: fp8, gptq, awq, mxfp4, …
    max_num_seqs: Annotated[int, Field(ge=1)] = 256  # rows that decode together
    max_num_batched_tokens: Annotated[int, Field(ge=64)] = 8192  # tokens of one engine step
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9
    tensor_parallel: Annotated[int, Field(ge=1)] = 1  # GPUs of one machine that share each layer
    pipeline_parallel: Annotated[int, Field(ge=1)] = (
        1  # and that share the layers: an engine takes as many as both make
    )
    adapter: str | None = None  # a LoRA over the model: a folder, or s3://bucket/folder
    chat_template_args: ChatArguments = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PrecisionConfig:
    """In which numbers the model computes, and what that needs."""

    name: Literal["auto", "fp32", "fp16", "bf16", "fp8", "int8", "int4_gptq", "int4_awq"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    quantization: str | None = None  # as vLLM names it
    checkpoint: str | None = None  # the model's own quantization must be this: it cannot be made while loading
    kv_cache_dtype: str = "auto"
    devices: tuple[Literal["cpu", "gpu"], ...] = ("cpu", "gpu")
    min_compute_capability: float | None = None  # of an NVIDIA GPU
    needs: str = ""  # in words, for the refusal


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BatchingConfig:
    """How rows meet in an engine. None: the model's own setting."""

    mode: Literal["continuous", "dynamic", "static"]
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=64)] | None = None
    lookahead: Annotated[float, Field(ge=0, le=4)] = 0.5  # continuous: times max_num_seqs, rows that wait in the engine
    batch_rows: Annotated[int, Field(ge=1)] = 32  # dynamic, static: rows of one batch
    wait_ms: Annotated[float, Field(ge=0)] = 50.0  # dynamic: an incomplete batch leaves after this


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SpeculationConfig:
    """Tokens that are guessed, and checked by one step of the model; answers stay what they are."""

    method: Literal["ngram", "suffix"]
    tokens: Annotated[int, Field(ge=1, le=32)] = 4  # guessed at a time
    lookup_min: Annotated[int, Field(ge=1)] = 2  # ngram: tokens that must have occurred before, at least
    lookup_max: Annotated[int, Field(ge=1)] = 4  # and at most

    @model_validator(mode="after")
    def _lookup_makes_sense(self) -> Self:
        if self.lookup_min > self.lookup_max:
            raise ValueError(f"lookup_min is {self.lookup_min}, over lookup_max, which is {self.lookup_max}")
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class EngineSettings:
    kind: Literal["vllm", "simulated"]
    replicas: int | tuple[int, int] = 1  # fixed, or [min, max]
    device: Literal["auto", "cpu", "gpu"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None  # of an engine on CPU; None: all cores, shared by the replicas
    cores: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # that an engine on CPU keeps to; None: any
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0  # on CPU
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    units_in_flight: Annotated[int, Field(ge=1)] = 4  # units whose rows share one engine
    stop_when_decided: bool = True  # labels: an answer ends with the token after which only one is left
    chunked_prefill: bool | None = None  # a long prompt over several steps; None: as the engine does, which is so
    speculation: SpeculationConfig | None = None  # None: none
    # As long as 99 % of the rows take in their engine, after which one is named; None: none is.
    overdue_times: Annotated[float, Field(ge=1)] | None = 10.0
    max_restarts: Annotated[int, Field(ge=0)] = 10  # of one replica in a job, that no row explains
    max_restarts_per_hour: Annotated[int, Field(ge=0)] = 30  # of one replica, whatever the reason
    simulated: SimulatedFaults = field(default_factory=SimulatedFaults)

    @model_validator(mode="after")
    def _replicas_make_sense(self) -> Self:
        low, high = self.pool
        if not 1 <= low <= high:
            raise ValueError(f"engine.replicas is {self.replicas}: give a number from 1 or [min,max], min <= max")
        if self.cores is not None and (not self.cores or high > 1):
            raise ValueError(
                f"engine.cores is {list(self.cores)}: it needs a core, and one replica; others would share it"
            )
        return self

    @property
    def pool(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas, self.replicas)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SourceConfig:
    uri: Place  # a local path or s3://bucket/prefix; one file or all below it
    include: Globs = ("**",)  # over paths below the uri
    exclude: Globs = ()
    columns: tuple[str, ...] | None = None  # which to carry into the output besides those that the job needs; None: all
    limit: Annotated[int, Field(ge=1)] | None = None  # rows, in shard order
    max_row_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20  # a longer row is a dead letter
    follow_links: bool = False  # of a local folder, also those that lead out of it
    # What tells that a local shard has changed: its size and mtime, or its bytes, all of which each start reads then.
    identity: Literal["stat", "content"] = "stat"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SinkConfig:
    uri: Place
    retain_hours: Annotated[float, Field(ge=0)] = 0.0  # for which replaced files stay


@dataclass(frozen=True, config=STRICT, kw_only=True)
class UnitConfig:
    rows: Annotated[int, Field(ge=1)] = 512
    bytes: Annotated[int, Field(ge=1024)] = 32 * 2**20  # decoded, in memory
    shrink: bool = True  # towards the end of a run that several engines share, so that they end together


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrackingConfig:
    uri: str | None  # None: no MLflow
    experiment: str
    run_name: str | None = None  # None: the job and the run id; set for each run of a --multirun
    multirun: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)] | None = None  # what they share
    every_s: Annotated[float, Field(gt=0)] = 5.0  # between two points of a metric


_NOT_SAID = Decimal(-1)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class OwnHardware:
    """What a device of one's own costs: watts / 1000 x usd_per_kwh + purchase_usd / hours, for an hour."""

    watts: Annotated[Decimal, Field(ge=0)]  # at the socket: the device, its share of the machine and of the cooling
    usd_per_kwh: Annotated[Decimal, Field(ge=0)]
    purchase_usd: Annotated[Decimal, Field(ge=0)]  # the device and its share of the machine
    hours: Annotated[Decimal, Field(gt=0)]  # in use until it is written off

    def usd_per_hour(self) -> Decimal:
        """To the millionth of a dollar."""
        return (self.watts / 1000 * self.usd_per_kwh + self.purchase_usd / self.hours).quantize(Decimal("0.000001"))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DevicePrice:
    """What one device costs for an hour in which it is held, busy or not."""

    usd_per_hour: Annotated[Decimal, Field(ge=0)] = _NOT_SAID  # reckoned where `own` says what it is made of
    source: str
    date: Annotated[str, AfterValidator(_day)]  # of the source, ISO
    own: OwnHardware | None = None

    @model_validator(mode="after")
    def _of_own_hardware(self) -> Self:
        hourly = self.usd_per_hour if self.own is None else self.own.usd_per_hour()
        if self.usd_per_hour not in (_NOT_SAID, hourly):
            raise ValueError(f"a price of {self.source!r} has usd_per_hour and own: give one of them")
        if hourly == _NOT_SAID:
            raise ValueError(f"a price of {self.source!r} has neither usd_per_hour nor own: give one of them")
        object.__setattr__(self, "usd_per_hour", hourly)
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PricingConfig:
    name: str
    devices: dict[str, DevicePrice]  # priced by the first key found in the device's name, case aside; cpu: one machine


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ClusterConfig:
    address: str | None = None  # None: RAY_ADDRESS if set, else a Ray of this machine's own
    num_cpus: Annotated[int, Field(ge=1)] | None = None  # logical CPUs of a local Ray; None: as many as there are
    object_store_gib: Annotated[float, Field(gt=0)] | None = None
    read_tasks: Annotated[int, Field(ge=1)] | None = None  # at most this many shards are read at once
    overlay: str | None = None  # of k8s/overlays, or a folder: what submit makes a RayJob of; None: no Kubernetes


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BudgetConfig:
    """What a run may take. Near a limit no new rows are admitted; what is in the engines is finished and committed."""

    usd: Annotated[Decimal, Field(gt=0)] | None = None  # None: no limit
    finish_by: Annotated[str, AfterValidator(_ending)] | None = None  # 2026-11-25T06:00+01:00, 6h, 1h30m
    scope: Literal["run", "output"] = "run"  # of usd: this run, or it and all earlier runs of this output


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MetricsConfig:
    """Where Prometheus may ask a run at work."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None  # None: nowhere
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"  # whoever reaches it can read all of it


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PromptConfig:
    """How prompts are put together, where the job leaves that open."""

    # given: as job.fields lists them. auto: so that sorted prompts share most, found once for the output. rows: each
    # row has an order of its own, by rules that pipelines.agree has found and tried.
    field_order: Literal["given", "auto", "rows"] = "given"
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.95  # rows: share of the rows tried whose answer was the same


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RunConfig:
    """Everything a run is told."""

    job: JobConfig
    model: ModelConfig
    precision: PrecisionConfig
    batching: BatchingConfig
    engine: EngineSettings
    source: SourceConfig
    sink: SinkConfig
    unit: UnitConfig
    tracking: TrackingConfig
    pricing: PricingConfig
    cluster: ClusterConfig
    alerts: AlertsConfig = field(default_factory=AlertsConfig)  # a config from before there were any has none
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    # Rows with one key are asked once: in a run, or also if the output has an answer from an earlier one.
    dedup: Literal["none", "run", "output"] = "run"
    # By their prompts' beginnings go in the rows of the units in an engine, or all rows of the corpus.
    ordering: Literal["none", "window", "corpus"] = "window"
    publish: Literal["auto", "gate"] = "auto"  # what is committed is shown at once, or once it has passed `gate`
    gate: GateConfig = field(default_factory=GateConfig)
    on_change: Literal["refuse", "reprocess"] = "refuse"
    on_deleted: Literal["remove", "keep"] = "remove"  # what the output has of shards that the corpus has no more
    retry_errors: RetryErrors = False  # ask the dead letters again: all, or those of these types
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    grace_s: Annotated[float, Field(ge=0)] = 60.0  # after a signal, for what is in the engines

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.model.max_model_len is not None and self.job.sampling.max_tokens >= self.model.max_model_len:
            raise ValueError(
                f"job.sampling.max_tokens={self.job.sampling.max_tokens} leaves no room for a prompt in "
                f"model.max_model_len={self.model.max_model_len}, which counts prompt and answer: lower the first"
            )
        if self.ordering == "corpus" and self.dedup == "none":
            raise ValueError(
                "ordering=corpus hands each row its answer by its row key, which dedup=none does not: use dedup=run, "
                "or ordering=window"
            )
        if _inside(self.sink.uri, self.source.uri):
            raise ValueError(
                f"sink.uri={self.sink.uri} lies in source.uri={self.source.uri}, so the next run would read what this "
                "one writes: put the output elsewhere"
            )
        if _inside(self.source.uri, f"{self.sink.uri.rstrip('/')}/data"):
            raise ValueError(
                f"source.uri={self.source.uri} is this very output (sink.uri={self.sink.uri}): choose another sink.uri"
            )
        return self
