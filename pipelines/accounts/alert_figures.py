"""The figures that alerts look at, from what a run tells of itself: one value for each metric, or none.

Times are monotonic seconds, given by the caller.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from actors.gpu_monitor import GpuUsage
from pipelines.accounts.alert_rules import Value
from pipelines.accounts.summary import Summary, Totals

_WINDOW_S = 60.0
_LEAST_TOKENS = 1000  # before so many are committed, dollars per million tokens say nothing
_MILLION = 1_000_000
_AT_WORK_ALONE = (
    "seconds_without_engine", "seconds_since_row", "rows_per_s", "busy_share", "gpu_utilization", "restarts",
    "usd_per_hour",
)  # fmt: skip
_SERVING = ("serving", "draining")


class HostReport(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def replica(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def time(self) -> float: ...  # of the report, by the host's clock
    @property
    def rows_ended(self) -> int: ...
    @property
    def device_seconds(self) -> float: ...  # busy time, times devices
    @property
    def restarts(self) -> int: ...


class Figures:
    """Of one run. `see` what it tells, then ask what the metrics are `at` a moment."""

    def __init__(self) -> None:
        self._known: dict[str, Value] = {}
        self._no_engine_since: float | None = None  # None: one serves, or none is wanted
        self._row_at: float | None = None  # since when no row has ended; None: none is expected
        self._rows: dict[str, int] = {}  # ended, by replica
        self._committed: deque[tuple[float, int]] = deque()  # when, rows
        self._busy: dict[str, deque[tuple[float, float]]] = {}  # by replica: its time, device-seconds
        self._restarts: dict[str, int] = {}  # by replica, of those that are
        self._restarts_before = 0  # of those that are gone; going is one as well

    def begin(self, now: float) -> None:
        """The run has its output, and will have engines."""
        self._no_engine_since = now

    def see(
        self,
        totals: Totals,
        hosts: Sequence[HostReport],
        *,
        usd: Decimal,
        usd_per_s: Decimal,
        budget_share: Decimal | None,
        devices_each: int,
        gpus: Sequence[GpuUsage],
        now: float,
    ) -> None:
        """What the run tells of itself now. `devices_each`: of an engine."""
        tokens = totals.prompt_tokens + totals.output_tokens
        measured = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
        self._known = {
            "usd": usd,
            "usd_per_hour": usd_per_s * 3600,
            "usd_per_million_tokens": usd * _MILLION / tokens if tokens >= _LEAST_TOKENS else None,
            "budget_share": budget_share,
            "error_rate": totals.error_rate,
            "cache_hit_share": totals.cache_hit_share,
            "accuracy": totals.accuracy,
            "gpu_utilization": sum(measured) / len(measured) if measured else None,
            "rows_per_s": self._rate(totals.rows_in, now),
            "busy_share": self._busy_share(hosts, devices_each),
            "restarts": self._restarts_of(hosts),
        }
        self._look_for_rows(hosts, now)
        if any(host.phase in _SERVING for host in hosts):
            self._no_engine_since = None
        elif self._no_engine_since is None:
            self._no_engine_since = now

    def rest(self) -> None:
        """The engines' work is over: what only a run at work has is not measured any more."""
        self._row_at = self._no_engine_since = None
        self._known = {name: value for name, value in self._known.items() if name not in _AT_WORK_ALONE}

    def at(self, now: float) -> Mapping[str, Value]:
        """The metrics."""
        since = {"seconds_without_engine": self._no_engine_since, "seconds_since_row": self._row_at}
        return {**self._known, **{name: now - at for name, at in since.items() if at is not None}}

    def _rate(self, rows: int, now: float) -> float | None:
        while len(self._committed) > 1 and now - self._committed[1][0] >= _WINDOW_S:
            self._committed.popleft()
        self._committed.append((now, rows))
        since, before = self._committed[0]
        return (rows - before) / (now - since) if now - since >= _WINDOW_S else None

    def _busy_share(self, hosts: Sequence[HostReport], devices_each: int) -> float | None:
        shares = []
        for host in hosts:
            if host.phase in ("starting", "lost"):
                continue
            seen = self._busy.setdefault(host.replica, deque())
            while len(seen) > 1 and host.time - seen[1][0] >= _WINDOW_S:
                seen.popleft()
            if not seen or host.time > seen[-1][0]:
                seen.append((host.time, host.device_seconds))
            since, before = seen[0]
            if host.time - since >= _WINDOW_S:
                shares.append((host.device_seconds - before) / (host.time - since) / devices_each)
        return sum(shares) / len(shares) if shares else None

    def _restarts_of(self, hosts: Sequence[HostReport]) -> int:
        now = {host.replica: host.restarts for host in hosts}
        gone = self._restarts.keys() - now.keys()  # replaced by another process, or let go by a pool that shrinks
        self._restarts_before += sum(self._restarts[replica] for replica in gone)
        self._restarts_before += min(len(gone), len(now.keys() - self._restarts.keys()))
        self._restarts = now
        return self._restarts_before + sum(now.values())

    def _look_for_rows(self, hosts: Sequence[HostReport], now: float) -> None:
        ended = {host.replica: host.rows_ended for host in hosts}
        more = any(rows > self._rows.get(replica, 0) for replica, rows in ended.items())
        serving = any(host.phase != "starting" for host in hosts)
        if more or (serving and self._row_at is None):
            self._row_at = now
        self._rows = ended


def at_the_end(seen: Mapping[str, Value], summary: Summary | None, *, exit_code: int) -> dict[str, Value]:
    """The metrics of a run that has ended; without a summary (it failed) by what was seen last."""
    known = {name: value for name, value in seen.items() if name not in _AT_WORK_ALONE}
    if summary is not None:
        totals = summary.totals
        known |= {name: getattr(totals, name) for name in ("error_rate", "cache_hit_share", "accuracy")}
        known |= {} if summary.quality is None else summary.quality.figures()
        if summary.gate is not None:
            known["gate_blocked"] = int(not summary.gate.passed)
        if summary.bill is not None:
            known |= {"usd": summary.bill.usd, "usd_per_million_tokens": summary.bill.usd_per_million_total}
    return {**known, "exit_code": exit_code}
