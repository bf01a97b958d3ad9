"""How many rows a run has to do, for its progress: from footers, or estimated by bytes without reading much.

ahead.py counts for a plan, and reads what it must for that. Beside engines at work no more is read than so many footers
of Parquet, and of other shards the first 4 MiB of a few.
"""

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from pipelines.ahead import MOST_FOOTERS, Counted
from pipelines.changes import Reason, ShardWork
from pipelines.source.formats import Compression, Format, Unreadable, unpacked
from pipelines.source.shards import Shard, open_shard
from pipelines.stages.read import count_rows

MOST_BEGINNINGS = 8  # of shards of each format
BEGINNING_BYTES = 4 * 2**20  # unpacked; of packed ones, 32 KiB more or less are read


def rows_ahead(
    todo: Sequence[ShardWork], *, seed: int = 0, over: Callable[[], bool] = lambda: False
) -> tuple[int, bool] | None:
    """Rows to do, and whether that is estimated. None: nobody can tell, or it is `over` before it is told."""
    rows_in: dict[int, int] = {}  # of shards that tell, by place
    looked_at: dict[Format, list[tuple[int, int]]] = defaultdict(list)  # rows and bytes
    for place in _drawn(todo, seed):
        if over():
            return None
        work = todo[place]
        if work.reason is Reason.RETRIED:
            continue  # told by the ledger
        if _tells(work.shard):
            rows_in[place] = count_rows(work.shard, sys.maxsize)
            looked_at[work.shard.format].append((rows_in[place], work.shard.size))
        elif (beginning := _beginning(work.shard)) is not None:
            looked_at[work.shard.format].append(beginning)
    total, estimated = 0, False
    for place, work in enumerate(todo):
        if work.reason is Reason.RETRIED:
            total += sum(unit.stop - unit.start for unit in work.redo)
            continue
        rows = rows_in.get(place)
        if rows is None:
            known = looked_at[work.shard.format]
            read = sum(size for _, size in known)
            if not read:
                return None
            rows, estimated = round(work.shard.size * sum(count for count, _ in known) / read), True
        rows = min(rows, work.limit) if work.limit is not None else rows
        total += sum(stop - start for start, stop in Counted(work=work, rows=rows, exact=not estimated).todo())
    return total, estimated


def _drawn(todo: Sequence[ShardWork], seed: int) -> list[int]:
    """Places of the shards to look at, drawn by the seed, so that the first of a corpus do not stand for all."""
    order = list(range(len(todo)))
    random.Random(seed).shuffle(order)  # noqa: S311
    left: dict[Format, int] = defaultdict(lambda: MOST_BEGINNINGS, {Format.PARQUET: MOST_FOOTERS})
    chosen = []
    for place in order:
        shape = todo[place].shard.format
        if left[shape] and todo[place].reason is not Reason.RETRIED:
            left[shape] -= 1
            chosen.append(place)
    return chosen


def _tells(shard: Shard) -> bool:
    """Whether its rows can be counted at little cost."""
    small = shard.compression is Compression.NONE and shard.size <= BEGINNING_BYTES
    return shard.format is Format.PARQUET or small


def _beginning(shard: Shard) -> tuple[int, int] | None:
    """Lines of a shard's beginning, and the bytes (packed) that they took; None: it cannot be read.

    Lines, not rows: of blank lines and records of several lines only parsing tells. This is for an estimate.
    """
    lines = read = 0
    with suppress(Unreadable, FileNotFoundError), closing(open_shard(shard)) as file:
        for chunk in unpacked(file, shard.compression):
            lines += chunk.count(b"\n")
            read += len(chunk)
            if read >= BEGINNING_BYTES:
                break
        packed = file.tell()
        return (max(1, lines), packed) if packed else None
    return None
