"""The way of the data on one screen: Ray Data joins the stages, and the driver sees receipts alone.

    shards ─▶ read, prepare (CPU tasks) ─▶ infer (a pool of engine actors) ─▶ parse, write (CPU tasks) ─▶ receipts

A unit is one row of Ray Data's tables (`Parcel`), and `target_max_block_size=1` makes every row a block of its
own, so a unit stays whole from read to write and blocks flow on while their shard is still being read.
"""

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.backpressure_policy import DownstreamCapacityBackpressurePolicy

from actors.book import AnswerBook
from actors.control import Switch
from actors.engine import EngineConfig, EngineLost, ModelHere
from actors.exchange import to_ipc
from actors.host import EngineHost
from actors.liveness import look
from actors.window import Window
from pipelines import flow_control, storage
from pipelines.changes import ShardWork
from pipelines.config import RunFailed
from pipelines.flow_control import Abandoned
from pipelines.flow_errors import WorkersDie, explained, named
from pipelines.flow_sizes import AT_ONCE, GROW, handed_out, units_in_flight
from pipelines.flow_stages import parse_and_write, read_and_prepare
from pipelines.job.contract import OutputContract
from pipelines.job.ladder import AskAgain
from pipelines.sink.receipt import Receipt
from pipelines.stages.carry import CarrySpec
from pipelines.stages.ordered import FOLDER, Ordered, answers_at, page_of
from pipelines.stages.prepare import PrepareSpec
from pipelines.stages.read import ReadSpec, rows_a_unit
from pipelines.stages.write import WriteSpec

log = logging.getLogger(__name__)

TICK_S = 1.0  # a waiting driver looks up this often: for signals, progress, and to commit what came
CUT_OFF_S = 10.0  # for the thread that pulls receipts, once its executor has been shut down
# Blocks that wait for a stage, for each that is in it. Units that are answered and not written are lost in a crash, and
# an engine that costs nothing ran 42 units of 512 rows ahead of its writer without this, 13 with it.
READY_AHEAD = 4.0
# Workers that may die over one shard or unit; Ray would go on for ever. Each loss of a node counts, too, if its blocks
# have to be made again: spot clusters lose many, and one worker after the other within a minute is not their way.
WORKER_DEATHS = 10
MOST_IN_VAIN = 3  # flows in a row that lost an engine's node and finished nothing
REMEMBERED_AT_ONCE = 8
ORDERED_PATIENCE_S = 300.0  # for the book, where it is no mere memory: what it does not say is paid for twice
MOST_SOURCE_BLOCKS = 4096  # a read task takes several shards where there are more

Arrived: TypeAlias = "queue.SimpleQueue[Receipt | BaseException | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What each stage needs to know. Picklable: it travels to every task and actor once."""

    read: ReadSpec
    prepare: PrepareSpec
    carry: CarrySpec
    contract: OutputContract
    again: AskAgain | None  # after an answer that breaks the contract; None: it is a dead letter
    model_name: str
    gold: str | None
    write: WriteSpec
    engine: EngineConfig
    window: Window
    locate: Callable[[], ModelHere] | None  # on an engine's node; None: where `engine` says
    fit: Callable[[EngineConfig], EngineConfig] | None  # to the device of its node; None: `engine` as it is
    pool: tuple[int, int]  # fewest and most replicas
    units_in_flight: int  # units whose rows share one engine
    overdue_times: float | None  # as long as 99 % of rows take, after which one is named
    share: bool  # rows with one key are asked once in this run
    max_restarts: int  # of one replica's engines, for reasons of their own
    max_restarts_per_hour: int  # of one replica's engines, for whatever reason
    grace_s: float  # after a drain, for units that are begun
    read_tasks: int | None  # shards read at once; None: as many as there are CPUs for, now or later
    read_cpus: int  # of a task that reads
    write_tasks: int  # units written at once
    work: Mapping[str, float]  # resources of Ray's that tasks without a CPU of their own ask for
    ordered: Ordered | None = None  # sorted prompts, which are asked before any shard is read


def finished(
    todo: Sequence[ShardWork],
    flow: Flow,
    switch: Switch,
    *,
    left: Callable[[], Sequence[ShardWork]] | None = None,
    most: Callable[[], int] | None = None,
) -> Generator[list[Receipt], None, None]:
    """Do the work; about once a second, the receipts of the units that were finished since (it may be none).

    `left` commits what was yielded and says what is not done: for a flow that waited in vain for an engine whose node
    is gone, and is started again. Without it the run fails then. `most`: how many engines there may be at this moment.

    Raises:
        RunFailed: with the reason of the stage that could not go on.
    """
    notes = AnswerBook.create() if flow.share else None
    if notes:
        _remember(notes, flow.write.sink_uri)
        if flow.ordered:
            notes = replace(notes, patience_s=ORDERED_PATIENCE_S)
    in_vain = 0
    while True:
        in_vain += 1
        try:
            with closing(_flow(todo, flow, switch, notes, most)) as flowing:
                for receipts in flowing:
                    in_vain = 0 if receipts else in_vain
                    yield receipts
        except Abandoned as error:
            if switch.draining():
                return
            if left is None or in_vain >= MOST_IN_VAIN:
                raise RunFailed(f"{error}, and no other one was to be had; run it again") from error
            todo = left()
            log.warning("%s: it is started again over what is left of %d shards", error, len(todo))
        else:
            return


def _remember(notes: AnswerBook, sink_uri: str) -> None:
    """Put into the book what sorted prompts were answered in a run that did not come to an end."""

    def take_in(uri: str) -> None:
        ray.get(notes.actor.note.remote(uri, to_ipc(page_of(uri))))

    with ThreadPoolExecutor(REMEMBERED_AT_ONCE) as pool:
        list(pool.map(take_in, answers_at(storage.join(sink_uri, FOLDER))))


def _flow(
    todo: Sequence[ShardWork],
    flow: Flow,
    switch: Switch,
    notes: AnswerBook | None,
    most: Callable[[], int] | None,
) -> Generator[list[Receipt], None, None]:
    arrived: Arrived = queue.SimpleQueue()
    control = flow_control.begin()
    dataset = _dataset(todo, flow, switch, notes)
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    pulling = threading.Thread(target=pull, args=(blocks, arrived), name="dataflow", daemon=True)
    pulling.start()
    more = True
    try:
        while more:
            try:
                more, receipts = drained(arrived)
            except WorkersDie as error:
                raise named(error, switch.in_hand()) from error
            yield receipts
            try:
                look(switch)
            except EngineLost as error:
                raise RunFailed(str(error)) from error
            if most:
                control.allow(most())
            if control.stalls(switch.stats().values(), came=bool(receipts)):
                control.abandon()
    finally:
        if more:  # cut off: it would go on in threads of Ray's, and call a Ray that may be gone by then
            control.cut_off()
            pulling.join(CUT_OFF_S)
        control.ended()


def pull(blocks: Iterable[pa.Table], arrived: Arrived) -> None:
    """Put the receipts of all blocks into the queue, and behind them how it ended: None, or the error."""
    try:
        for block in blocks:
            for text in block["receipt"].to_pylist():
                arrived.put(Receipt.from_json(text))
    except BaseException as error:  # noqa: BLE001 - carried to the driver's thread and raised there
        arrived.put(error)
    else:  # and not behind an error, which `drained` puts back: a None before it would end the run in silence
        arrived.put(None)


def drained(arrived: Arrived) -> tuple[bool, list[Receipt]]:
    """What came within a tick, and whether more may come.

    Raises:
        RunFailed, or whatever ended `pull`: once all receipts before it were given.
    """
    receipts: list[Receipt] = []
    wait: float | None = TICK_S
    while True:
        try:
            item = arrived.get(timeout=wait) if wait else arrived.get_nowait()
        except queue.Empty:
            return True, receipts
        if item is None:
            return False, receipts
        if isinstance(item, BaseException):
            if receipts:  # what was finished before it is committed first
                arrived.put(item)
                return True, receipts
            raise explained(item)
        receipts.append(item)
        wait = None


def _dataset(todo: Sequence[ShardWork], flow: Flow, switch: Switch, notes: AnswerBook | None) -> Dataset:
    context = DataContext.get_current()
    context.target_max_block_size = 1  # each row, that is each unit, is a block of its own
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # Ray would drop the rows of a block that failed
    # Ray would end a run of which no unit is finished for half an hour: long answers on a slow device take as long.
    # What hangs is found by its own watch: an engine by Replica.watch, a worker by liveness.look, a start by its limit.
    context.execution_no_progress_timeout_s = -1
    context.downstream_capacity_backpressure_ratio = READY_AHEAD
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW
    # Ray 2.60 looks at that only once half of the object store is full.
    DownstreamCapacityBackpressurePolicy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0
    low, high = flow.pool
    units = units_in_flight(
        flow.units_in_flight,
        flow.engine.max_num_seqs * (1 + flow.window.lookahead),
        rows_a_unit([work.shard for work in todo], flow.read),
    )
    handed = handed_out(units, fixed=low == high)
    items = [*(flow.ordered.pieces if flow.ordered else ()), *todo]
    blocks = min(len(items), MOST_SOURCE_BLOCKS)
    return (
        ray.data.from_items(items, override_num_blocks=blocks)
        .map_batches(
            read_and_prepare,
            fn_args=(flow.read, flow.prepare, flow.carry, switch, flow.ordered),
            batch_size=None,
            batch_format="numpy",
            num_cpus=flow.read_cpus,
            max_retries=WORKER_DEATHS,
            concurrency=min(flow.read_tasks, blocks) if flow.read_tasks else None,
        )
        .map_batches(
            EngineHost,
            fn_constructor_kwargs={
                "engine": flow.engine,
                "sampling": flow.prepare.sampling,
                "constraint": flow.contract.constraint,
                "alternatives": flow.contract.alternatives,
                "again": flow.again,
                "ask_again": flow.again.times if flow.again else 0,
                "window": flow.window,
                "stop": switch.draining,
                "report": switch.report,
                "locate": flow.locate,
                "fit": flow.fit,
                "devices": flow.engine.devices,
                "grace_s": flow.grace_s,
                "max_restarts": flow.max_restarts,
                "max_restarts_per_hour": flow.max_restarts_per_hour,
                "units_in_flight": flow.units_in_flight,
                "overdue_times": flow.overdue_times,
                "notes": notes,
                "witness": switch.witness(),
            },
            batch_size=1,  # a unit; Ray refuses None to an actor that asks for a GPU
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=handed),
            max_concurrency=units * AT_ONCE,  # those beyond wait in the host until they are wanted
            num_cpus=0,  # an engine takes its threads itself; a reserved CPU would starve the readers
            resources=dict(flow.work),
            num_gpus=flow.engine.devices if flow.engine.device == "gpu" else 0,
            max_restarts=-1,  # our own caps decide: the journal counts them over all processes of an actor
            max_task_retries=-1,
        )
        .map_batches(
            parse_and_write,
            fn_args=(flow.contract, flow.model_name, flow.gold, flow.write, switch, flow.ordered),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            max_retries=WORKER_DEATHS,
            num_cpus=0,  # bounded by `concurrency`: on one CPU a reader holds it while it waits for this stage
            resources=dict(flow.work),
            concurrency=flow.write_tasks,
        )
    )
