"""A driver is killed: at each step of a commit, at a start after a crash, at a moment of its own."""

import time

from tests.faults.kind import BOTH, DISK, S3, at, kind
from tests.faults.proxy import Effect, Rule
from tests.faults.scene import Scene, in_flight
from tests.faults.seams import Fault

# ----------------------------------------------------------------------------------------- a driver is killed at a step


def fresh(name: str, step: str, most: int = 1, stores: tuple[str, ...] = BOTH, *, amid: bool = False) -> None:
    """A first run is killed at a step."""

    @kind(name, stores)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.hit(at(scene, step, most=most, amid=amid))


fresh("driver killed at the write of dead letters", "put errors", 2)
fresh("driver killed at the write of a data file", "put data", 9)
fresh("driver killed at an fsync: a part of a file stays", "fsync", 9, DISK)
fresh("driver killed at an append to the ledger, the commit", "commit ledger", 2)
fresh("driver killed at a commit of data", "commit data", 2)
fresh("driver killed at a commit of dead letters", "commit errors")
fresh("driver killed as it creates the ledger", "create ledger")
fresh("driver killed as it creates the table of answers", "create data")
fresh("driver killed as it creates the table of dead letters", "create errors")
fresh("driver killed as it fences off others in the ledger", "begin ledger")
fresh("driver killed as it fences off others in data", "begin data")
fresh("driver killed as it fences off others in errors", "begin errors")
fresh("driver killed at its sign of life", "put alive")
fresh("driver killed at its manifest", "put manifest", 2)
fresh("driver killed as it leaves", "delete alive")


@kind("driver killed at a moment of its own")
def _(scene: Scene) -> None:
    scene.set_up()
    for _ in range(2):
        driver = scene.start()
        time.sleep(scene.rng.uniform(0.2, 1.3 * scene.lab.typical_s))
        scene.kill(driver)


@kind("driver killed at a request to the store", S3, times=4)
def _(scene: Scene) -> None:
    scene.set_up()
    effect: Effect = scene.rng.choice(("kill before", "kill after"))
    scene.through(Rule(effect, nth=scene.rng.randint(1, 60)))
    scene.spare += in_flight(scene.runner)
    scene.ended(scene.start(), -9, 0)


@kind("driver killed again and again at random steps")
def _(scene: Scene) -> None:
    scene.set_up()
    for _ in range(3):
        step = scene.rng.choice(
            ("put data", "commit ledger", "commit data", "begin data", "take_over", "clean", "follow")
        )
        scene.hit(at(scene, step, most=2))


# -------------------------------------------------------------------------------- a start, after a crash, is killed too


def after_a_crash(name: str, step: str, most: int = 1, *, amid: bool = False) -> None:
    """Finished units lie about that no receipt names; the next start takes them over, and is killed."""

    @kind(name)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.hit(Fault(step="commit ledger", nth=scene.rng.randint(1, 2)))
        scene.hit(at(scene, step, most=most, amid=amid))


after_a_crash("driver killed as it takes over finished units", "take_over")
after_a_crash("driver killed as it commits what it took over", "commit ledger")
after_a_crash("driver killed as it cleans after a crash", "clean")
after_a_crash("driver killed as it brings the tables up to the ledger", "follow")


@kind("driver killed as it removes what a crash left of a changed input")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(Fault(step="commit ledger", nth=scene.rng.randint(1, 2)))
    for shard in list(scene.shards):
        scene.change(shard, scene.edited(shard))
    scene.hit(at(scene, "delete all", amid=True))


@kind("driver killed as it compacts the ledger")
def _(scene: Scene) -> None:
    scene.tweaks["pipelines.sink.ledger:COMPACT_FILES"] = 2
    scene.set_up()
    scene.hit(at(scene, scene.rng.choice(("compact", "compact ledger"))))
