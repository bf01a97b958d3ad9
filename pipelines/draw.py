"""Some of the rows that a run would ask, drawn by a seed, rendered and tokenized by the job's own prepare stage.

What is said of them (lengths, rows that cannot be asked, duplicates, prefixes) is said of the sample, and of the corpus
if the sample is the whole of it. Rows come in blocks of neighbours, since a shard is read from front to back; of
Parquet blocks lie anywhere, of other formats among the first rows of their shard, which must be read to reach them.
Duplicates and shared prefixes of a sample are fewer than those of its corpus: a row's twin may not be drawn.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.ahead import Counted, Range
from pipelines.changes import Reason
from pipelines.source.formats import Format
from pipelines.stages.carry import Answered, CarrySpec, earlier
from pipelines.stages.prepare import PrepareSpec, prepare
from pipelines.stages.read import ReadSpec, read_units

BLOCK_ROWS = 32  # neighbours that are read together, at most
LEAST_BLOCKS = 16  # of a sample, however small: rows of one block are no independent draws
AHEAD_BLOCKS = 64  # of a shard that must be read from its front: how far, for each block that falls on it
BLOCK_TOKENS = (16, 32)  # of a KV block: vLLM's default on GPUs, and ours on CPUs
_RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Rows that were drawn, and what prepare made of them."""

    rows: int
    blocks: int  # of neighbours; rows of one are no independent draws
    shards: int
    whole: bool  # these are all the rows that the run would ask
    prompt_tokens: npt.NDArray[np.int64]  # of each row that asks for an answer, doubled ones too, in the order drawn
    block: npt.NDArray[np.int64]  # of each of those
    errors: Mapping[str, int]  # rows that cannot be asked, by type
    carried: int  # rows that the output has an answer to, by row key: of changed shards, with dedup=output of any
    duplicates: int  # rows with the key of an earlier row of the sample
    duplicate_tokens: int
    reuse: Mapping[int, float | None]  # by tokens of a KV block: share of the prompt tokens of different rows, 0..1
    shared_tokens: Mapping[int, int]  # by tokens of a KV block: KV that an engine must keep to reuse all of that
    static_tokens: int  # at the front of every prompt
    row_bytes: float | None  # decoded, on average

    def interval(self, share: float = 0.95) -> tuple[float, float] | None:
        """Where the mean prompt tokens of a row sent lie in `share` of resamplings of blocks; None: of one.

        The percentile bootstrap over clusters (Efron and Tibshirani 1993, chapters 8 and 13). Whole: just the mean.
        """
        if not len(self.prompt_tokens):
            return None
        if self.whole:
            return (float(self.prompt_tokens.mean()),) * 2
        names, place = np.unique(self.block, return_inverse=True)
        if len(names) < 2:
            return None
        sums, counts = np.bincount(place, self.prompt_tokens), np.bincount(place)
        drawn = np.random.default_rng(0).integers(0, len(names), (_RESAMPLES, len(names)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
        return float(low), float(high)


def draw(
    counted: Sequence[Counted],
    rows: int,
    seed: int,
    *,
    read: ReadSpec,
    spec: PrepareSpec,
    carry: CarrySpec,
    keep: Callable[[pa.Table], None] | None = None,
) -> Drawn:
    """Draw `rows` of the rows to do, or all if there are no more; the same for the same corpus and seed.

    `keep` is given the input's columns of those that a run would not take from the output, block by block.
    """
    ranges = {place: one.todo() for place, one in enumerate(counted) if one.work.reason is not Reason.RETRIED}
    if not ranges:  # dead letters alone: the rows beside them stand for them
        ranges = {place: one.todo() for place, one in enumerate(counted)}
    total = sum(stop - start for of_shard in ranges.values() for start, stop in of_shard)
    whole = total <= rows and all(counted[place].exact for place in ranges) and len(ranges) == len(counted)
    chosen = ranges if total <= rows else _chosen(counted, ranges, total, rows, random.Random(seed))  # noqa: S311
    seen = _Seen()
    for place, wanted in sorted(chosen.items()):
        for number, table, prompts, known in _read(counted[place], wanted, read, spec, carry):
            seen.add(f"{place} {number}", table, prompts, known)
            if keep:
                mask = pa.array([line not in known for line in range(table.num_rows)], pa.bool_())
                keep(table.select(read.schema.names).filter(mask))
    return seen.drawn(whole=whole)


def shuffled(kept: Sequence[pa.Table], seed: int) -> pa.Table:
    """Blocks of rows in an order of chance, neighbours beside each other: the first of them stand for all."""
    blocks = [table.slice(at, BLOCK_ROWS) for table in kept for at in range(0, table.num_rows, BLOCK_ROWS)]
    random.Random(seed).shuffle(blocks)  # noqa: S311
    return pa.concat_tables(blocks)


def _chosen(
    counted: Sequence[Counted], ranges: Mapping[int, list[Range]], total: int, rows: int, rng: random.Random
) -> dict[int, list[Range]]:
    """Blocks of rows: as many as make `rows`, each shard as likely as it has rows to do."""
    places = list(ranges)
    weights = [sum(stop - start for start, stop in ranges[place]) for place in places]
    size = max(1, min(BLOCK_ROWS, rows // LEAST_BLOCKS))
    hits = Counter(rng.choices(places, weights, k=max(1, round(min(rows, total) / size))))
    found = {}
    for place, count in sorted(hits.items()):
        anywhere = counted[place].work.shard.format is Format.PARQUET
        within = ranges[place] if anywhere else _first(ranges[place], AHEAD_BLOCKS * size * count)
        cells = [(at, min(at + size, stop)) for start, stop in within for at in range(start, stop, size)]
        found[place] = sorted(rng.sample(cells, min(count, len(cells))))
    return found


def _first(ranges: Sequence[Range], rows: int) -> list[Range]:
    found = []
    for start, stop in ranges:
        take = min(rows, stop - start)
        if take:
            found.append((start, start + take))
        rows -= take
    return found


def _read(
    one: Counted, wanted: Sequence[Range], read: ReadSpec, spec: PrepareSpec, carry: CarrySpec
) -> Iterator[tuple[int, pa.Table, pa.Table, set[int]]]:
    """The wanted rows of a shard with their prompts; the lines of those that the output has answers to."""
    gaps, at = [], 0
    for start, stop in wanted:
        if start > at:
            gaps.append((at, start))
        at = stop
    answered = None
    if carry.earlier:
        answered = earlier(carry)
    elif one.work.answered:
        answered = Answered.open(one.work.answered, carry)
    for parcel in read_units(one.work.shard, read, done=gaps, limit=at):
        if parcel.rows.num_rows:
            prompts = prepare(parcel.rows, spec)
            carried = answered.find(prompts["_key"].to_pylist()) if answered else None
            yield parcel.unit.start, parcel.rows, prompts, set() if carried is None else set(carried.lines.tolist())


class _Seen:
    """What the rows drawn so far have shown."""

    def __init__(self) -> None:
        self.rows = self.carried = self.duplicates = self.duplicate_tokens = self.bytes = 0
        self.errors: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.tokens: list[int] = []
        self.blocks: list[str] = []
        self.shards: set[str] = set()
        self.hashes: dict[int, set[bytes]] = defaultdict(set)
        self.shared: Counter[int] = Counter()  # tokens, by block size
        self.reused: dict[int, set[bytes]] = defaultdict(set)  # of the hashes, those that came again
        self.prompt_tokens = 0  # of different rows
        self.static: npt.NDArray[np.int32] | None = None

    def add(self, block: str, table: pa.Table, prompts: pa.Table, carried: set[int]) -> None:
        """Rows of one block, and their prompts; `carried`: lines of those that the output has answers to."""
        self.rows += table.num_rows
        self.bytes += table.nbytes
        self.carried += len(carried)
        self.shards.add(block.split(" ")[0])
        ids = prompts["_prompt"].combine_chunks()
        for line, (key, error) in enumerate(
            zip(prompts["_key"].to_pylist(), prompts["_error_type"].to_pylist(), strict=True)
        ):
            if error is not None:
                self.errors[error] += 1
                continue
            if key is None or line in carried:
                continue
            prompt = ids[line].values.to_numpy()
            self.tokens.append(len(prompt))
            self.blocks.append(block)
            if key in self.keys:
                self.duplicates += 1
                self.duplicate_tokens += len(prompt)
            else:
                self.keys.add(key)
                self._reuse(prompt)

    def _reuse(self, prompt: npt.NDArray[np.int32]) -> None:
        """Count the leading full blocks that an earlier row began with as well.

        An engine computes the last token of a prompt again in any case, so a block that holds it is never shared.
        """
        self.prompt_tokens += len(prompt)
        for size in BLOCK_TOKENS:
            chain, shared = b"", True
            for at in range(0, len(prompt) - size, size):
                chain = hashlib.blake2b(chain + prompt[at : at + size].tobytes(), digest_size=16).digest()
                shared = shared and chain in self.hashes[size]
                self.shared[size] += size * shared
                if shared:
                    self.reused[size].add(chain)
                self.hashes[size].add(chain)
        if self.static is None:
            self.static = prompt
        else:
            most = min(len(self.static), len(prompt))
            differ = np.nonzero(self.static[:most] != prompt[:most])[0]
            self.static = self.static[: differ[0] if len(differ) else most]

    def drawn(self, *, whole: bool) -> Drawn:
        names = {name: number for number, name in enumerate(dict.fromkeys(self.blocks))}
        return Drawn(
            rows=self.rows,
            blocks=len(names),
            shards=len(self.shards),
            whole=whole,
            prompt_tokens=np.array(self.tokens, np.int64),
            block=np.array([names[name] for name in self.blocks], np.int64),
            errors=dict(sorted(self.errors.items())),
            carried=self.carried,
            duplicates=self.duplicates,
            duplicate_tokens=self.duplicate_tokens,
            reuse={
                size: self.shared[size] / self.prompt_tokens if self.prompt_tokens else None for size in BLOCK_TOKENS
            },
            shared_tokens={size: size * len(self.reused[size]) for size in BLOCK_TOKENS},
            static_tokens=0 if self.static is None or len(self.keys) < 2 else len(self.static),
            row_bytes=self.bytes / self.rows if self.rows else None,
        )
