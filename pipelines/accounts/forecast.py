"""Forecast: hours and dollars that some rows will take, with an interval, from earlier runs or from the limits.

How. The rows' tokens make a load: the sequential limit of their work (`limits.py`) in seconds of one replica, or, where
model or device are not in its tables, the computed tokens. Earlier runs of the same fingerprint on the same device say
how many device-seconds such a load took; where there are none, an assumed share of the limit is reached. Wide where
little is known: with fewer than three runs of earlier experience, their spread is taken as no less than 10 %.
Independent uncertainties are added in squares, on the scale of logarithms (error propagation of a product).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean, stdev
from typing import Literal, Self

from pipelines.accounts.cost import dollars
from pipelines.accounts.run_summary import RunSummary
from pipelines.config import DevicePrice

# Shares of the sequential limit that engines reach: 0.22 to 0.38 of the compute bound in NanoFlow's table (arXiv
# 2408.12757, engines of 2024), 0.34 for MLPerf v5.1 on H100 with assumed lengths, 0.87 of the practical bound for the
# best (BlendServe, arXiv 2411.16102). Taken: a fifth to two thirds, and their geometric mean.
ASSUMED_EFFICIENCY = (0.2, 0.66)
LEAST_SPREAD = 0.10  # of one or two runs: what another hour, host or corpus part may do
START_SPREAD = 0.25  # likewise, of what a run is held for besides its work: files may be in memory, or not
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student, two-sided 95 %

Basis = Literal["a probe", "earlier runs", "limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """A figure that is not known exactly: it lies between, with about 95 % where a sample tells, else as assumed."""

    low: float
    middle: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        return cls(low=value, middle=value, high=value)

    @classmethod
    def within(cls, middle: float, factor: float) -> Self:
        """A figure that may be so many times as large or as small."""
        return cls(low=middle / factor, middle=middle, high=middle * factor)

    def times(self, other: "Between | float") -> "Between":
        """The product of two that are independent."""
        if not isinstance(other, Between):
            return Between(low=self.low * other, middle=self.middle * other, high=self.high * other)
        middle = self.middle * other.middle
        if middle <= 0 or min(self.low, other.low) <= 0:
            return Between(low=self.low * other.low, middle=middle, high=self.high * other.high)
        down = math.hypot(math.log(self.middle / self.low), math.log(other.middle / other.low))
        up = math.hypot(math.log(self.high / self.middle), math.log(other.high / other.middle))
        return Between(low=middle * math.exp(-down), middle=middle, high=middle * math.exp(up))

    def plus(self, other: "Between | float") -> "Between":
        """The sum of two that are independent."""
        if not isinstance(other, Between):
            return Between(low=self.low + other, middle=self.middle + other, high=self.high + other)
        middle = self.middle + other.middle
        down = math.hypot(self.middle - self.low, other.middle - other.low)
        up = math.hypot(self.high - self.middle, other.high - other.middle)
        return Between(low=middle - down, middle=middle, high=middle + up)

    def capped(self, most: float) -> "Between":
        return Between(low=min(self.low, most), middle=min(self.middle, most), high=min(self.high, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """What an earlier run of the same fingerprint took, from its summary."""

    run_id: str
    engines: float  # on the mean; those on CPU are one machine
    devices: float  # likewise
    work_s: float  # device-seconds from the first engine that answered to the last row
    held_s: float  # device-seconds that were billed
    startup_s: float | None
    rows: int  # that were asked
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the rows to do will take on the hardware at hand."""

    basis: Basis
    words: str  # on what it rests
    prompt_tokens: Between
    cached_tokens: float
    output_tokens: Between
    output_words: str  # on what the output tokens rest
    replicas: int
    devices: float  # those on CPU share one machine
    startup_s: float | None  # None: not known, and not counted
    overhead_usd: Decimal  # of what is held before the first row and after the last
    device_seconds: Between  # held, start-up included where it is known
    hours: Between  # of wall time
    price: DevicePrice
    usd_low: Decimal
    usd: Decimal
    usd_high: Decimal


def earlier_runs(
    runs: Iterable[RunSummary], *, fingerprint: str, device: str | None, engine_kind: str
) -> list[EarlierRun]:
    """The runs that ended, asked this fingerprint on this device, and answered something."""
    found = []
    for run in runs:
        asked = (run.rows_ok or 0) - (run.rows_carried or 0) - (run.rows_shared or 0)
        same = run.fingerprint == fingerprint and run.gpu == device and run.engine == engine_kind
        if run.state != "ended" or not same or run.billed_device_s is None or asked <= 0:
            continue
        engines = 1.0 if device is None else float(run.engines or run.engines_least)
        devices = engines * run.devices_each
        # A short run is over before the driver has seen that engines answer: then the engines' own time is the better,
        # which those on CPU spent side by side.
        own_s = (run.device_seconds or 0.0) / (run.engines_least if device is None else 1)
        work_s = max((run.steady_s or 0.0) * devices, own_s)
        if work_s <= 0:
            continue
        found.append(
            EarlierRun(
                run_id=run.run_id,
                engines=engines,
                devices=devices,
                work_s=work_s,
                held_s=run.billed_device_s,
                startup_s=run.startup_s,
                rows=asked,
                prompt_tokens=run.prompt_tokens or 0,
                cached_tokens=run.cached_tokens or 0,
                output_tokens=run.output_tokens or 0,
            )
        )
    return found


def rate_of(device_s: Sequence[float], loads: Sequence[float]) -> Between:
    """Device-seconds for a load of 1, from runs that took so long for such loads.

    The ratio of the sums; with three runs or more Student's interval of the logarithms, else `LEAST_SPREAD`.
    """
    middle = sum(device_s) / sum(loads)
    spread = math.log(1 + LEAST_SPREAD)
    logs = [math.log(seconds / load) for seconds, load in zip(device_s, loads, strict=True)]
    if len(logs) >= 3:
        # One more run, not their mean, is what is forecast: hence the 1 beside the 1/n.
        factor = T95.get(len(logs), 2.0) * math.sqrt(1 + 1 / len(logs))
        spread = max(0.02, factor * stdev(logs))
    elif len(logs) == 2:
        spread = max(spread, abs(logs[0] - logs[1]))
    return Between(low=middle * math.exp(-spread), middle=middle, high=middle * math.exp(spread))


def assumed_rate() -> Between:
    """Seconds for a second of the sequential limit, where nothing was measured."""
    low, high = ASSUMED_EFFICIENCY
    return Between(low=1 / high, middle=1 / math.sqrt(low * high), high=1 / low)


def mean_between(values: Sequence[float], weights: Sequence[float]) -> Between:
    """The weighted mean of units' means, and where it lies with 95 %, each unit one draw; one unit: no spread."""
    total = sum(weights)
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    if len(values) < 2:
        return Between.exactly(mean)
    share = [weight / total for weight in weights]
    # The ratio estimator's variance (Cochran 1977, section 6.4).
    variance = sum((part * (value - mean)) ** 2 for part, value in zip(share, values, strict=True))
    margin = 2 * math.sqrt(variance * len(values) / (len(values) - 1))
    return Between(low=max(0.0, mean - margin), middle=mean, high=mean + margin)


def forecast(
    *,
    load: Between,
    rate: Between,
    basis: Basis,
    words: str,
    prompt_tokens: Between,
    cached_tokens: float,
    output_tokens: Between,
    output_words: str,
    replicas: int,
    devices_per_replica: int,
    one_machine: bool,  # all replicas are on it: more of them are not faster
    startup_s: float | None,
    overhead_device_s: Between,
    price: DevicePrice,
) -> Forecast:
    """Hours and dollars of a load. `overhead_device_s`: held before the first row and after the last, all devices."""
    devices = 1 if one_machine else replicas * devices_per_replica
    steady = load.times(rate)
    held = steady.plus(overhead_device_s)
    starting = Between.exactly(0.0)
    if startup_s:  # known as well as what is held for it is
        known = overhead_device_s.middle > 0
        starting = (
            overhead_device_s.times(startup_s / overhead_device_s.middle) if known else Between.exactly(startup_s)
        )
    return Forecast(
        basis=basis,
        words=words,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        output_words=output_words,
        replicas=replicas,
        devices=devices,
        startup_s=startup_s,
        overhead_usd=cost(overhead_device_s.middle, price),
        device_seconds=held,
        hours=steady.times(1 / devices).plus(starting).times(1 / 3600),
        price=price,
        usd_low=cost(held.low, price),
        usd=cost(held.middle, price),
        usd_high=cost(held.high, price),
    )


def cost(device_seconds: float, price: DevicePrice) -> Decimal:
    """Estimated seconds as dollars: to the millisecond, so that no binary fraction enters a sum."""
    return dollars(Decimal(f"{device_seconds:.3f}"), price)


def overhead(runs: Sequence[EarlierRun], devices: float) -> tuple[float | None, Between]:
    """Start-up in seconds (None: no run tells) and device-seconds held outside steady time, for so many devices."""
    started = [run.startup_s for run in runs if run.startup_s is not None]
    held = [max(0.0, run.held_s - run.work_s) / run.devices * devices for run in runs]
    if not held:
        return None, Between.exactly(0.0)
    middle = fmean(held)
    around = Between.within(middle, 1 + START_SPREAD)
    if len(held) >= 3:
        margin = T95.get(len(held), 2.0) * math.sqrt(1 + 1 / len(held)) * stdev(held)
        around = Between(low=max(0.0, middle - margin), middle=middle, high=middle + margin)
    return fmean(started) if started else None, around


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """How many replicas are done in time; None: no number of them."""

    seconds: float  # that are left
    replicas: int | None  # by the middle of the forecast
    replicas_high: int | None  # by its high end


def replicas_for(found: Forecast, seconds: float, *, units: int, one_machine: bool) -> Deadline:
    """Replicas that end within `seconds`, if twice as many are twice as fast; no more than there are units.

    On `one_machine` more of them are not faster: those there are, or none.
    """
    left = seconds - (found.startup_s or 0.0)
    of_one = found.devices if one_machine else found.devices / found.replicas

    def needed(hours: float) -> int | None:
        steady = hours * 3600 - (found.startup_s or 0.0)
        if steady <= 0:
            return 1
        if left <= 0:
            return None
        count = math.ceil(steady * found.devices / of_one / left)
        if one_machine:
            return found.replicas if count == 1 else None
        return count if count <= max(1, units) else None

    return Deadline(seconds=seconds, replicas=needed(found.hours.middle), replicas_high=needed(found.hours.high))


def rows_within(found: Forecast, usd: Decimal, rows: int) -> Between:
    """Rows that `usd` pays for, start-up and the like first."""

    def paid(total: Decimal) -> float:
        if total <= usd:
            return float(rows)
        if usd <= found.overhead_usd:
            return 0.0
        return max(0.0, rows * float((usd - found.overhead_usd) / (total - found.overhead_usd)))

    return Between(low=paid(found.usd_high), middle=paid(found.usd), high=paid(found.usd_low))
