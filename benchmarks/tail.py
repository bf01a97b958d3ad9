"""How much of a run several engines are at work together, with units that shrink towards its end and with units that do
not, in virtual time.

    python -m benchmarks.tail

Real hosts with simulated engines, whose units are handed out as Ray Data does it: to whoever has fewest, so many at
most. Told: the time that the rows need at least over the time that they took, and how many units there were.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from actors.engine import Constraint, EngineConfig, Sampling, SimulatedFaults
from actors.exchange import PROMPTS, to_ipc
from actors.host import EngineHost
from actors.window import Window
from benchmarks.measure import circumstances
from benchmarks.step_engine import VirtualTime
from pipelines.flow_sizes import AT_ONCE, handed_out, tail_of
from pipelines.source.units import Tail, UnitSize

PLACES, UNITS = 64, 4  # max_num_seqs, engine.units_in_flight
SIZE = UnitSize(rows=512, bytes=2**30)
SPREAD = 0.5  # of the time that a row takes
CASES: Sequence[tuple[int, tuple[float, ...]]] = (  # rows, and the seconds that a row takes each engine
    (2_000, (1.0,) * 4),
    (5_000, (1.0,) * 4),
    (20_000, (1.0,) * 4),
    (20_000, (1.0, 1.0, 1.0, 2.0)),
    (60_000, (1.0,) * 8),
)


@dataclass(frozen=True)
class Told:
    """What came of it."""

    share: float  # of the time that the rows took in which all engines had enough of them, 0..1
    units: int


def answered(rows: int, seconds: Sequence[float], *, shrink: bool) -> Told:
    """All rows, by these engines."""
    loop = VirtualTime()
    try:
        tail = tail_of(len(seconds), UNITS, PLACES * 1.5, fixed=True, ends_at=rows) if shrink else None
        units = cuts(rows, tail)
        took_s = loop.run_until_complete(_answered(units, seconds, loop))
        return Told(share=round(rows / sum(PLACES / each for each in seconds) / took_s, 3), units=len(units))
    finally:
        loop.close()


def cuts(rows: int, tail: Tail | None) -> list[tuple[int, int]]:
    """The units of one shard that leads the run, and ends it."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < rows:
        stop = min(rows, start + SIZE.rows_of(len(found), start, leads=True, tail=tail))
        found.append((start, stop))
        start = stop
    return found


async def _answered(units: Sequence[tuple[int, int]], seconds: Sequence[float], loop: VirtualTime) -> float:
    hosts = [_host(each) for each in seconds]
    at_once = [asyncio.Semaphore(UNITS * AT_ONCE) for _ in hosts]
    has = [0] * len(hosts)
    one_less = asyncio.Condition()

    async def answer(host: int, unit: pa.Table) -> None:
        async with at_once[host]:
            await hosts[host](unit)
        async with one_less:
            has[host] -= 1
            one_less.notify()

    answering = []
    for start, stop in units:
        async with one_less:
            while min(has) >= handed_out(UNITS, fixed=True):
                await one_less.wait()
        host = has.index(min(has))
        has[host] += 1
        answering.append(asyncio.create_task(answer(host, _unit(start, stop))))
    await asyncio.gather(*answering)
    for each in hosts:
        each.close()
    return loop.time()


def _host(seconds: float) -> EngineHost:
    faults = SimulatedFaults(latency_s=seconds, latency_spread=SPREAD)
    return EngineHost(
        engine=EngineConfig(kind="simulated", model="none", model_name="none", max_num_seqs=PLACES, simulated=faults),
        sampling=Sampling(max_tokens=4),
        constraint=Constraint(),
        window=Window(ordered=False),
        units_in_flight=UNITS,
        poll_s=3600,
    )


def _unit(start: int, stop: int) -> pa.Table:
    rows = stop - start
    keys = [str(row) for row in range(start, stop)]
    nothing = pa.nulls(rows, pa.string())
    prompts = pa.table(
        {"_key": keys, "_prompt": [[1, 2]] * rows, "_error_type": nothing, "_error": nothing}, schema=PROMPTS
    )
    return pa.table({"unit": [f"{start}-{stop}"], "prompts": pa.array([to_ipc(prompts)], pa.large_binary())})


def main() -> None:
    results = []
    print("| rows | engines | units alike | units that shrink |")
    print("|---|---|---|---|")
    for rows, seconds in CASES:
        alike, shrunk = (answered(rows, seconds, shrink=shrink) for shrink in (False, True))
        slow = sum(each > 1 for each in seconds)
        engines = f"{len(seconds)}{f', {slow} of them half as fast' if slow else ''}"
        told = [f"{each.share:.3f} ({each.units})" for each in (alike, shrunk)]
        print(f"| {rows:,} | {engines} | {' | '.join(told)} |", flush=True)
        results.append({"rows": rows, "seconds": seconds, "alike": vars(alike), "shrunk": vars(shrunk)})
    print(json.dumps({"benchmark": "tail", "results": results, **circumstances("python -m benchmarks.tail")}))


if __name__ == "__main__":
    main()
