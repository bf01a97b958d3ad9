"""How many units are under way between two stages, and how small units become towards the end of a run."""

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipelines.changes import ShardWork
from pipelines.config import RunConfig, RunFailed
from pipelines.source.formats import Format
from pipelines.source.units import LEADING_ROWS, Tail
from pipelines.stages.read import count_rows

# Units that Ray hands to an actor, and those that the actor runs at once, each times units_in_flight. An actor that has
# all of the first is full: Ray starts another one once the units handed out are GROW times those that all of them run.
# Its own 1.75 would never be reached, and the pool would stay as small as it began.
HANDED_OUT, AT_ONCE, GROW = 3, 2, 1.25
MOST_UNITS = 256  # in an engine at once, however small they are
WAITING_TOO = 1.5  # rows here, times those in the window: as many as keep the door of a host shut
# Units that are handed to an engine stay with it, also where others have nothing to do. Towards the end of a run all
# that it has is at most its share of the rows that are left over this: one that is as slow again ends with the others.
UNEVEN = 2
MOST_COUNTED = 256  # shards at the end of a run
COUNTED_AT_ONCE = 8
MOST_COUNTED_BYTES = 64 * 2**20  # of those that must be read for that, packed


def units_in_flight(least: int, window_rows: float, rows_a_unit: float) -> int:
    """How many units an engine needs at once: `least`, or as many as hold the rows in its window and half as many more
    that wait for it."""
    return max(least, min(MOST_UNITS, math.ceil(window_rows * WAITING_TOO / max(1.0, rows_a_unit))))


def handed_out(units: int, *, fixed: bool) -> int:
    """How many units an engine may have at most, of `units` in flight; `fixed`: the pool does not grow."""
    return units * (AT_ONCE if fixed else HANDED_OUT)


def tail_of(engines: int, units: int, window_rows: float, *, fixed: bool, ends_at: int = 0) -> Tail:
    """How units become smaller where so many engines share a run."""
    # As many units as an engine runs at once hold what is in its window, however small they are.
    least = max(LEADING_ROWS, math.ceil(window_rows / (units * AT_ONCE)))
    return Tail(ends_at=ends_at, shares=engines * handed_out(units, fixed=fixed) * UNEVEN, least=least)


def with_tail(todo: Sequence[ShardWork], config: RunConfig, *, max_num_seqs: int) -> tuple[ShardWork, ...]:
    """The work, with units that become smaller towards its end where several engines share it.

    The last shards are counted for that, as far as that is cheap: Parquet by its footers, of others what is in 64 MiB.
    """
    fewest, engines = config.engine.pool
    if engines == 1 or not config.unit.shrink or config.ordering == "corpus":
        return tuple(todo)
    window_rows = max_num_seqs * (1 + config.batching.lookahead)
    units = units_in_flight(config.engine.units_in_flight, window_rows, config.unit.rows)
    tail = tail_of(engines, units, window_rows, fixed=fewest == engines)
    tailed = list(todo)
    behind = 0
    places = _cheap_to_count(todo)
    rows_of = partial(_rows_of, max_row_bytes=config.source.max_row_bytes)
    with ThreadPoolExecutor(COUNTED_AT_ONCE) as pool:
        for first in range(0, len(places), COUNTED_AT_ONCE):
            some = places[first : first + COUNTED_AT_ONCE]
            for place, rows in zip(some, pool.map(rows_of, [todo[place] for place in some]), strict=True):
                if rows is None or behind >= tail.shares * config.unit.rows:
                    return tuple(tailed)
                tailed[place] = replace(todo[place], tail=replace(tail, ends_at=rows + behind))
                behind += rows - sum(stop - start for start, stop in todo[place].done)
    return tuple(tailed)


def _rows_of(work: ShardWork, max_row_bytes: int) -> int | None:
    most = sys.maxsize if work.limit is None else work.limit
    try:
        return count_rows(work.shard, most, max_row_bytes=max_row_bytes)
    except (OSError, RunFailed):  # who reads it will say so
        return None


def _cheap_to_count(todo: Sequence[ShardWork]) -> list[int]:
    """Places of the last shards, the last one first."""
    places: list[int] = []
    read = 0
    for place in range(len(todo) - 1, -1, -1):
        shard = todo[place].shard
        read += 0 if shard.format is Format.PARQUET else shard.size
        if len(places) == MOST_COUNTED or read > MOST_COUNTED_BYTES:
            break
        places.append(place)
    return places
