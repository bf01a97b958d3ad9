"""Metrics: a run at work for Prometheus, by HTTP at metrics.port, if one is set; on the loopback address unless said.

Each scrape is one snapshot (snapshot.py). What is not known or not measured has no sample: it is absent, and not zero.
docs/live.md lists the names; k8s/components/monitoring/grafana.json draws them, and a test compares the two.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipelines.accounts.live import Live
from pipelines.accounts.snapshot import EngineNow, Snapshot
from pipelines.config import MetricsConfig, UserError

_RUN: Mapping[str, tuple[str, Callable[[Snapshot], object]]] = {
    "pipelines_elapsed_seconds": ("Since the command was given", lambda now: now.elapsed_s),
    "pipelines_rows_done": ("Rows committed, or ended in an engine that is there", lambda now: now.rows_done),
    "pipelines_rows_in_flight": ("Rows in engines", lambda now: now.rows_in_flight),
    "pipelines_rows_per_second": ("Rows done, in the last minute", lambda now: now.rows_per_s),
    "pipelines_tokens_per_second": ("Prompt and output tokens, in the last minute", lambda now: now.tokens_per_s),
    "pipelines_eta_seconds": ("Until the last row; estimated", lambda now: now.eta_s),
    "pipelines_cost_usd": ("Of the devices held so far", lambda now: now.usd),
    "pipelines_cost_usd_per_second": ("Of the devices held now", lambda now: now.usd_per_s),
    "pipelines_cost_usd_expected": ("At the end of the run; estimated", lambda now: now.usd_total),
    "pipelines_budget_usd": ("budget.usd", lambda now: now.budget_usd),
    "pipelines_budget_spent_usd": ("Of the budget", lambda now: now.budget_spent_usd),
    "pipelines_deadline_timestamp_seconds": ("budget.finish_by", lambda now: now.finish_at),
}
_ENGINE: Mapping[str, tuple[str, Callable[[EngineNow], object]]] = {
    "pipelines_engine_rows_running": ("Rows that it computes", lambda engine: engine.running),
    "pipelines_engine_rows_waiting": ("Rows that wait for it", lambda engine: engine.waiting),
    "pipelines_engine_kv_usage_ratio": ("Of its KV cache, 0 to 1", lambda engine: engine.kv_usage),
    "pipelines_engine_cache_hit_ratio": (
        "Of its prompt tokens, those that were cached, 0 to 1",
        lambda engine: engine.cache_hit_share,
    ),
    "pipelines_engine_restarts": ("Of the engine in this place", lambda engine: engine.restarts),
}


class Exported:
    """A registry's collector: what the run is at the moment of a scrape."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        return list(families(self._live.snapshot()))


def families(now: Snapshot) -> Iterator[Metric]:
    """All metrics; those without a sample too, so that their names can be asked for."""
    run = {"run": now.run}
    # Not `job`: Prometheus gives that name to the scrape.
    info = GaugeMetricFamily("pipelines_run_info", "1; what the run is", labels=["run", "job_name", "model", "state"])
    info.add_metric([now.run, now.job, now.model, now.state], 1)
    yield info
    for name, (text, value) in _RUN.items():
        yield _gauge(name, text, [(run, value(now))])
    yield _gauge(
        "pipelines_rows_expected",
        "Rows to do in this run",
        [({**run, "estimated": str(now.rows_total_estimated).lower()}, now.rows_total)],
    )
    outcomes = {"ok": now.rows_ok, "error": now.rows_error}
    yield _counter("pipelines_rows", "Rows committed", run, "outcome", outcomes)
    tokens = {"prompt": now.prompt_tokens, "cached": now.cached_tokens, "output": now.output_tokens}
    yield _counter("pipelines_tokens", "Of rows that are done; cached ones are prompt ones too", run, "kind", tokens)
    yield _counter("pipelines_errors", "Dead letters", run, "type", now.errors_by_type)
    parts = [({**run, "part": part}, seconds) for part, seconds in now.device_s.items()]
    yield _gauge("pipelines_device_seconds", "Held so far, by what they went into (docs/cost.md)", parts)
    phases: dict[str, int] = {}
    for engine in now.engines:
        phases[engine.phase] = phases.get(engine.phase, 0) + 1
    yield _gauge("pipelines_engines", "By phase", [({**run, "phase": phase}, n) for phase, n in phases.items()])
    for name, (text, of) in _ENGINE.items():
        yield _gauge(name, text, [({**run, "engine": engine.name}, of(engine)) for engine in now.engines])


@contextmanager
def served(live: Live, config: MetricsConfig) -> Iterator[None]:
    """While inside, Prometheus can ask, if there is a port.

    Raises:
        UserError: nobody can listen there.
    """
    if config.port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(Exported(live))
    try:
        server, thread = start_http_server(config.port, addr=config.host, registry=registry)
    except OSError as error:
        where = f"metrics.port={config.port} on metrics.host={config.host}"
        raise UserError(f"{where}: {error.strerror or error}; choose another, or metrics.port=null") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], object]]) -> GaugeMetricFamily:
    known = [(labels, float(str(value))) for labels, value in samples if value is not None]
    names = list(known[0][0]) if known else []
    family = GaugeMetricFamily(name, text, labels=names)
    for labels, value in known:
        family.add_metric(list(labels.values()), value)
    return family


def _counter(
    name: str, text: str, run: Mapping[str, str], label: str, counts: Mapping[str, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[*run, label])
    for kind, number in counts.items():
        family.add_metric([*run.values(), kind], number)
    return family
