"""Ray for a command: of this machine's own, or the cluster's; and what a dataflow on it is told.

To import this takes Ray's seconds and 120 MB, so whoever may find nothing to do imports it late.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray._private import auto_init_hook
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.window import Window
from pipelines.config import RunConfig, RunFailed, UserError
from pipelines.dataflow import WORKER_DEATHS, Flow
from pipelines.engine_choice import Hardware, detect, fit_of
from pipelines.job.ladder import AskAgain
from pipelines.job.model import located
from pipelines.preparation import Prepared
from pipelines.sink.committed import Committed
from pipelines.specs import carry_spec, cluster_address, prepare_spec, read_spec
from pipelines.stages.write import WriteSpec

log = logging.getLogger(__name__)

STARTS = 2  # of a Ray of one's own: on a busy machine its 30 s are over before all of it is loaded, once
WORK = "work"  # the resource of nodes that take work: those of a cluster whose head should have none, in any amount
_ACCELERATOR = "accelerator_type:"  # as Ray begins the resource that names a node's GPUs


def detect_on_cluster(timeout_s: float = 600.0, *, gpu: bool = False) -> Hardware:
    """The hardware of a node that an engine will have: one with GPUs if the cluster has any now.

    It takes no GPU, and waits for none: a look at a node needs none. With `gpu` it does where no node has one, as a
    run must whose cluster grows from nothing: that makes the cluster's autoscaler bring one.

    Raises:
        UserError: nothing was found within `timeout_s`.
    """
    there = next((node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0), None)
    if there is not None:
        place = NodeAffinitySchedulingStrategy(there["NodeID"], soft=False)
        asked = ray.remote(num_cpus=0, scheduling_strategy=place)(_look_at).remote(there["Resources"])
    else:
        asked = ray.remote(num_cpus=0, num_gpus=int(gpu), resources=_work_alone())(detect).remote()
    try:
        found: Hardware = ray.get(asked, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked)
        what = "the cluster had no GPU" if gpu else "no node of the cluster told what it is"
        raise UserError(f"{what} within {timeout_s:.0f} s: ask again when it has one that answers") from None
    return found


def _look_at(resources: Mapping[str, float]) -> Hardware:
    """The hardware of this node, of which Ray has so much to give."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from a task that asks for none
    found = detect()
    if found.device == "gpu":
        return replace(found, gpus=min(found.gpus, int(resources["GPU"])))
    # NVML tells of none. The name that the node was given is a price's, for a simulated engine; none else opens here.
    given = next((name for name in resources if name.startswith(_ACCELERATOR)), "")
    return replace(found, gpu_name=given.removeprefix(_ACCELERATOR) or None, gpus=int(resources["GPU"]))


def _work_alone() -> dict[str, float]:
    """What a task asks for that takes no CPU, so that it does not land beside the driver; nothing where no node has it.

    Ray keeps such tasks off a head of no CPUs no more than off any other node.
    """
    return {WORK: 1.0} if ray.cluster_resources().get(WORK, 0) else {}


@contextmanager
def started_ray(
    config: RunConfig, options: Callable[[], Mapping[str, Any]], then: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Ray for the length of a run: the cluster's if there is an address, else one of this machine's own.

    A Ray that this process is connected to already is used and left as it is. `options`: from `quiet_ray`. `then` is
    called once it has started.
    """
    told = options()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run tells nobody of itself unless it is told to
    # As often as one whose worker crashes: by itself Ray repeats for ever what it ended for want of memory.
    os.environ.setdefault("RAY_task_oom_retries", str(WORKER_DEATHS))
    # Ray would give its workers, the engine among them, niceness 15: whatever else runs here would go before it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A thread of a dataflow that was cut off would start another Ray by its next call, once this one is gone.
    auto_init_hook.enable_auto_connect = False
    cluster = config.cluster
    # Said, or Ray would join whatever Ray of somebody else's it finds on this machine.
    own: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": cluster.num_cpus}
    if cluster.object_store_gib:
        own["object_store_memory"] = int(cluster.object_store_gib * 2**30)
    address = cluster_address(config)
    for tries_left in range(0 if address else STARTS - 1, -1, -1):
        try:
            ray.init(**told, **({"address": address} if address else own))
            break
        except Exception as error:  # Ray raises plain Exceptions for this, and ConnectionError
            ray.shutdown()
            if not tries_left:
                raise RunFailed(f"Ray did not start{f' at {address}' if address else ''}: {error}") from error
            log.warning("Ray did not start, and is started once more: %s", error)
    then()  # Ray takes SIGTERM for itself when it starts: handlers are to be set again
    try:
        yield
    finally:
        ray.shutdown()


def session_logs() -> str | None:
    """The folder, on each node, of what the processes of this session of Ray say, engines included; None: no Ray."""
    node = ray._private.worker._global_node  # no public name has it
    return None if node is None else f"{node.get_session_dir_path()}/logs"


def flow(config: RunConfig, prepared: Prepared, run_id: str, committed: Committed | None = None) -> Flow:
    """What each stage of the run needs to know; Ray is up, and says how many CPUs there are.

    `committed`: what the output holds already; None: nothing that could answer a row.
    """
    batching = config.batching
    digest = prepared.fingerprint.digest
    cpus = int(ray.cluster_resources().get("CPU", 1))
    elsewhere = cluster_address(config) is not None
    return Flow(
        read=read_spec(config, prepared),
        prepare=prepare_spec(config, prepared),
        carry=carry_spec(config, prepared, committed),
        contract=prepared.contract,
        again=_again(config, prepared),
        model_name=config.model.name,
        gold=config.job.gold,
        write=WriteSpec(
            sink_uri=prepared.sink_uri,
            run=run_id,
            fingerprint=digest,
            data_schema=prepared.data_schema,
            errors_schema=prepared.errors_schema,
        ),
        engine=prepared.engine,
        window=Window(
            mode=batching.mode,
            lookahead=batching.lookahead,
            batch_rows=batching.batch_rows,
            wait_ms=batching.wait_ms,
            ordered=config.ordering == "window",
        ),
        locate=partial(located, prepared.model),
        fit=fit_of(config, prepared.engine),
        pool=config.engine.pool,
        units_in_flight=config.engine.units_in_flight,
        overdue_times=config.engine.overdue_times,
        share=config.dedup != "none",
        max_restarts=config.engine.max_restarts,
        max_restarts_per_hour=config.engine.max_restarts_per_hour,
        grace_s=config.grace_s,
        # Half of the CPUs read, the other half is for engines and writers. A cluster may have more of them later.
        read_tasks=config.cluster.read_tasks or (None if elsewhere else max(1, cpus // 2)),
        read_cpus=2 if elsewhere and not config.cluster.read_tasks and _smallest_node() >= 2 else 1,
        write_tasks=max(1, cpus // 2, config.engine.pool[1]),
        work=_work_alone(),
    )


def _smallest_node() -> int:
    """CPUs of the node that has the fewest, of those that have any."""
    return int(min((node["Resources"].get("CPU", 0) or 1e9 for node in ray.nodes() if node["Alive"]), default=1))


def _again(config: RunConfig, prepared: Prepared) -> AskAgain | None:
    if not config.job.ladder.ask_again:
        return None
    return AskAgain(
        times=config.job.ladder.ask_again,
        model=prepared.model,
        contract=prepared.contract,
        max_tokens=prepared.sampling.max_tokens,
        max_model_len=prepared.engine.max_model_len,
    )
