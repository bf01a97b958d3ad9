"""What the tasks of a flow do: shards to units with their prompts, answered units to files and receipts.

Each is a generator or a function of one block, as Ray Data calls it; dataflow.py joins them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from actors.control import Switch
from pipelines.changes import ShardWork
from pipelines.job.contract import OutputContract
from pipelines.sink.receipt import Receipt
from pipelines.stages.carry import Answered, CarrySpec, earlier, kept
from pipelines.stages.gold import agreement
from pipelines.stages.measures import measured
from pipelines.stages.ordered import Ordered, Piece, keep_answers, unanswered, wait_for_answers
from pipelines.stages.parcel import Parcel
from pipelines.stages.parse import parse
from pipelines.stages.prepare import PrepareSpec, prepare, without_prompts
from pipelines.stages.read import ReadSpec, read_units
from pipelines.stages.write import WriteSpec, write_unit


def read_and_prepare(
    batch: dict[str, Any],
    read: ReadSpec,
    prepare_spec: PrepareSpec,
    carry: CarrySpec,
    switch: Switch,
    ordered: Ordered | None = None,
) -> Iterator[pa.Table]:
    """The units of some shards, with their prompts, but for what the output has answers to already; ends early when
    the run is draining. Of sorted prompts, pieces; units behind them wait until all pieces are answered."""
    for work in batch["item"]:
        if isinstance(work, Piece):
            if ordered and not switch.draining() and (piece := unanswered(ordered, work)):
                yield piece.to_block()
            continue
        if ordered and not wait_for_answers(ordered, switch.draining):
            return
        switch.begins(work.shard.path)
        for parcel in prepared_units(work, read, prepare_spec, carry):
            if switch.draining():
                return
            yield parcel.to_block()
        switch.ends(work.shard.path)


def prepared_units(work: ShardWork, read: ReadSpec, prepare_spec: PrepareSpec, carry: CarrySpec) -> Iterator[Parcel]:
    """The units of a shard, with the prompts of what the output has no answers to."""
    answered = earlier(carry) if carry.earlier else Answered.open(work.answered, carry) if work.answered else None
    since = time.monotonic()
    for parcel in read_units(
        work.shard,
        read,
        done=work.done,
        redo=work.redo,
        limit=work.limit,
        ends_here=work.ends_here,
        leads=work.leads,
        tail=work.tail,
    ):
        read_at = time.monotonic()
        carried = kept(parcel.redo, carry) if parcel.redo else None
        prompts = prepare(parcel.rows, prepare_spec, carried)
        if answered and not carried and (carried := answered.find(prompts["_key"].to_pylist())):
            prompts = without_prompts(prompts, carried)
        yield replace(
            parcel,
            prompts=prompts,
            carried=carried,
            read_seconds=read_at - since,
            prepare_seconds=time.monotonic() - read_at,
        )
        since = time.monotonic()  # until here it waited for room


def parse_and_write(
    block: pa.Table,
    contract: OutputContract,
    model_name: str,
    gold: str | None,
    spec: WriteSpec,
    switch: Switch,
    ordered: Ordered | None = None,
) -> pa.Table:
    """One answered unit to its files; its receipt, or nothing if the engine handed the unit back, or it is a piece of
    sorted prompts: then its answers are kept."""
    parcel = Parcel.from_block(block)
    if parcel.ordered and ordered:
        keep_answers(parcel, ordered.uri)
        return _receipts([])
    if parcel.answers is None:
        return _receipts([])
    switch.begins(parcel.unit.name)
    parsed = parse(
        parcel.rows,
        parcel.prompts,
        parcel.answers,
        shard=parcel.unit.shard,
        contract=contract,
        model_name=model_name,
        at=time.time(),
        carried=parcel.carried,
    )
    gold_rows, gold_correct = agreement(parsed.data, gold)
    receipt = write_unit(
        parcel.unit,
        parsed.data,
        parsed.dead,
        parcel.answers,
        spec,
        gold_rows=gold_rows,
        gold_correct=gold_correct,
        measures=measured(parsed.data, contract, gold).to_json(),
        read_at=parcel.read_at,
        replaces=parcel.redo.replaces if parcel.redo else None,
        carried=parcel.carried,
        left_out=parcel.left_out,
    )
    switch.ends(parcel.unit.name)
    return _receipts([receipt])


def _receipts(receipts: Sequence[Receipt]) -> pa.Table:
    return pa.table({"receipt": pa.array([receipt.to_json() for receipt in receipts], pa.string())})
