"""Sort all prompts of a run by how they begin, out of core, by Ray Data. What for: stages/ordered.py."""

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset

from actors.book import MOST_BYTES, free_bytes
from actors.control import Switch
from pipelines import flow_control, storage
from pipelines.changes import ShardWork
from pipelines.config import RunFailed
from pipelines.dataflow import CUT_OFF_S, MOST_SOURCE_BLOCKS, TICK_S, WORKER_DEATHS, Flow
from pipelines.flow_errors import WorkersDie, explained, named
from pipelines.flow_stages import prepared_units
from pipelines.stages.carry import CarrySpec
from pipelines.stages.ordered import FOLDER, Ordered, Piece, keyed, written
from pipelines.stages.prepare import PrepareSpec
from pipelines.stages.read import ReadSpec

BLOCK_TOKENS = 16  # of an engine that says nothing of its KV blocks: vLLM's default on GPUs
SORT_BLOCK_BYTES = 64 * 2**20  # of what one task of the sort takes in or hands on
ANSWER_BYTES = 800  # in the book, of classify with its alternatives; other answers are of that order


def sort(todo: Sequence[ShardWork], flow: Flow, switch: Switch, stopping: Callable[[], bool]) -> Ordered | None:
    """The sorted prompts of what is `todo`, as they lie where an earlier run sorted just that. None: there are none, or
    `stopping` said so; then the next run sorts them.

    Raises:
        RunFailed: there are more different prompts than the book of answers holds; workers died over a shard.
    """
    uri = storage.join(flow.write.sink_uri, FOLDER, digest_of(flow.write.fingerprint, todo))
    ordered = Ordered.at(uri)
    if ordered is None:
        pieces = _sorted(todo, flow, uri, switch, stopping)
        if pieces is None:
            return None
        ordered = Ordered(uri=uri, pieces=tuple(pieces))
        storage.put(storage.join(uri, "sorted.json"), ordered.to_json())
    most = min(MOST_BYTES, free_bytes() // 2)  # the book is on this node
    if ordered.rows * ANSWER_BYTES > most:
        raise RunFailed(
            f"ordering=corpus: the answers to {ordered.rows:,} different prompts do not fit a run's book, which may "
            f"have {most / 2**30:.1f} GiB here and holds some {most // ANSWER_BYTES:,}. Use ordering=window, or do the "
            "corpus in portions by source.limit"
        )
    return ordered if ordered.pieces else None


def digest_of(fingerprint: str, todo: Sequence[ShardWork]) -> str:
    """The name of a sort: of what is asked, and of which rows of which shards."""
    rows = [[work.shard.path, work.shard.identity, work.limit, work.done, work.answered] for work in todo]
    return hashlib.sha256(json.dumps([fingerprint, rows]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _sorted(
    todo: Sequence[ShardWork], flow: Flow, uri: str, switch: Switch, stopping: Callable[[], bool]
) -> list[Piece] | None:
    block = flow.engine.block_size or BLOCK_TOKENS
    with _blocks_for_a_sort():
        blocks = min(len(todo), MOST_SOURCE_BLOCKS)
        dataset = (
            ray.data.from_items(list(todo), override_num_blocks=blocks)
            .map_batches(
                read_and_key,
                fn_args=(flow.read, flow.prepare, flow.carry, block, switch),
                batch_size=None,
                batch_format="numpy",
                num_cpus=flow.read_cpus,
                max_retries=WORKER_DEATHS,
                concurrency=min(flow.read_tasks, blocks) if flow.read_tasks else None,
            )
            .sort("_order")
            .map_batches(
                write_pieces,
                fn_args=(uri, block, flow.read.size.rows, flow.prepare.sampling.max_tokens),
                batch_size=None,
                batch_format="pyarrow",
                max_retries=WORKER_DEATHS,
            )
        )
        try:
            found = _rows(dataset, stopping)
        except WorkersDie as error:
            raise named(error, switch.in_hand()) from error
    if found is None:
        return None
    found.sort(key=lambda row: row["begins"])
    return [Piece(name=row["name"], rows=row["rows"], tokens=row["tokens"], shared=row["shared"]) for row in found]


def _rows(dataset: Dataset, stopping: Callable[[], bool]) -> list[dict[str, Any]] | None:
    """All rows; None: it was to be stopped, and was.

    Raises:
        RunFailed: with the reason inside Ray's wrapping.
    """
    ended: queue.SimpleQueue[list[dict[str, Any]] | BaseException] = queue.SimpleQueue()

    def take() -> None:
        try:
            ended.put(dataset.take_all())
        except BaseException as error:  # noqa: BLE001 - raised in the driver's thread
            ended.put(error)

    control = flow_control.begin()
    taking = threading.Thread(target=take, name="sort", daemon=True)
    taking.start()
    try:
        while not stopping():
            try:
                came = ended.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if isinstance(came, BaseException):
                raise explained(came)
            return came
        control.cut_off()  # or it would go on in threads of Ray's, and call a Ray that may be gone by then
        taking.join(CUT_OFF_S)
        return None
    finally:
        control.ended()


def read_and_key(
    batch: dict[str, Any], read: ReadSpec, prepare: PrepareSpec, carry: CarrySpec, block: int, switch: Switch
) -> Iterator[pa.Table]:
    """The prompts of some shards that are to be asked, with how they begin."""
    for work in batch["item"]:
        switch.begins(work.shard.path)
        for parcel in prepared_units(work, read, prepare, carry):
            yield keyed(parcel, block)
        switch.ends(work.shard.path)


def write_pieces(rows: pa.Table, uri: str, block: int, unit_rows: int, answer_tokens: int) -> pa.Table:
    """Sorted prompts into files; what each is, and how it begins."""
    found = written(rows, uri, block=block, unit_rows=unit_rows, answer_tokens=answer_tokens)
    return pa.table(
        {
            "begins": pa.array([begins for begins, _ in found], pa.string()),
            "name": pa.array([piece.name for _, piece in found], pa.string()),
            **{
                name: pa.array([getattr(piece, name) for _, piece in found], pa.int64())
                for name in ("rows", "tokens", "shared")
            },
        }
    )


@contextmanager
def _blocks_for_a_sort() -> Iterator[None]:
    """Blocks by their bytes, and not a block for each unit."""
    context = DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars, context.max_errored_blocks
    context.target_max_block_size, context.enable_progress_bars, context.max_errored_blocks = SORT_BLOCK_BYTES, False, 0
    try:
        yield
    finally:
        context.target_max_block_size, context.enable_progress_bars, context.max_errored_blocks = before
