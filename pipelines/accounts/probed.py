"""What a probe found: how fast an engine answered some rows, and what it was held for besides.

Where the engine was turned over twice and more, its rate is that between the first answer and the end of admission: as
many rows were in it at both ends, so what went in is what came out, and neither its filling nor its emptying counts.
What these took longer than that rate is held besides, once a run. Else the rate is that of all rows in all of the time
in which the engine had some.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import stdev
from typing import Protocol, Self

from pipelines.accounts.forecast import LEAST_SPREAD, T95, Between

TURNOVERS = 2  # rows that ended between, times those in the engine, for a rate of its steady time
STRETCHES = 8  # into which that is cut, to see how much the rate moves


class Host(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def phase(self) -> str: ...
    @property
    def time(self) -> float: ...
    @property
    def rows_in_flight(self) -> int: ...
    @property
    def rows_ended(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def device_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Rows that ended, and their tokens."""

    seconds: float = 0.0  # of wall time, that it took
    rows: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __sub__(self, other: Self) -> Self:
        return type(self)(**{one.name: getattr(self, one.name) - getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All engines at one moment of a probe: what has ended since they were started, and what is in them."""

    ended: Answered  # its seconds are those of a clock
    engines: int
    in_flight: int
    busy_s: float  # device-seconds with rows in them

    @classmethod
    def of(cls, hosts: Iterable[Host]) -> Self | None:
        """What these hosts report, at the mean time of their reports, a second apart at most; None: none serves yet."""
        here = [host for host in hosts if host.phase not in ("starting", "lost")]
        if not here:
            return None
        return cls(
            ended=Answered(
                seconds=sum(host.time for host in here) / len(here),
                rows=sum(host.rows_ended for host in here),
                prompt_tokens=sum(host.prompt_tokens for host in here),
                cached_tokens=sum(host.cached_tokens for host in here),
                output_tokens=sum(host.output_tokens for host in here),
            ),
            engines=len(here),
            in_flight=sum(host.rows_in_flight for host in here),
            busy_s=sum(host.device_seconds for host in here),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a probe found."""

    asked_s: float  # for how long it was to ask
    startup_s: float  # until the engine served
    held_s: float  # device-seconds of all of it, from the start of the engine on
    devices: float  # that it held; a machine without GPU is one
    whole: Answered  # all that was answered, and how long engines had rows in them
    cut: bool  # rows were in them when they were stopped
    steady: tuple[Answered, ...]  # stretches of time in which they were full; none: they were not turned over
    tokens_by_unit: tuple[tuple[float, int], ...]  # output tokens of a row on the mean, and rows; of finished units

    def rate(self, load: Callable[[Answered], float]) -> Between:
        """Device-seconds for a load of 1, and where those of a longer run lie.

        The mean rate of a probe is better known than by LEAST_SPREAD, but another hour of the same host is not.
        """
        parts = self.steady or (self.whole,)
        middle = self.devices * sum(part.seconds for part in parts) / sum(map(load, parts))
        spread = math.log(1 + LEAST_SPREAD)
        logs = [math.log(part.seconds / load(part)) for part in parts if load(part) > 0]
        if len(logs) >= 3:
            spread = max(spread, T95.get(len(logs), 2.0) * stdev(logs) / math.sqrt(len(logs)))
        return Between(low=middle * math.exp(-spread), middle=middle, high=middle * math.exp(spread))

    def besides_s(self, load: Callable[[Answered], float]) -> float:
        """Device-seconds that were held for no rate to tell: start-up, filling and emptying the engine, the end."""
        work_s = self.rate(load).middle * load(self.whole)
        if self.cut:  # what rows took that did not end is no time besides work
            work_s = max(work_s, self.whole.seconds * self.devices)
        return max(0.0, self.held_s - work_s)

    @property
    def words(self) -> str:
        """On what an estimate by it rests."""
        steady_s, rows = sum(part.seconds for part in self.steady), sum(part.rows for part in self.steady)
        full = "too few to fill the engine twice"
        if self.steady:
            full = f"{rows:,} of them in {steady_s:,.0f} s of steady work"
        return f"a probe of {self.asked_s:,.0f} s: {self.whole.rows:,} rows in {self.whole.seconds:,.0f} s, {full}"


def steady(readings: Sequence[Reading]) -> tuple[Answered, ...]:
    """The time from the first answer to the last reading, in stretches; `readings` in order, while rows are admitted.

    Empty: too few rows have ended for how many were in the engines.
    """
    began = next((place for place, one in enumerate(readings) if one.ended.rows), None)
    if began is None:
        return ()
    full = readings[began:]
    ended = full[-1].ended - full[0].ended
    if ended.rows < TURNOVERS * max(one.in_flight for one in full) or ended.seconds <= 0:
        return ()
    found: list[Answered] = []
    at = full[0].ended
    for place, one in enumerate(full[1:], start=1):
        enough = (one.ended.seconds - full[0].ended.seconds) * STRETCHES >= ended.seconds * (len(found) + 1)
        if (enough and one.ended.rows > at.rows) or (place == len(full) - 1 and one.ended.seconds > at.seconds):
            found.append(one.ended - at)
            at = one.ended
    return tuple(found)
