"""A pool of engines that grows, shrinks and loses a node: Ray with several nodes, whose GPUs are names, and the
simulated engine, which holds one of them as a real one would."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest
import ray
from deltalake import DeltaTable
from ray._private.state import state
from ray.cluster_utils import Cluster

from actors.control import Switch
from pipelines import flow_control
from pipelines.cluster import detect_on_cluster
from pipelines.config import Exit
from tests.runs import data, errors, job, ledger, write_texts

pytestmark = pytest.mark.slow

ROWS, UNIT_ROWS = 2400, 20
# 80 rows a second from each engine, of which at most three units are waiting for it or in it.
SLOW = (
    "engine.device=gpu", f"unit.rows={UNIT_ROWS}", "engine.units_in_flight=1", "batching.max_num_seqs=4",
    "engine.simulated.latency_s=0.05", "dedup=none",
)  # fmt: skip
IN_FLIGHT = 3 * UNIT_ROWS
WORK = {"work": 1000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that has no CPU, as in k8s/, and a node with two GPUs."""
    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    made: Cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    added(made, num_cpus=2, num_gpus=2, resources=WORK | {"accelerator_type:H100": 1})
    os.environ["RAY_ADDRESS"] = made.address
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def added(cluster: Cluster, **words: Any) -> Any:
    """A node more, which has no CPU unless these words say so."""
    return patiently(lambda: cluster.add_node(**({"num_cpus": 0, "object_store_memory": 2**27} | words)))


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which are too few on a machine that does much else."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            last = error
    raise last


@dataclass
class Seen:
    """What somebody saw who looked at Ray five times a second while a run was under way."""

    most: int = 0  # engines that were there at once
    alive_s: float = 0.0  # of engines that had started
    there_s: float = 0.0  # of these, and of those that were starting
    rows_asked: dict[str, int] = field(default_factory=dict)  # by process
    nodes: set[str] = field(default_factory=set)  # that had an engine


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda _: None) -> Iterator[Seen]:
    """Look on; `then` is told of the number of engines that serve."""
    seen, over, switches = Seen(), threading.Event(), []
    create = Switch.create

    def kept(**words: Any) -> Switch:
        switches.append(create(**words))
        return switches[-1]

    monkeypatch.setattr(Switch, "create", kept)

    def look() -> None:
        at = time.monotonic()
        while not over.wait(0.2):
            if not switches:
                continue
            before, at = at, time.monotonic()
            states: defaultdict[str, int] = defaultdict(int)
            for actor in state.actor_table(None).values():
                if "EngineHost" in actor["ActorClassName"]:
                    states[actor["State"]] += 1
                    seen.nodes |= {actor["Address"]["NodeID"]} if actor["State"] == "ALIVE" else set()
            serving = 0
            for stats in ray.get(switches[-1].actor.stats.remote()).values():
                seen.rows_asked[stats.replica] = stats.rows_ended
                serving += stats.phase == "serving" and stats.rows_ended > 0
            seen.most = max(seen.most, states["ALIVE"])
            seen.alive_s += states["ALIVE"] * (at - before)
            seen.there_s += (states["ALIVE"] + states["PENDING_CREATION"]) * (at - before)
            then(serving)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join(60)


def billed_s(sink: Path) -> float:
    with duckdb.connect() as connection:
        connection.register("costs", DeltaTable(str(sink / "costs")).to_pyarrow_dataset())
        (found,) = connection.sql("select sum(device_ns) as ns, any_value(device) as device from costs").fetchall()
    assert found[1] == "H100"
    return float(found[0]) / 1e9


def corpus(folder: Path, rows: int = ROWS) -> Path:
    write_texts(folder, [[f"row {number}" for number in range(rows)]])
    return folder


@dataclass
class Grown:
    """A run whose pool grew."""

    seen: Seen
    code: Exit
    sink: Path
    took_s: float


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Grown]:
    folder = tmp_path_factory.mktemp("grown")
    joined: list[Any] = []

    def join(serving: int) -> None:
        if serving == 2 and not joined:  # all that the cluster has
            joined.append(added(cluster, num_gpus=1, resources=WORK))

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, watched(patch, join) as seen:
        code = job(*SLOW, "engine.replicas=[1,3]", source=corpus(folder / "in"), sink=folder / "out")
    for node in joined:
        cluster.remove_node(node)
    yield Grown(seen, code, folder / "out", time.monotonic() - began)


def test_a_pool_grows_while_rows_wait_and_onto_a_node_that_joins(grown: Grown) -> None:
    assert grown.code is Exit.DONE
    assert grown.seen.most == 3
    assert len(data(grown.sink)) == ROWS


def test_a_node_that_is_lost_and_not_replaced_costs_its_rows_in_flight_and_nothing_else(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_control, "STALLED_S", 3.0)
    there = [added(cluster, num_gpus=1, resources=WORK)]

    def lose(serving: int) -> None:
        if serving == 3 and there:
            cluster.remove_node(there.pop(), allow_graceful=False)

    with watched(monkeypatch, lose) as seen:
        code = job(*SLOW, "engine.replicas=3", source=corpus(tmp_path / "in"), sink=tmp_path / "out")

    assert not there
    assert code is Exit.DONE
    assert [row["id"] for row in data(tmp_path / "out")] == list(range(ROWS))
    assert errors(tmp_path / "out") == []
    assert sum(receipt["rows_in"] for receipt in ledger(tmp_path / "out")) == ROWS
    assert sum(seen.rows_asked.values()) <= ROWS + IN_FLIGHT


def test_engines_that_ask_for_no_cpu_do_not_land_beside_the_driver(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = cluster.head_node.node_id
    words = ("engine.replicas=3", "unit.rows=10", "engine.units_in_flight=1", "engine.simulated.latency_s=0.05")
    with watched(monkeypatch) as seen:
        assert job(*words, source=corpus(tmp_path / "in", 300), sink=tmp_path / "out") is Exit.DONE

    assert seen.nodes
    assert head not in seen.nodes


def test_a_look_at_the_hardware_takes_no_gpu(cluster: Cluster) -> None:
    holder = ray.remote(num_gpus=2, num_cpus=0)(time.sleep).options(resources={"accelerator_type:H100": 0.1})
    holding = holder.remote(600)
    while ray.available_resources().get("GPU", 0):
        time.sleep(0.05)

    found = detect_on_cluster(60)

    ray.cancel(holding, force=True)
    assert (found.gpu_name, found.gpus) == ("H100", 2)


def test_the_bill_of_a_pool_is_for_the_engines_that_were_there(grown: Grown) -> None:
    seen = grown.seen
    waited_s = grown.took_s - seen.there_s / seen.most  # at most: for the fewest, one, before it was there and after
    assert seen.alive_s * 0.8 <= billed_s(grown.sink) <= seen.there_s * 1.2 + waited_s
