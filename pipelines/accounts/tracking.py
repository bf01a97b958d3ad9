"""MLflow: a run's parameters, its metrics over time and at the end, its config and summary.

The run never waits for MLflow and never fails by it: see delivery.py, which bounds what leaving `track` may take.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

from actors.gpu_monitor import GpuUsage
from pipelines.accounts.attribution import NS
from pipelines.accounts.delivery import Delivery, Send, Tracked, end
from pipelines.accounts.manifest import inputs_sha256
from pipelines.accounts.summary import Summary, Totals, without_secrets
from pipelines.accounts.system_metrics import SystemMetrics
from pipelines.config import Exit, RunConfig
from pipelines.redact import redacted

_RATE_WINDOW_S = 60.0  # a unit's rows arrive at once, so a shorter window would show only spikes
_PARAM_CHARS = 500  # the whole config is an artifact
_NO_PARAMS = ("pricing.devices", "tracking.multirun")  # the price table; a name that is a tag
_DIGEST_CHARS = 32  # MLflow takes 36
_PARAMS_AT_ONCE = 100  # MLflow's own limit


class Tracker:
    """What a run tells MLflow. No call waits for anything."""

    def __init__(self, delivery: Delivery | None, every_s: float) -> None:
        self._delivery = delivery
        self._every_s = every_s
        self._last_s = -every_s
        self._window: deque[tuple[float, int, int]] = deque()  # monotonic, rows, tokens
        self._rows = 0
        self._system = SystemMetrics()
        self.status = "FAILED"  # unless `finish` says otherwise
        self.tracked: Tracked | None = None  # None: tracking is off, or the run has not ended

    def see(
        self,
        totals: Totals,
        *,
        rows_in_flight: int | None = None,
        usd: Decimal | None = None,
        gpus: Sequence[GpuUsage] = (),
    ) -> None:
        """Where the run stands; call it as often as you like, a point is logged each `tracking.every_s`.

        MLflow hears of the run with the first of them, or at the end.
        """
        now_s = time.monotonic()
        if self._delivery is None or now_s - self._last_s < self._every_s:
            return
        self._last_s = now_s
        self._delivery.begin()
        tokens = totals.prompt_tokens + totals.output_tokens
        while self._window and now_s - self._window[0][0] > _RATE_WINDOW_S:
            self._window.popleft()
        rates: dict[str, float | None] = {}
        if self._window:
            since_s, rows_then, tokens_then = self._window[0]
            rates["rows_per_s"] = (totals.rows_in - rows_then) / (now_s - since_s)
            rates["tokens_per_s"] = (tokens - tokens_then) / (now_s - since_s)
        self._window.append((now_s, totals.rows_in, tokens))
        self._rows = totals.rows_in
        money = {} if usd is None else {"usd": float(usd)}
        self._log({**_counts(totals), **rates, **money, **_of_gpus(gpus), "rows_in_flight": rows_in_flight})
        self._log_system()

    def finish(self, summary: Summary) -> None:
        """The figures of the end and the summary itself."""
        self.status = {Exit.DONE: "FINISHED", Exit.STOPPED: "KILLED"}.get(summary.exit_code, "FAILED")
        self._rows = summary.totals.rows_in
        metrics: dict[str, float | Decimal | None] = {**_counts(summary.totals), **_of_gpus(summary.gpus)}
        for name in ("startup_s", "engine_start_s", "first_commit_s", "steady_s", "rows_per_s", "tokens_per_s"):
            metrics[name] = getattr(summary, name)
        if summary.bill is not None:
            metrics["usd"] = summary.bill.usd
            metrics["device_seconds"] = summary.bill.device_seconds
            for part in ("input", "output", "total"):
                metrics[f"usd_per_million_{part}"] = getattr(summary.bill, f"usd_per_million_{part}")
                metrics[f"useful_usd_per_million_{part}"] = getattr(summary.bill, f"useful_usd_per_million_{part}")
            for part, ns in summary.bill.parts.known():
                metrics[f"cost/{part}_usd"] = summary.bill.usd_of(ns)
                metrics[f"cost/{part}_seconds"] = Decimal(ns) / NS
            for by in ("cache", "dedup", "carry"):
                metrics[f"saved_by_{by}_usd"] = getattr(summary.bill, f"saved_by_{by}_usd")
        if summary.quality is not None:
            metrics |= {f"quality/{name}": value for name, value in summary.quality.figures().items()}
            self.artifact("quality.json", summary.quality.to_json())
        self._log(metrics)
        self._tag({"exit_code": str(int(summary.exit_code)), "stopped_by": summary.stopped_by, "error": summary.error})
        self.artifact("summary.json", json.dumps(without_secrets(summary.to_dict()), indent=2))

    def artifact(self, name: str, text: str) -> None:
        """A small file beside the run."""
        if self._delivery is not None:
            clean = redacted(text)
            self._delivery.add(name, lambda client, run: client.log_text(run, clean, name))

    def dataset(self, source_uri: str, inputs: Mapping[str, str]) -> None:
        """The corpus: each shard's identity, by its path."""
        if self._delivery is None:
            return
        digest = inputs_sha256(inputs.items())[:_DIGEST_CHARS]
        source, profile = json.dumps({"uri": redacted(source_uri)}), json.dumps({"shards": len(inputs)})
        name, kind = redacted(source_uri)[:_PARAM_CHARS], "s3" if source_uri.startswith("s3://") else "local"

        def send(client: Any, run: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            corpus = Dataset(name=name, digest=digest, source_type=kind, source=source, profile=profile)
            client.log_inputs(run, [DatasetInput(corpus, [InputTag("mlflow.data.context", "inference")])])

        self._delivery.add("the dataset", send)

    def _log_system(self) -> None:
        """A point of the driver's machine, taken when its turn has come, and once however often it is sent."""
        if self._delivery is None:
            return
        taken: list[Any] = []
        step = self._rows

        def send(client: Any, run: str) -> None:
            from mlflow.entities import Metric

            if not taken:
                at_ms = int(time.time() * 1000)
                taken.extend(Metric(name, value, at_ms, step) for name, value in self._system.sample().items())
            if taken:
                client.log_batch(run, metrics=taken)

        self._delivery.add("metrics", send)

    def _tag(self, values: Mapping[str, str | None]) -> None:
        if self._delivery is None:
            return
        known = {f"pipelines.{name}": _short(redacted(value)) for name, value in values.items() if value is not None}

        def send(client: Any, run: str) -> None:
            for name, value in known.items():
                client.set_tag(run, name, value)

        self._delivery.add("tags", send)

    def _log(self, metrics: Mapping[str, float | Decimal | None]) -> None:
        if self._delivery is None:
            return
        at_ms, step = int(time.time() * 1000), self._rows
        known = {name: float(value) for name, value in metrics.items() if value is not None}

        def send(client: Any, run: str) -> None:
            from mlflow.entities import Metric

            client.log_batch(run, metrics=[Metric(name, value, at_ms, step) for name, value in known.items()])

        self._delivery.add("metrics", send)


@contextmanager
def track(
    config: RunConfig,
    *,
    run_id: str,
    fingerprint: str,
    parts: Mapping[str, str],
    config_yaml: str,
    inputs: Mapping[str, str] | None = None,
    resumed_from: str | None = None,
) -> Iterator[Tracker]:
    """Tell MLflow of a run; off where `tracking.uri` is null. `parts` are what the fingerprint is made of, by name.

    `inputs`: the identity of each shard of the corpus, by its path; `resumed_from`: the earlier run of this output and
    fingerprint that this one goes on from.
    """
    uri = config.tracking.uri
    if uri is None:
        yield Tracker(None, config.tracking.every_s)
        return
    tags = {
        "mlflow.source.name": "pipelines.run",
        "mlflow.source.type": "JOB",
        "pipelines.run_id": run_id,
        "pipelines.job": config.job.name,
        "pipelines.model": config.model.name,
        "pipelines.fingerprint": fingerprint,
        "pipelines.sink": config.sink.uri,
        **({"pipelines.resumed_from": resumed_from} if resumed_from else {}),
        **({"pipelines.multirun": config.tracking.multirun} if config.tracking.multirun else {}),
    }
    delivery = Delivery(
        uri,
        experiment=redacted(config.tracking.experiment),
        name=config.tracking.run_name or f"{config.job.name} {run_id}",
        tags={key: redacted(value) for key, value in tags.items()},
        multirun=config.tracking.multirun,
    )
    tracker = Tracker(delivery, config.tracking.every_s)
    delivery.add("params", _params({**flat(config), "fingerprint": fingerprint, **_prefixed("fingerprint.", parts)}))
    tracker.artifact("config.yaml", config_yaml)
    if inputs is not None:
        tracker.dataset(config.source.uri, inputs)
    try:
        yield tracker
    except KeyboardInterrupt:  # a second Ctrl-C, or the end of the grace: exit 4, as other stops
        tracker.status = "KILLED"
        raise
    finally:
        status = tracker.status
        delivery.add("the run's end", lambda client, run: end(client, run, status))
        tracker.tracked = delivery.close()


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """A config's values by dotted key, redacted and short enough for a parameter; without those of _NO_PARAMS."""
    values: dict[str, str] = {}
    for each in fields(config):
        key, value = f"{prefix}{each.name}", getattr(config, each.name)
        if is_dataclass(value):
            values |= flat(value, f"{key}.")
        elif key not in _NO_PARAMS:
            text = value if isinstance(value, str) else json.dumps(value, default=_plain, sort_keys=True)
            values[key] = _short(redacted(text))
    return values


def _plain(value: Any) -> Any:
    return {each.name: getattr(value, each.name) for each in fields(value)} if is_dataclass(value) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _PARAM_CHARS else f"{text[: _PARAM_CHARS - 1]}…"


def _prefixed(prefix: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}{name}": _short(redacted(value)) for name, value in parts.items()}


def _params(values: Mapping[str, str]) -> Send:
    def send(client: Any, run: str) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            client.log_batch(run, params=params[start : start + _PARAMS_AT_ONCE])

    return send


def _counts(totals: Totals) -> dict[str, float | Decimal | None]:
    rows = ("units", "rows_in", "rows_ok", "rows_error", "rows_carried", "rows_shared")
    tokens = ("prompt_tokens", "cached_tokens", "output_tokens", "saved_prompt_tokens", "saved_output_tokens")
    return {
        **{name: getattr(totals, name) for name in (*rows, *tokens)},
        "cache_hit_share": totals.cache_hit_share,
        "error_rate": totals.error_rate,
        "accuracy": totals.accuracy,
    }


def _of_gpus(gpus: Sequence[GpuUsage]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for gpu in gpus:
        metrics[f"gpu/{gpu.node}/{gpu.index}/utilization"] = gpu.utilization
        metrics[f"gpu/{gpu.node}/{gpu.index}/memory_bytes"] = gpu.memory_bytes
    measured = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    return {**metrics, "gpu_utilization": sum(measured) / len(measured)} if measured else metrics
