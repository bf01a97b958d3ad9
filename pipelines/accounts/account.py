"""Account: what a run costs while it runs, kept where a kill leaves it, and booked when it has ended.

The open account lies beside the output (sink/costs.py) and is renewed with each commit, and every RENEW_S at least: a
killed run is billed up to there. Time that no committed receipt explains is lost, and booked as `failed`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from typing import Any, Protocol

from pipelines import patience, storage
from pipelines.accounts.allowance import Allowance, Busy, Pace
from pipelines.accounts.attribution import NS, Held, Host, Parts, Timeline, Work, attribute, by_day
from pipelines.accounts.cost import CPU, Bill, Tokens, bill, dollars_of
from pipelines.accounts.pool import Standing, most_engines
from pipelines.accounts.summary import Totals
from pipelines.config import DevicePrice, RunConfig, RunFailed
from pipelines.sink.costs import Cost, Costs, closed, keep_open, open_accounts
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

RENEW_S = 5.0  # between two renewals of the open account
LEAVE_S = 10.0  # for the last one, where the table could not be written
_USD = Decimal(1).scaleb(-18)  # the table's last digit
_WORK = ("device_seconds", "prompt_tokens", "cached_tokens", "output_tokens")


class Report(Host, Busy, Protocol):
    """A host's report (actors/host_stats.py)."""

    @property
    def start_seconds(self) -> float: ...  # in which its engines were being started


class Account:
    """Of one run, in the hands of its driver."""

    def __init__(
        self,
        config: RunConfig,
        allowance: Allowance,
        price: DevicePrice,
        *,
        run_id: str,
        sink_uri: str,
        device: str | None,  # its name; None: a machine without GPU
        devices_each: int,  # of an engine
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.price, self._device, self._allowance = price, device, allowance
        self._devices_each, self._pool = devices_each, config.engine.pool
        self._sink_uri, self._run_id = sink_uri, run_id
        self._says = {
            "job": config.job.name,
            "model": config.model.name,
            "device": device or CPU,
            "usd_per_hour": str(price.usd_per_hour),
            "price": config.pricing.name,
            "price_source": price.source,
            "price_date": price.date,
        }
        self._clock_ns, self._wall = clock_ns, wall
        self._timeline = Timeline(engines=config.engine.pool[0], devices_each=devices_each, one_machine=device is None)
        self._pace, self._drain_s = Pace(), 0.0
        self._hosts: Sequence[Report] = ()
        self._work = Work()
        self._held = Held()
        self._looked_ns: int | None = None
        self._slowest_commit_s = 0.0
        self._renewed_at = float("-inf")

    def hold(self) -> None:
        """From now on the devices are held."""
        self._looked_ns = self._clock_ns()
        self._timeline.begin(self._looked_ns)
        self._renew()

    def see(self, hosts: Sequence[Report]) -> None:
        """What the engines' hosts report now."""
        self._hosts, self._looked_ns = hosts, self._clock_ns()
        self._timeline.see(hosts, now_ns=self._looked_ns, day=self._day())
        self._held = self._timeline.held(done=False)
        self._drain_s = self._pace.drain_s(hosts)
        if self._wall() - self._renewed_at >= RENEW_S:
            self._renew()

    def received(self) -> None:
        """Receipts have come."""
        self._timeline.received()

    def committed(self, receipts: Sequence[Receipt], *, took_s: float) -> None:
        """They are committed, which took so long."""
        self._work += Work.of(tuple(getattr(one, name) for name in _WORK) for one in receipts)
        self._slowest_commit_s = max(self._slowest_commit_s, took_s)
        self._renew()

    def give_back(self, *, done: bool) -> None:
        """The devices are held no more. `done`: the dataflow came to its end, and was not cut off."""
        self._timeline.end(self._hosts, now_ns=self._clock_ns(), day=self._day())
        self._held, self._looked_ns = self._timeline.held(done=done), None

    def usd(self) -> Decimal:
        """Spent so far."""
        since_ns = 0 if self._looked_ns is None else self._clock_ns() - self._looked_ns
        return dollars_of(self._held.held_ns + since_ns * self._timeline.needed(), self.price)

    def usd_per_s(self) -> Decimal:
        """What the devices that are held now, or will be first, cost in a second."""
        return dollars_of(self._timeline.needed() * NS, self.price)

    def most_usd_per_s(self) -> Decimal:
        """What a second costs once the pool has grown as far as it may."""
        return dollars_of((1 if self._device is None else self._pool[1] * self._devices_each) * NS, self.price)

    def most_engines(self, rows_left: int | None) -> int:
        """How many engines the run may have now, for its deadline and within its budget."""
        hosts = [host for host in self._hosts if host.phase not in ("starting", "lost")]
        return most_engines(
            Standing(
                engines=len(hosts),
                rows_ended=sum(host.rows_ended for host in hosts),
                busy_engine_s=sum(host.device_seconds for host in hosts) / self._devices_each,
                rows_left=rows_left,
                start_s=max((host.start_seconds for host in hosts), default=0.0),
            ),
            pool=self._pool,
            seconds_left=self._allowance.seconds_to_work(self._wall(), slowest_commit_s=self._slowest_commit_s),
            usd_left=self._allowance.left_usd(self.usd()),
            usd_per_engine_s=dollars_of(self._devices_each * NS if self._device else 0, self.price),
        )

    def engines_at_work(self, steady_s: float | None) -> float | None:
        """How many engines were held on the mean while they answered; on CPU they are one machine. None: none did."""
        if not steady_s:
            return None
        return self._held.devices_at_work(steady_s) / self._devices_each if self._device else 1.0

    def parts(self) -> Parts:
        """What the time went into up to the last look; what is in the engines counts as failed till it is committed."""
        return attribute(self._held, self._work)

    def parts_at_work(self, *, computed_prompt_tokens: int, output_tokens: int) -> Parts:
        """As `parts`, for those who watch: what is in the engines is not lost yet, and counts as these tokens' work."""
        answered_ns = max(self._work.answered_ns, self._held.busy_ns)
        return attribute(
            self._held,
            Work(
                answered_ns=answered_ns,
                computed_prompt_tokens=computed_prompt_tokens,
                output_tokens=output_tokens,
            ),
        )

    def bill(self, totals: Totals) -> Bill:
        """For a run of these totals."""
        return bill(self.parts(), self.price, tokens_of(totals), device_name=self._device)

    def reason_to_stop(self) -> str | None:
        """Why no more rows should be admitted, in words; None: go on."""
        return self._allowance.reason_to_stop(
            now=self._wall(),
            spent_usd=self.usd(),
            usd_per_s=self.usd_per_s(),
            drain_s=self._drain_s,
            slowest_commit_s=self._slowest_commit_s,
        )

    def grace_left_s(self) -> float:
        """How long what is in flight may take at most."""
        return self._allowance.grace_left_s(now=self._wall(), slowest_commit_s=self._slowest_commit_s)

    @contextmanager
    def booked(self, costs: Costs) -> Iterator[None]:
        """Book it when this is left, in whichever way."""
        try:
            yield
        except storage.StoreFailed:
            raise  # it would be waited for once more, in vain: the next start books what was kept last
        except BaseException:
            self.book(costs)
            raise
        self.book(costs)

    def book(self, costs: Costs) -> None:
        """Into the table with it. What fails here is left to the next start, and is no failure of the run."""
        account = self._open()
        try:
            costs.book(due(self._run_id, account, self._work, costs.booked(self._run_id), at=self._wall()))
            closed(self._sink_uri, self._run_id)
        except RunFailed as error:  # the store is away, or another run has begun
            log.warning("the costs of run %s are left to the next run to book: %s", self._run_id, error)
            with suppress(RunFailed), patience.at_most(LEAVE_S):
                keep_open(self._sink_uri, self._run_id, account)

    def _open(self) -> dict[str, Any]:
        return {"version": 1, **self._says, "held": self._held.to_json()}

    def _renew(self) -> None:
        keep_open(self._sink_uri, self._run_id, self._open())
        self._renewed_at = self._wall()

    def _day(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).date().isoformat()


def book_left(costs: Costs, ledger: Ledger, sink_uri: str, *, at: float) -> None:
    """Book what killed runs have left. The units that this start took over must be in the ledger by now.

    Raises:
        RunFailed: the store stayed away, or another run has begun since.
    """
    for run, account in open_accounts(sink_uri):
        try:
            rows = due(run, account, work_of(ledger, run), costs.booked(run), at=at)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("the account of run %s is not understood (%s), and left alone", run, type(error).__name__)
            continue
        costs.book(rows)
        closed(sink_uri, run)


def left_open(sink_uri: str) -> Decimal:
    """What the accounts that killed runs left will add to what is booked; those of runs at work included."""
    usd = Decimal(0)
    for _, account in open_accounts(sink_uri):
        with suppress(KeyError, TypeError, ValueError):  # one that is not understood is booked by nobody either
            usd += dollars_of(Held.from_json(account["held"]).held_ns, _price_in(account))
    return usd


def due(
    run: str, account: Mapping[str, Any], work: Work, booked: Mapping[tuple[date, str], int], *, at: float
) -> list[Cost]:
    """The rows that the table lacks of a run, whose account and committed work are these."""
    held = Held.from_json(account["held"])
    price = _price_in(account)
    wanted = {(date.fromisoformat(day), part): ns for day, part, ns in by_day(held, attribute(held, work)) if ns}
    rows = []
    for key in sorted({*wanted, *booked}):
        ns = wanted.get(key, 0) - booked.get(key, 0)
        if ns:
            with localcontext(prec=60):
                usd = dollars_of(ns, price).quantize(_USD)
            rows.append(
                Cost(
                    run=run,
                    job=account["job"],
                    model=account["model"],
                    day=key[0],
                    part=key[1],
                    device=account["device"],
                    device_ns=ns,
                    usd=usd,
                    usd_per_hour=price.usd_per_hour,
                    price=account["price"],
                    price_source=price.source,
                    price_date=price.date,
                    booked_at=at,
                )
            )
    return rows


def _price_in(account: Mapping[str, Any]) -> DevicePrice:
    return DevicePrice(
        usd_per_hour=Decimal(account["usd_per_hour"]), source=account["price_source"], date=account["price_date"]
    )


def work_of(ledger: Ledger, run: str) -> Work:
    """What the ledger says that a run has done; a receipt that stands there twice counts once."""
    return Work.of(tuple(getattr(one, name) for name in _WORK) for one in ledger.of_run(run))


def tokens_of(totals: Totals) -> Tokens:
    """The tokens of these totals, for a bill."""
    return Tokens(
        prompt=totals.prompt_tokens,
        cached=totals.cached_tokens,
        output=totals.output_tokens,
        saved_prompt=totals.saved_prompt_tokens,
        saved_output=totals.saved_output_tokens,
        rows_carried=totals.rows_carried,
        rows_shared=totals.rows_shared,
    )
