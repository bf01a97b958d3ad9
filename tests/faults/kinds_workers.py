"""On a real Ray, whose workers, nodes and engines fail one by one."""

import time
from dataclasses import replace
from typing import Any

from tests.faults.kind import DISK, Disturb, kind
from tests.faults.kinds_run import sleeps
from tests.faults.scene import Scene, in_flight
from tests.faults.seams import Fault

# ------------------------------------------------------------------------------------------ a real Ray, and its workers


def on_ray(name: str, *faults: Fault, allowed: tuple[int, ...] = (0,), most: int = 1, **how: Any) -> None:
    """One of these faults, in whatever process of a run on Ray comes to it."""

    @kind(name, runner="ray", **how)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.spare += in_flight(scene.runner)
        fault = scene.rng.choice(faults)
        scene.hit(replace(fault, nth=scene.rng.randint(1, most)), allowed=allowed)


on_ray("Ray: engine actor killed", Fault(step="answer"), most=60, times=3)
on_ray("Ray: read worker killed", Fault(step="prepare"), most=8)
on_ray("Ray: write worker killed", Fault(step="put data"), Fault(step="put data", when="after"), most=9, times=3)
on_ray("Ray: a bug in a write worker", Fault(step="put data", do="bug"), allowed=(1,), most=9, times=1)
on_ray(
    "Ray: driver killed at a commit",
    *(Fault(step=f"commit {table}", when=when) for table in ("ledger", "data") for when in ("before", "after")),
    allowed=(-9,),
    most=2,
    times=4,
)
on_ray("Ray: SIGTERM with 5 s of grace", Fault(step="commit ledger", do="term"), allowed=(4, 0), times=2)


@kind("Ray: engine actor stopped", runner="ray", times=1)
def _(scene: Scene) -> None:
    scene.tweaks["actors.control:Switch.create.silent_s"] = 6.0
    scene.set_up()
    scene.spare += 2 * in_flight(scene.runner)
    scene.hit(Fault(step="answer", nth=scene.rng.randint(5, 60), do="stop"), allowed=(0,))


@kind("Ray: driver killed at a moment of its own", runner="ray")
def _(scene: Scene) -> None:
    scene.set_up()
    driver = scene.start()
    if driver.wait_until("engines ready"):
        time.sleep(scene.rng.uniform(0, 2))
    scene.kill(driver)


@kind("Ray: driver sleeps while another takes its place", runner="ray", times=1)
def _(scene: Scene) -> None:
    sleeps(scene, ("commit ledger", "commit data"))


@kind("Ray: a node lost", runner="ray", times=1)
def _(scene: Scene) -> None:
    scene.set_up()
    scene.lab.ray.order("add")
    scene.spare += 2 * in_flight(scene.runner)
    driver = scene.start("engine.replicas=2")
    driver.wait_until("engines ready")
    time.sleep(scene.rng.uniform(0, 1))
    scene.lab.ray.order("lose")
    scene.happened("node lost")
    scene.ended(driver, 0, 1)


@kind("Ray: all of it killed", runner="ray", times=2)
def _(scene: Scene) -> None:
    scene.own_ray = True
    scene.words.append("cluster.num_cpus=2")
    scene.set_up()
    driver = scene.start("engine.simulated.latency_s=0.2")
    if driver.wait_until("engines ready"):
        time.sleep(scene.rng.uniform(0, 1))
    for process in scene.processes(""):
        process.kill()
    scene.happened("all of Ray killed")
    scene.spare += 2 * in_flight(scene.runner)
    scene.ended(driver, 1, 0)


# ------------------------------------------------------------------------------------------------------ the real engine


VLLM = ("model.max_model_len=256", "model.max_num_seqs=8", "engine.kv_cache_gib=0.25", "job.sampling.max_tokens=16")


def on_vllm(name: str, disturb: Disturb, *, times: int = 1) -> None:
    """The same on vLLM: as many as there is time for, since each engine takes half a minute to start."""

    @kind(f"vLLM: {name}", DISK, runner="vllm", times=times)
    def _(scene: Scene) -> None:
        scene.words += VLLM
        scene.set_up()
        disturb(scene)


def _actor_killed(scene: Scene) -> None:
    """While a first unit is written and others are answered. On CPU the engine is in that very process; an EngineCore
    of its own there is on GPUs alone, so no kind kills one."""
    scene.arm(Fault(step="put data", do="linger"))
    driver = scene.start()
    if driver.wait_until("linger "):
        for actor in scene.processes("EngineHost"):
            actor.kill()
            scene.happened("engine actor killed")
    scene.ended(driver, 0)


def _strike(*faults: Fault, allowed: tuple[int, ...], most: int = 1, words: tuple[str, ...] = ()) -> Disturb:
    def disturb(scene: Scene) -> None:
        for fault in faults:
            scene.hit(replace(fault, nth=scene.rng.randint(1, most)), *words, allowed=allowed)

    return disturb


on_vllm("read worker killed", _strike(Fault(step="prepare"), allowed=(0,), most=4), times=2)
on_vllm("engine actor killed", _actor_killed, times=2)
on_vllm("write worker killed", _strike(Fault(step="put data"), allowed=(0,), most=4))
on_vllm("driver killed at the commit", _strike(Fault(step="commit ledger"), allowed=(-9,)))
on_vllm("driver killed after the commit", _strike(Fault(step="commit ledger", when="after"), allowed=(-9,)))
on_vllm(
    "driver killed at the commit of data, then again",
    _strike(Fault(step="commit data"), Fault(step="put data", when="after"), allowed=(-9, 0)),
)
on_vllm("SIGTERM with grace", _strike(Fault(step="commit ledger", do="term"), allowed=(4, 0), words=("grace_s=20",)))
on_vllm("SIGTERM without grace", _strike(Fault(step="commit ledger", do="term"), allowed=(4, 0), words=("grace_s=0",)))
on_vllm("SIGINT twice", _strike(Fault(step="commit ledger", do="interrupt"), allowed=(4, 0), words=("grace_s=30",)))
