"""Live: what a run learns of itself while it works, kept for whoever shows it (snapshot.py).

A row counts as done when it is committed, or ended in an engine that is there: of the two counts the greater, since an
engine knows nothing of rows that needed none, and a receipt nothing of rows whose unit is not written yet.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Protocol

from actors.engine import EngineConfig, EngineLoad
from actors.overdue import Overdue
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.bottleneck import bottleneck
from pipelines.accounts.overdue import longest
from pipelines.accounts.rates import WINDOW_S, Rates
from pipelines.accounts.snapshot import EngineNow, Snapshot, State
from pipelines.accounts.starvation import Waits
from pipelines.accounts.summary import Totals
from pipelines.config import Exit, exit_of

MOST_ENGINES = 500  # are told one by one


class HostReport(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def replica(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def rows_in_flight(self) -> int: ...
    @property
    def rows_waiting(self) -> int: ...
    @property
    def rows_ended(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def load(self) -> EngineLoad | None: ...
    @property
    def overdue(self) -> tuple[Overdue, ...]: ...


class Purse(Protocol):
    """What is asked of the run's account (account.py)."""

    def usd(self) -> Decimal: ...
    def usd_per_s(self) -> Decimal: ...
    def parts_at_work(self, *, computed_prompt_tokens: int, output_tokens: int) -> Parts: ...


class Limit(Protocol):
    """What is asked of the run's allowance (allowance.py)."""

    @property
    def usd(self) -> Decimal | None: ...
    @property
    def spent_before_usd(self) -> Decimal: ...
    @property
    def finish_at(self) -> float | None: ...


class Live:
    """Of one run. Told by the driver's thread, asked by any; no call waits for anything."""

    def __init__(
        self,
        *,
        run: str = "",
        job: str = "",
        model: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._job, self._model = run, job, model
        self._clock, self._wall = clock, wall
        self._began = clock()
        self._lock = threading.Lock()
        self._doing = "starting"
        self._state: State = "running"
        self._exit_code: Exit | None = None
        self._steady_since: float | None = None
        self._rows_total: tuple[int, bool] | None = None
        self._totals = Totals()
        self._hosts: Sequence[HostReport] = ()
        self._tokens: dict[str, tuple[int, int, int]] = {}  # prompt, cached, output, by replica; gone ones included
        self._rows, self._token_rates = Rates(), Rates()
        self._done = self._done_ever = 0  # the second: a row that is done again counts again, as it takes time again
        self._purse: Purse | None = None
        self._limit: Limit | None = None
        self._engine: EngineConfig | None = None
        self._parts: deque[tuple[float, Parts, Waits | None]] = deque()  # of the last minute

    def doing(self, what: str) -> None:
        """What the run does now, in words; nothing while it answers rows."""
        self._doing = what

    def expect(self, rows: int, *, estimated: bool) -> None:
        """So many rows are to do."""
        self._rows_total = rows, estimated

    def pays(self, purse: Purse, limit: Limit, engine: EngineConfig) -> None:
        """From now on, ask this what the run costs. `engine`: for what may be changed about a bottleneck."""
        self._purse, self._limit, self._engine = purse, limit, engine

    def started(self) -> None:
        """Engines answer: rates count from now."""
        self._steady_since = self._clock()
        self._doing = ""

    def see(self, totals: Totals, hosts: Sequence[HostReport] = (), waits: Waits | None = None) -> None:
        """This run's sums so far, what its engines' hosts report, and what these waited for (starvation.py)."""
        now = self._clock()
        with self._lock:
            self._totals, self._hosts = totals, hosts
            for host in hosts:
                self._tokens[host.replica] = host.prompt_tokens, host.cached_tokens, host.output_tokens
            done = max(totals.rows_in, sum(host.rows_ended for host in hosts))
            self._done_ever += max(0, done - self._done)
            self._done = done
            prompt, cached, output = self._sums()
            if self._steady_since is not None:
                self._rows.add(now, self._done_ever)
                self._token_rates.add(now, prompt + output)
            if self._purse is not None and hosts:
                parts = self._purse.parts_at_work(computed_prompt_tokens=prompt - cached, output_tokens=output)
                while len(self._parts) > 1 and now - self._parts[1][0] >= WINDOW_S:
                    self._parts.popleft()
                self._parts.append((now, parts, waits))

    def finish(self, exit_code: Exit) -> None:
        """The run has come to its end."""
        self._exit_code = exit_code

    def over(self, error: BaseException | None) -> None:
        """Nothing more will be told. `error`: what ended the run before its end."""
        if isinstance(error, KeyboardInterrupt):
            self._exit_code = self._exit_code or Exit.STOPPED
        elif error is not None:
            self._exit_code = exit_of(error)
        self._state = "failed" if self._exit_code in (Exit.FAILED, Exit.USAGE) else "ended"
        self._doing = ""

    def snapshot(self) -> Snapshot:
        """The run at this moment."""
        now = self._clock()
        with self._lock:
            totals, hosts = self._totals, self._hosts
            prompt, cached, output = self._sums()
            rows_total, estimated = self._rows_total or (None, False)
            purse, limit = self._purse, self._limit
            usd = None if purse is None else purse.usd()
            parts = self._parts[-1][1] if self._parts else Parts()
            return Snapshot(
                run=self._run,
                job=self._job,
                model=self._model,
                state=self._state,
                exit_code=None if self._exit_code is None else int(self._exit_code),
                doing=self._doing,
                at=self._wall(),
                elapsed_s=now - self._began,
                steady_s=None if self._steady_since is None else now - self._steady_since,
                **{name: getattr(totals, name) for name in _OF_TOTALS},
                rows_done=self._done,
                rows_total=rows_total,
                rows_total_estimated=estimated,
                rows_in_flight=sum(host.rows_in_flight for host in hosts) if hosts else None,
                prompt_tokens=prompt,
                cached_tokens=cached,
                output_tokens=output,
                rows_per_s=self._rows.now(),
                tokens_per_s=self._token_rates.now(),
                rows_history=self._rows.history(),
                tokens_history=self._token_rates.history(),
                history_s=self._rows.bucket_s,
                eta_s=self._eta_s(rows_total),
                usd=usd,
                usd_per_s=None if purse is None or self._state != "running" else purse.usd_per_s(),
                budget_usd=None if limit is None else limit.usd,
                budget_spent_usd=None if limit is None or usd is None else limit.spent_before_usd + usd,
                finish_at=None if limit is None else limit.finish_at,
                device_s={name: ns / NS for name, ns in parts.known()} if self._parts else {},
                held_back=self._held_back(),
                overdue=longest(hosts),
                engines=tuple(sorted(map(_engine, hosts), key=_worst_first))[:MOST_ENGINES],
                engines_total=len(hosts),
            )

    def _sums(self) -> tuple[int, int, int]:
        """Tokens of rows that are done, by the engines or by receipts, whichever know of more."""
        prompt, cached, output = (sum(each[place] for each in self._tokens.values()) for place in range(3))
        totals = self._totals
        if totals.prompt_tokens + totals.output_tokens > prompt + output:
            return totals.prompt_tokens, totals.cached_tokens, totals.output_tokens
        return prompt, cached, output

    def _eta_s(self, rows_total: int | None) -> float | None:
        rate = self._rows.lately()
        if rows_total is None or not rate or self._done >= rows_total or self._state != "running":
            return None  # all are done, or more came than was told, and then nothing is known
        return (rows_total - self._done) / rate

    def _held_back(self) -> str | None:
        """What most of the devices' time of the last minute went into."""
        if self._engine is None or len(self._parts) < 2:
            return None
        (_, before, waited), (_, now, waits) = self._parts[0], self._parts[-1]
        spent = {name: max(0, ns - (getattr(before, name) or 0)) for name, ns in now.known()}
        starved = None if waits is None or waited is None else waits.since(waited).found()
        found = bottleneck(Parts(**spent), None, self._engine, starved=starved)
        return None if found is None else found.sentence


_OF_TOTALS = ("units", "rows_in", "rows_ok", "rows_error", "errors_by_type")


def _engine(host: HostReport) -> EngineNow:
    load = host.load
    return EngineNow(
        name=host.replica,
        phase=host.phase,
        running=host.rows_in_flight if load is None else load.running,
        waiting=host.rows_waiting + (0 if load is None else load.waiting),
        kv_usage=None if load is None or load.kv_usage is None else min(1.0, max(0.0, load.kv_usage)),
        cache_hit_share=min(1.0, host.cached_tokens / host.prompt_tokens) if host.prompt_tokens else None,
        restarts=host.restarts,
        rows_ended=host.rows_ended,
    )


def _worst_first(engine: EngineNow) -> tuple[bool, int, str]:
    """Engines that do not serve, then those that were started again most often: where there is no room for all."""
    return engine.phase == "serving", -engine.restarts, engine.name
