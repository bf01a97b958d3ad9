"""What is asked, or the input, changes between runs and in the middle of one."""

import signal
import time

from tests.faults import checker
from tests.faults.kind import at, kind
from tests.faults.scene import Scene, in_flight
from tests.faults.seams import Fault
from tests.faults.texts import BAD, token_of

# ------------------------------------------------------------------------------------------------ what is asked changes


@kind("prompt changed: refused, and nothing is touched")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    before = checker.at_rest(scene.sink)
    scene.prompt = "b"
    scene.ended(scene.start(), 2)
    scene.happened("prompt changed")
    if checker.at_rest(scene.sink) != before:
        scene.wrong.append("a run that was refused changed the output")
    scene.prompt = "a"


def reprocessed(name: str, step: str, most: int = 1, *, amid: bool = False) -> None:
    """The prompt is changed over a whole output, and the run that asks anew is killed."""

    @kind(name)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.run()
        scene.prompt = "b"
        scene.words.append("on_change=reprocess")
        scene.happened("prompt changed")
        scene.hit(at(scene, step, most=most, amid=amid))


reprocessed("prompt changed, driver killed at a commit", "commit ledger", 2)
reprocessed("prompt changed, driver killed as it exchanges files in data", "commit data", 2)
reprocessed("prompt changed, driver killed as it removes replaced files", "delete all", amid=True)


@kind("prompt changed and changed back, driver killed in between")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    scene.prompt = "b"
    scene.words.append("on_change=reprocess")
    scene.hit(at(scene, "commit ledger", most=2))
    scene.prompt = "a"
    scene.happened("prompt changed back")
    scene.spare += 90  # what was replaced is gone, and is asked once more


@kind("prompt changed after a kill")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.words.append("on_change=reprocess")
    scene.hit(Fault(step="commit ledger", nth=scene.rng.randint(1, 2)))
    scene.prompt = "b"
    scene.happened("prompt changed")
    scene.spare += 90


@kind("unit.rows changed after a kill")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit ledger", most=2))
    scene.words.append(f"unit.rows={scene.rng.choice((3, 5, 13))}")
    scene.happened("unit.rows changed")


@kind("dead letters asked again, driver killed")
def _(scene: Scene) -> None:
    scene.set_up(special=(BAD, BAD, BAD))
    refused = f"engine.simulated.bad_token_id={token_of('okapi')}"
    scene.run(refused)
    scene.spare += 10
    scene.words.append("retry_errors=[engine]")
    step = scene.rng.choice(("put data", "commit ledger", "commit data", "commit errors", "delete all"))
    scene.hit(at(scene, step))


# ---------------------------------------------------------------------------------------------------- the input changes


def deleted(name: str, step: str) -> None:
    @kind(name)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.run()
        scene.change(scene.rng.choice(list(scene.shards)), None)
        scene.happened("shard deleted")
        scene.hit(at(scene, step))


deleted("shard deleted, driver killed as it takes its answers away", "remove")
deleted("shard deleted, driver killed at the commit of that", "commit ledger")
deleted("shard deleted, driver killed as it removes the files", "delete all")


@kind("shard deleted and back after a kill")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit data", most=2))
    scene.to_the_end()  # were it gone before others are answered, the whole corpus would seem to be another
    shard = scene.rng.choice(list(scene.shards))
    texts = scene.shards[shard]
    scene.change(shard, None)
    scene.to_the_end()
    scene.change(shard, texts)
    scene.happened("shard deleted and back")
    scene.spare += len(texts)


@kind("shard changed between a kill and the next start")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit ledger", most=2))
    shard = scene.rng.choice(list(scene.shards))
    scene.change(shard, scene.edited(shard))
    scene.happened("shard changed")
    scene.spare += len(scene.shards[shard])


@kind("shard grown between a kill and the next start")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit ledger", most=2))
    scene.change("b.jsonl", [*scene.shards["b.jsonl"], *scene.more(9)])
    scene.happened("shard grown")
    scene.spare += len(scene.shards["b.jsonl"])


@kind("shard of a whole output changed, driver killed as it exchanges it")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    shard = scene.rng.choice(list(scene.shards))
    scene.change(shard, scene.edited(shard))
    scene.happened("shard changed")
    scene.hit(at(scene, scene.rng.choice(("put data", "commit ledger", "commit data", "delete all"))))


@kind("shard changed while it is read")
def _(scene: Scene) -> None:
    scene.set_up()
    shard = scene.rng.choice(list(scene.shards))
    driver = scene.start("unit.rows=4")
    if driver.wait_until("engines ready"):
        time.sleep(scene.rng.uniform(0, 0.3))
        scene.change(shard, scene.edited(shard))
        scene.happened("shard changed")
    scene.spare += len(scene.shards[shard])
    scene.ended(driver, 0, 1, 3)


def waiting(name: str, step: str, most: int = 1) -> None:
    """A changed shard is half done when the run is stopped: its files move aside, and the driver is killed at that."""

    @kind(name)
    def _(scene: Scene) -> None:
        _changed_and_stopped(scene, at(scene, step, most=most))


def _changed_and_stopped(scene: Scene, *faults: Fault) -> None:
    scene.set_up()
    scene.run()
    scene.change("c/d.parquet", scene.more(60))
    scene.happened("shard changed")
    scene.arm(Fault(step="commit ledger", when="after", do="term"), *faults)
    scene.spare += 2 * in_flight(scene.runner)
    scene.ended(scene.start("grace_s=30", "engine.simulated.latency_s=0.3", "unit.rows=2"), 4, -9, 0)


waiting("driver killed as it sets waiting files aside", "set_aside")
waiting("driver killed as it moves a waiting file", "move", 2)
waiting("driver killed between the copy of a waiting file and its removal", "copy waiting", 2)


@kind("driver killed as it brings waiting files back")
def _(scene: Scene) -> None:
    _changed_and_stopped(scene)
    scene.hit(at(scene, scene.rng.choice(("move", "delete waiting")), most=2))


@kind("shard has another name, driver killed")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    name = scene.rng.choice(("a.parquet", "c/d.parquet"))
    scene.change(f"moved/{name}", scene.shards[name])  # other bytes: the ids tell the name
    scene.change(name, None)
    scene.happened("shard renamed")
    scene.spare += len(scene.shards[name])
    scene.hit(at(scene, scene.rng.choice(("put data", "commit ledger", "commit data", "remove"))))


@kind("driver sleeps as it moves a file aside while another takes its place")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    scene.change("c/d.parquet", scene.more(60))
    scene.happened("shard changed")
    scene.arm(
        Fault(step="commit ledger", when="after", do="term"),
        Fault(step="move", when=scene.rng.choice(("before", "after")), do="stop", who="first"),
    )
    first = scene.start("grace_s=30", "engine.simulated.latency_s=0.3", "unit.rows=2", who="first")
    scene.spare += 2 * in_flight(scene.runner)
    if first.wait_until("stop "):
        scene.forget_alive()  # as if it slept on another machine
        second = scene.start(who="second")
        second.wait()
        first.send(signal.SIGCONT)
        scene.ended(second, 0)
    scene.ended(first, 1, 4, 0)
