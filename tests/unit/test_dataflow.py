"""How the driver learns of what was finished, and of what ended the flow; no Ray is started."""

import inspect
import queue
from collections.abc import Iterator

import pyarrow as pa
import pytest
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import DownstreamCapacityBackpressurePolicy
from ray.exceptions import WorkerCrashedError

from actors.control import InHand
from pipelines.config import RunFailed
from pipelines.dataflow import Arrived, drained, pull
from pipelines.flow_errors import WorkersDie, named
from pipelines.sink.receipt import Receipt
from tests.receipts import receipt

UNITS = [receipt(start=0, stop=3), receipt(start=3, stop=5), receipt(start=5, stop=9)]


def _blocks(*units: Receipt, then: BaseException | None = None) -> Iterator[pa.Table]:
    for unit in units:
        yield pa.table({"receipt": [unit.to_json()]})
    if then is not None:
        raise then


def _pulled(blocks: Iterator[pa.Table]) -> Arrived:
    arrived: Arrived = queue.SimpleQueue()
    pull(blocks, arrived)
    return arrived


def test_all_receipts_of_a_flow_come_once_and_then_its_end() -> None:
    arrived = _pulled(_blocks(*UNITS))

    assert drained(arrived) == (False, UNITS)


def test_receipts_share_in_memory_what_they_have_in_common() -> None:
    arrived = _pulled(_blocks(receipt(start=0, stop=3, run="a run"), receipt(start=3, stop=5, run="a run")))

    _, (one, other) = drained(arrived)

    assert one.run is other.run
    assert one.fingerprint is other.fingerprint


def test_workers_that_die_are_told_with_what_they_died_over_and_no_bystander() -> None:
    arrived = _pulled(_blocks(then=WorkerCrashedError()))

    with pytest.raises(WorkersDie) as died:
        drained(arrived)

    told = str(named(died.value, [InHand("a.parquet", 1), InHand("b.parquet", 11), InHand("c.parquet-0", 1)]))
    assert "each of the 11 times that b.parquet was begun (WorkerCrashedError)" in told
    assert "a.parquet" not in told
    assert "workers kept dying (WorkerCrashedError)" in str(named(died.value, []))


def test_a_failure_is_raised_with_its_reason_once_the_receipts_before_it_were_given() -> None:
    arrived = _pulled(_blocks(*UNITS[:2], then=RunFailed("the store is away")))

    assert drained(arrived) == (True, UNITS[:2])
    with pytest.raises(RunFailed, match="the store is away"):
        drained(arrived)


def test_a_failure_before_any_receipt_is_raised_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        drained(_pulled(_blocks(then=ZeroDivisionError())))


def test_a_flow_at_work_is_not_taken_for_one_that_has_ended() -> None:
    arrived: Arrived = queue.SimpleQueue()
    arrived.put(UNITS[0])

    assert drained(arrived) == (True, [UNITS[0]])


def test_ray_still_has_what_the_flow_sets() -> None:
    # Set on a class and a context that would take any name: in a Ray without them it would change nothing, silently.
    policy = inspect.getsource(DownstreamCapacityBackpressurePolicy)

    assert policy.count("OBJECT_STORE_BUDGET_UTIL_THRESHOLD") >= 2  # defined, and looked at
    fields = inspect.signature(DataContext).parameters
    assert {
        *("target_max_block_size", "max_errored_blocks", "enable_progress_bars"),
        *("downstream_capacity_backpressure_ratio", "execution_no_progress_timeout_s"),
    } <= fields.keys()
