"""Which order a job's fields have in its prompts: as given, as this output's runs had it, or found from some rows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.accounts import run_summary
from pipelines.config import RunConfig, UserError
from pipelines.job.chat import Chat
from pipelines.job.field_order import best_order
from pipelines.job.fingerprint import FIELD_ORDER
from pipelines.job.row_order import Rules, best_rules, printed
from pipelines.row_rules import TRY, Tried, kept
from pipelines.source.formats import Format
from pipelines.source.shards import Shard
from pipelines.source.units import UnitSize
from pipelines.stages.read import ReadSpec, count_rows, read_units

ROWS = 2048  # that the order is found from
SHARDS = 16  # that they are of, evenly spaced
NEIGHBOURS = 8  # rows that are read together; of formats other than Parquet the first of a shard are taken
MOST_COUNTED = 100_000  # rows of a shard of such a format


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOrder:
    """The order, and where it is from. A share is of the fields' tokens; None: not looked at."""

    fields: tuple[str, ...]
    words: str  # where the order is from
    tried: Tried | None = None  # rules that give each row an order of its own
    shared: float | None = None  # that sorted prompts share, in this order; estimated
    shared_given: float | None = None  # and in the order that the job gives

    @property
    def rules(self) -> Rules | None:
        """That give each row an order of its own; None: all have this one."""
        return self.tried.rules if self.tried else None

    def line(self) -> str:
        """For people."""
        gain = ""
        if self.shared is not None and self.shared_given is not None:
            gain = (
                f"; sorted, {self.shared * 100:.0f} % of the fields' tokens begin like those of a row before "
                f"(estimated; {self.shared_given * 100:.0f} % as the job lists them)"
            )
        return f"{', '.join(self.fields)} ({self.words}{gain})"


def settle(
    config: RunConfig, sink_uri: str, shards: Sequence[tuple[Shard, int | None]], schema: pa.Schema, chat: Chat
) -> FieldOrder | None:
    """The order of `config.job.fields`, which the corpus has; None: the job has none.

    With prompt.field_order=auto an output keeps the order of its newest run: another one would change every prompt.
    With rows there are rules beside the output, which pipelines.agree has found.
    `shards`: of the corpus, each with its row limit.
    """
    fields = config.job.fields
    if not fields:
        return None
    if config.prompt.field_order == "given" or len(fields) == 1:
        return FieldOrder(fields=fields, words="as the job lists them")
    if config.prompt.field_order == "rows":
        return _by_rules(sink_uri, fields)
    if before := _of_the_newest_run(sink_uri, fields):
        return FieldOrder(fields=before, words="as this output's newest run had them")
    columns, tokens, there = _drawn(config, shards, schema, chat)
    best = best_order(columns, tokens, rows=there)
    return FieldOrder(
        fields=tuple(fields[place] for place in best.order),
        words=f"found from {len(tokens):,} rows",
        shared=best.shared,
        shared_given=best.shared_given,
    )


def _by_rules(sink_uri: str, fields: tuple[str, ...]) -> FieldOrder:
    tried = kept(sink_uri, fields)
    if tried is None:
        raise UserError(f"prompt.field_order=rows: there are no rules for this output and these job.fields. {TRY}")
    same = f"{tried.share:.1%} of {tried.asked:,} rows have the same answer in both"
    words = f"each row has its own by rules, {tried.count} of them; {same}"
    return FieldOrder(fields=fields, words=words, tried=tried)


def find_rules(
    config: RunConfig, shards: Sequence[tuple[Shard, int | None]], schema: pa.Schema, chat: Chat
) -> tuple[Rules, str]:
    """Rules for the order of `config.job.fields`, and in words what they share and of how many rows they were found."""
    columns, tokens, _ = _drawn(config, shards, schema, chat)
    found = best_rules(config.job.fields, columns, tokens)
    shared = f"{found.shared:.1%} of the fields' tokens begin like those of a row before"
    return found.rules, f"of {len(tokens):,} rows, sorted, {shared}; {found.shared_fixed:.1%} in one order for all rows"


def _drawn(
    config: RunConfig, shards: Sequence[tuple[Shard, int | None]], schema: pa.Schema, chat: Chat
) -> tuple[list[list[str]], npt.NDArray[np.int64], int]:
    """What each field prints in some rows, how many tokens that are, and the rows that the corpus has."""
    fields = config.job.fields
    there, lines = sampled(shards, pa.schema([schema.field(name) for name in fields]), config.source.max_row_bytes)
    columns = [[printed(name, line[name]) for line in lines] for name in fields]
    tokens = np.array([chat.lengths(column) for column in columns], np.int64).reshape(len(fields), len(lines)).T
    return columns, tokens, there


def _of_the_newest_run(sink_uri: str, fields: tuple[str, ...]) -> tuple[str, ...] | None:
    """The order that the newest run with these very fields wrote into its summary."""
    for run in run_summary.newest(sink_uri):
        order = json.loads(run.fingerprint_parts.get(FIELD_ORDER, "[]"))
        if isinstance(order, list) and sorted(order) == sorted(fields):
            return tuple(order)
    return None


def sampled(
    shards: Sequence[tuple[Shard, int | None]], schema: pa.Schema, max_row_bytes: int
) -> tuple[int, list[dict[str, object]]]:
    """How many rows the corpus has, by bytes where there are many shards, and those drawn: the same each time."""
    some = [shards[place * len(shards) // min(SHARDS, len(shards))] for place in range(min(SHARDS, len(shards)))]
    counts = [_rows_of(shard, limit, max_row_bytes) for shard, limit in some]
    read = sum(counts)
    share = min(1.0, ROWS / max(1, read))
    lines: list[dict[str, object]] = []
    for (shard, _), rows in zip(some, counts, strict=True):
        spec = ReadSpec(schema=schema, size=UnitSize(rows=ROWS, bytes=2**25), max_row_bytes=max_row_bytes, columns=())
        wanted = list(_ranges(shard, rows, rows if share == 1 else max(1, round(rows * share))))
        gaps = [(end, start) for (_, end), (start, _) in zip([(0, 0), *wanted], wanted, strict=False) if start > end]
        for parcel in read_units(shard, spec, done=gaps, limit=wanted[-1][1] if wanted else 0):
            good = [line for line in parcel.rows.to_pylist() if line["_error_type"] is None]
            lines += good
    size = sum(shard.size for shard, _ in some)
    return round(read * sum(shard.size for shard, _ in shards) / max(1, size)), lines


def _rows_of(shard: Shard, limit: int | None, max_row_bytes: int) -> int:
    most = MOST_COUNTED if shard.format is not Format.PARQUET else 2**62
    return count_rows(shard, most if limit is None else min(most, limit), max_row_bytes=max_row_bytes)


def _ranges(shard: Shard, rows: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where in a shard of `rows` rows to take `wanted` of them: neighbours, evenly spaced, or its first ones."""
    if shard.format is not Format.PARQUET or wanted >= rows:
        if wanted:
            yield 0, min(rows, wanted)
        return
    places = max(1, wanted // NEIGHBOURS)
    for place in range(places):
        start = place * rows // places
        yield start, min(start + NEIGHBOURS, rows)
