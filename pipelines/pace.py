"""Pace: what the hardware at hand makes of rows and tokens, from a probe, earlier runs, or the limits alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from actors.engine import EngineConfig
from pipelines.accounts.devices import Device
from pipelines.accounts.forecast import START_SPREAD, Basis, Between, EarlierRun, assumed_rate, overhead, rate_of
from pipelines.accounts.limits import Work, limits
from pipelines.accounts.probed import Answered, Probed
from pipelines.accounts.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """Rows and tokens as one number that time goes by."""

    engine: EngineConfig
    shape: Shape | None
    device: Device | None
    quantized: str | None

    def of(self, rows: float, prompt: float, cached: float, output: float) -> float:
        """In device-seconds at the limit; in computed tokens, or for the simulated engine in rows, where none is."""
        if self.engine.kind == "simulated":
            return rows
        if self.shape and self.device:
            work = Work.of_totals(rows=rows, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
            least = limits(self.shape, self.device, self.engine, work, quantized=self.quantized)
            if least is not None:
                return least.sequential_s * self.engine.devices
        return prompt - cached + output

    def answered(self, some: Answered | EarlierRun) -> float:
        """Of rows that were."""
        return self.of(some.rows, some.prompt_tokens, some.cached_tokens, some.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast, and what is held besides."""

    basis: Basis
    words: str  # on what it rests
    rate: Between  # device-seconds for a load of 1
    replicas: int
    startup_s: float | None  # None: not known
    besides_s: Between  # device-seconds of all replicas, before the first row and after the last


def pace(loads: Loads, runs: Sequence[EarlierRun], probed: Probed | None, *, pool: tuple[int, int]) -> Pace:
    """What was `probed` goes before earlier `runs`, these before the limits. `pool`: fewest and most replicas."""
    engine = loads.engine
    one_machine = engine.device == "cpu"
    fewest, most = pool
    # Of a pool, as many as earlier runs had of it; all where none tells, since it grows as long as rows wait.
    replicas = most if not runs or one_machine else min(most, max(fewest, round(fmean(run.engines for run in runs))))
    devices = 1 if one_machine else replicas * engine.devices
    if probed:
        others = "" if devices == probed.devices else f", on one engine; {replicas} are taken to be as fast each"
        return Pace(
            basis="a probe",
            words=probed.words + others,
            rate=probed.rate(loads.answered),
            replicas=replicas,
            startup_s=probed.startup_s,
            besides_s=Between.within(probed.besides_s(loads.answered) / probed.devices * devices, 1 + START_SPREAD),
        )
    if runs:
        startup_s, besides_s = overhead(runs, devices)
        return Pace(
            basis="earlier runs",
            words=f"{len(runs):,} earlier runs of this output, {sum(run.rows for run in runs):,} rows",
            rate=rate_of([run.work_s for run in runs], [loads.answered(run) for run in runs]),
            replicas=replicas,
            startup_s=startup_s,
            besides_s=besides_s,
        )
    rate, device = assumed_rate(), loads.device
    words = (
        f"the limits of {device.name if device else ''} ({device.source if device else ''}), of which "
        f"{1 / rate.high:.0%} to {1 / rate.low:.0%} are assumed to be reached; an estimate"
    )
    if most > fewest and not one_machine:
        words += f"; if the cluster gives {most} replicas their devices"
    return Pace(
        basis="limits", words=words, rate=rate, replicas=replicas, startup_s=None, besides_s=Between.exactly(0.0)
    )
