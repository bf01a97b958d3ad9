"""Corpus order: the different prompts of a run, whatever shard they are of, asked in the order of how they begin.

A window sees the rows that are in flight. Where a beginning comes back after more rows than that, and the KV memory
cannot keep all beginnings until then, each time pays for it again. With ordering=corpus a run therefore

1. sorts the prompts that have no answer yet by their leading blocks, as the engine's prefix cache counts them, and
   writes them to `<sink>/_ordered/<digest>/prompts/`, a file for each piece of about equal predicted cost (`sort` in
   corpus_order.py). `sorted.json` beside them is written last: with it the sort is whole;
2. asks the pieces, one after the other. What is answered goes into the run's book of answers, for the row that is to
   pay for it, and into `answers/`, a file for each piece: that is what a run that is killed leaves to the next one;
3. reads the shards as any run does. Each row finds its answer in the book; the first with its key gets it with its
   tokens and device seconds, others for nothing. Units, receipts, `_shard`, `_row`, dead letters, carried answers and
   changed shards are those of any run, for this is one: nothing but the answers in the book tells it from another.

So a row that the book has no answer for (its piece was lost, its engine refused it) is asked as it comes, and no answer
is used but under its row key. The digest is of fingerprint and rows to do: where these have changed, prompts are sorted
anew, and what was answered before is found in the book. A run that has done everything removes the folder.
"""

import hashlib
import io
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.exchange import PROMPTS
from actors.sharing import NOTED
from pipelines import storage
from pipelines.source.units import Unit
from pipelines.stages.parcel import Parcel, place_of

log = logging.getLogger(__name__)

FOLDER = "_ordered"  # below the sink: readers of corpora and of Parquet folders skip such a name
DEPTHS = (*range(1, 17), 24, 32, 48, 64, 96, 128)  # leading blocks whose hashes are the key, each that of all before it
HASH_BYTES = 8
KEYED = pa.schema(
    [
        ("_order", pa.string()),  # how the prompt begins, and its key: see order_of
        ("_key", pa.string()),
        ("_prompt", pa.list_(pa.int32())),
        ("_place", pa.string()),  # of the row that asks: its shard, hashed
        ("_place_row", pa.int64()),
    ]
)
_ANSWERS = re.compile(r"/answers/[0-9a-f]{32}\Z")  # and not half of one, under another name
LOOK_S = 2.0  # between two looks at what is answered
PATIENCE_S = 1800.0  # without a new answer: the rest is asked as it comes
ROOM = 4  # a piece has at most so many times the rows of a unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive prompts of the sorted ones."""

    name: str
    rows: int
    tokens: int
    shared: int  # of the tokens, those in full blocks that the prompt before begins with as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """The sorted prompts of a run."""

    uri: str  # their folder
    pieces: tuple[Piece, ...]  # in order

    @property
    def rows(self) -> int:
        """Different prompts."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def available(self) -> float:
        """Share of their tokens that a prefix cache which forgot nothing would save, 0..1."""
        tokens = sum(piece.tokens for piece in self.pieces)
        return sum(piece.shared for piece in self.pieces) / tokens if tokens else 0.0

    def to_json(self) -> bytes:
        """What `sorted.json` holds."""
        return json.dumps([asdict(piece) for piece in self.pieces]).encode()

    @classmethod
    def at(cls, uri: str) -> "Ordered | None":
        """Those that lie there; None: there are none, or not all."""
        try:
            pieces = json.loads(storage.get(storage.join(uri, "sorted.json")))
        except FileNotFoundError:
            return None
        return cls(uri=uri, pieces=tuple(Piece(**piece) for piece in pieces))


def order_of(prompt: npt.NDArray[np.int32], key: str, block: int) -> str:
    """Hex digits: sorted by them, prompts that share leading full blocks stand together, at each depth that is kept,
    and so do those with one key.
    """
    chain, kept = b"", []
    for depth in range(1, min(len(prompt) // block, DEPTHS[-1]) + 1):
        ids = prompt[(depth - 1) * block : depth * block].tobytes()
        chain = hashlib.blake2b(chain + ids, digest_size=HASH_BYTES).digest()
        if depth in DEPTHS:
            kept.append(chain)
    return b"".join(kept).hex() + key


def keyed(parcel: Parcel, block: int) -> pa.Table:
    """The prompts of a unit that are to be asked, as lines of KEYED; none where dead letters are asked again."""
    prompts = parcel.prompts
    if prompts is None or (parcel.redo and parcel.redo.replaces):
        return KEYED.empty_table()
    asked = prompts.append_column("_place_row", parcel.rows["_row"]).filter(pc.is_valid(prompts["_prompt"]))
    ids = asked["_prompt"].combine_chunks()
    keys = asked["_key"].to_pylist()
    orders = [order_of(ids[line].values.to_numpy(), key, block) for line, key in enumerate(keys)]
    columns = {
        "_order": pa.array(orders, pa.string()),
        "_place": pa.repeat(place_of(parcel.unit.shard), asked.num_rows),
        **{name: asked[name] for name in ("_key", "_prompt", "_place_row")},
    }
    return pa.table([columns[name] for name in KEYED.names], schema=KEYED)


def written(rows: pa.Table, uri: str, *, block: int, unit_rows: int, answer_tokens: int) -> list[tuple[str, Piece]]:
    """Cut sorted lines of KEYED into pieces of about equal predicted cost, and store them.

    Each comes with how its first prompt begins. The first of several rows with one key asks. Predicted are the tokens
    of a prompt that the one before does not share, and `answer_tokens`.
    """
    if not rows.num_rows:  # of Ray's it may have no columns then
        return []
    keys = rows["_key"].to_pylist()
    rows = rows.filter(pa.array([not at or keys[at - 1] != key for at, key in enumerate(keys)], pa.bool_()))
    ids = [value.values.to_numpy() for value in rows["_prompt"].combine_chunks()]
    shared = np.array([_shared(before, here, block) for before, here in zip([ids[0][:0], *ids], ids, strict=False)])
    tokens = np.array([len(prompt) for prompt in ids])
    found = []
    for start, stop in _cut(tokens - shared + answer_tokens, unit_rows):
        part = rows.slice(start, stop - start)
        name = part["_key"][0].as_py()
        storage.put(storage.join(uri, "prompts", name), _parquet(part))
        piece = Piece(
            name=name, rows=stop - start, tokens=int(tokens[start:stop].sum()), shared=int(shared[start:stop].sum())
        )
        found.append((part["_order"][0].as_py(), piece))
    return found


def _shared(before: npt.NDArray[np.int32], here: npt.NDArray[np.int32], block: int) -> int:
    """Tokens in full blocks that both begin with; the last token of a prompt is computed in any case."""
    most = min(len(before), len(here) - 1) // block * block
    differ = np.flatnonzero(before[:most] != here[:most])
    return int(differ[0]) // block * block if len(differ) else most


def _cut(costs: npt.NDArray[np.int64], unit_rows: int) -> list[tuple[int, int]]:
    """Ranges of about equal cost: as many as units of `unit_rows` rows would be."""
    sums = np.cumsum(costs)
    each = sums[-1] / max(1, round(len(costs) / unit_rows))
    found, start = [], 0
    while start < len(costs):
        reached = sums[start - 1] if start else 0
        stop = int(np.searchsorted(sums, reached + each * (1 + 1e-9), side="right"))
        stop = max(start + 1, min(stop, start + ROOM * unit_rows))
        found.append((start, stop))
        start = stop
    return found


def unanswered(ordered: Ordered, piece: Piece) -> Parcel | None:
    """A piece as it travels to the engines; None: its answers are there."""
    if storage.exists(storage.join(ordered.uri, "answers", piece.name)):
        return None
    rows = pq.read_table(io.BytesIO(storage.get(storage.join(ordered.uri, "prompts", piece.name))))
    nothing = pa.nulls(rows.num_rows, pa.string())
    prompts = pa.table([rows["_key"], rows["_prompt"], nothing, nothing], schema=PROMPTS)
    for name in ("_place", "_place_row"):
        prompts = prompts.append_column(name, rows[name])
    unit = Unit(shard=f"{FOLDER}/{piece.name}", identity="", start=0, stop=rows.num_rows, last=False)
    return Parcel(unit=unit, rows=rows.select([]), prompts=prompts, ordered=piece.name)


def keep_answers(parcel: Parcel, uri: str) -> None:
    """Store what a piece was answered, as lines of NOTED. What it found answered already is stored elsewhere."""
    if parcel.answers is None or parcel.prompts is None:  # handed back
        return
    rows = parcel.answers.num_rows
    again = parcel.answers["_asked_again"] if "_asked_again" in parcel.answers.schema.names else pa.repeat(0, rows)
    columns = {
        "_line": pa.array(np.arange(rows), pa.int32()),
        "_asked_again": again,
        **{name: parcel.prompts[name] for name in ("_key", "_place", "_place_row")},
        **{
            name: parcel.answers[name] for name in NOTED.names if name in parcel.answers.schema.names and name[0] == "_"
        },
    }
    page = pa.table([columns[name] for name in NOTED.names], schema=NOTED)
    own = pc.and_(pc.is_valid(page["_answer"]), pc.invert(page["_shared"]))
    storage.put(storage.join(uri, "answers", str(parcel.ordered)), _parquet(page.filter(own)))


def answers_at(uri: str) -> list[str]:
    """Files of answers below `uri`, of whatever sort."""
    return [one.uri for one in storage.listing(uri, missing_ok=True) if _ANSWERS.search(f"/{one.path}")]


def page_of(uri: str) -> pa.Table:
    """What `keep_answers` stored there."""
    return pq.read_table(io.BytesIO(storage.get(uri))).cast(NOTED)


def wait_for_answers(ordered: Ordered, draining: Callable[[], bool]) -> bool:
    """Wait until all pieces are answered; False: the run is draining. Not for ever: what is missing is asked then."""
    best, since = -1, time.monotonic()
    folder, names = storage.join(ordered.uri, "answers"), {piece.name for piece in ordered.pieces}
    while not draining():
        count = sum(stored.path in names for stored in storage.listing(folder, missing_ok=True))
        if count >= len(names):
            return True
        if count > best:
            best, since = count, time.monotonic()
        if time.monotonic() - since > PATIENCE_S:
            log.warning(
                "%d of %d pieces are answered, and no more came: the rest as it comes", count, len(ordered.pieces)
            )
            return True
        time.sleep(LOOK_S)
    return False


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def remove(sink_uri: str) -> None:
    """Take away all sorted prompts of an output, and their answers: everything is done."""
    uri = storage.join(sink_uri, FOLDER)
    if storage.is_s3(uri):
        storage.delete_all([stored.uri for stored in storage.listing(uri, missing_ok=True)])
    else:
        shutil.rmtree(Path(uri), ignore_errors=True)
