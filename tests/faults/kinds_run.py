"""Signals, two runs at once, errors in the process, disks that are full."""

import signal
import time
from dataclasses import replace

from tests.faults.disk import small_disk
from tests.faults.kind import BOTH, DISK, at, kind
from tests.faults.scene import Scene, in_flight
from tests.faults.seams import Deed, Fault

# -------------------------------------------------------------------------------------------------------------- signals

STEPS = ("put data", "commit ledger", "commit data", "begin data", "take_over", "follow", "close", "put manifest")


@kind("SIGTERM without grace")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.spare += in_flight(scene.runner)
    for _ in range(2):
        scene.hit(at(scene, scene.rng.choice(STEPS), most=2, do="term"), "grace_s=0", allowed=(4, 0))


@kind("SIGTERM with 5 s of grace")
def _(scene: Scene) -> None:
    scene.set_up()
    for _ in range(2):
        scene.hit(at(scene, scene.rng.choice(STEPS), most=2, do="term"), "grace_s=5", allowed=(4, 0))


@kind("SIGTERM at a moment of its own")
def _(scene: Scene) -> None:
    scene.set_up()
    driver = scene.start(f"grace_s={scene.rng.choice((0, 5))}")
    time.sleep(scene.rng.uniform(0.3, scene.lab.typical_s))
    scene.spare += in_flight(scene.runner)
    scene.signal(driver, signal.SIGTERM)
    scene.ended(driver, 4, 0, -15)


@kind("SIGINT twice")
def _(scene: Scene) -> None:
    scene.set_up()
    first, second = scene.rng.choice(
        (("commit ledger", "commit data"), ("put data", "commit ledger"), ("follow", "close"))
    )
    scene.arm(at(scene, first, do="interrupt"), at(scene, second, do="interrupt"))
    scene.spare += in_flight(scene.runner)
    scene.ended(scene.start("grace_s=3600"), 4, 0)


@kind("driver stopped for 2 s")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.arm(at(scene, scene.rng.choice(("put data", "commit ledger", "commit data", "begin errors")), do="stop"))
    driver = scene.start()
    if driver.wait_until("stop "):
        time.sleep(2)
        driver.send(signal.SIGCONT)
    scene.ended(driver, 0)


# ------------------------------------------------------------------------------------------------------------- two runs


def zombie(name: str, *steps: str) -> None:
    """A driver sleeps at a step while another takes its place, and wakes."""

    @kind(name)
    def _(scene: Scene) -> None:
        sleeps(scene, steps)


def sleeps(scene: Scene, steps: tuple[str, ...]) -> None:
    """A driver sleeps at one of these steps while another takes its place; it wakes during that, or after."""
    scene.set_up()
    scene.arm(replace(at(scene, scene.rng.choice(steps), do="stop"), who="first"))
    first = scene.start(who="first")
    if first.wait_until("stop "):
        scene.forget_alive()  # as if it slept on another machine
        scene.spare += 90  # once awake it goes on asking, until a commit of its own tells it that it was overtaken
        second = scene.start(who="second")
        if scene.rng.random() < 0.5:
            second.wait()
        else:
            second.wait_until("engines ready")
        first.send(signal.SIGCONT)
        scene.ended(second, 0)
    scene.ended(first, 1, 0)


zombie("driver sleeps before a commit while another takes its place", "commit ledger", "commit data", "commit errors")
zombie("driver sleeps at a write while another takes its place", "put data", "put errors")
zombie("driver sleeps at its start while another takes its place", "begin ledger", "begin data", "take_over")
zombie("driver sleeps as it cleans while another takes its place", "clean", "set_aside")


@kind("driver sleeps as it cleans what another takes over")
def _(scene: Scene) -> None:
    """What it cleans away are a killed run's answers to another prompt, which is asked again meanwhile."""
    scene.set_up()
    scene.words.append("on_change=reprocess")
    scene.hit(Fault(step="commit ledger", nth=scene.rng.randint(1, 2)))
    scene.arm(Fault(step="clean", do="stop", who="first"))
    scene.prompt = "b"
    first = scene.start(who="first")
    if first.wait_until("stop "):
        scene.forget_alive()
        scene.prompt = "a"
        scene.spare += 90
        scene.ended(scene.start(who="second"), 0)
        first.send(signal.SIGCONT)
    scene.ended(first, 1)


@kind("two runs started together")
def _(scene: Scene) -> None:
    scene.set_up()
    first, second = scene.start(who="first"), scene.start(who="second")
    scene.happened("two runs at once")
    scene.spare += 90
    codes = sorted((scene.ended(first, 0, 1, 2), scene.ended(second, 0, 1, 2)))
    if codes[0] != 0:
        scene.wrong.append(f"of two runs none was done: exits {codes}")


@kind("a second run while one is at work")
def _(scene: Scene) -> None:
    scene.set_up()
    first = scene.start("engine.simulated.latency_s=2", who="first")
    first.wait_until("engines ready")
    second = scene.start(who="second")
    scene.happened("a second run")
    scene.ended(second, 2)
    if "is at work on this output" not in second.log():
        scene.wrong.append("the second run was not told who is at work")
    scene.ended(first, 0)


# ------------------------------------------------------------------------------------------------------ things go wrong


def raising(name: str, step: str, do: Deed, stores: tuple[str, ...] = BOTH, most: int = 5) -> None:
    """An exception, and no kill: the run ends in 1, or in 2 where it tried its store before it began."""

    @kind(name, stores)
    def _(scene: Scene) -> None:
        scene.set_up()
        scene.spare += in_flight(scene.runner)
        scene.hit(at(scene, step, most=most, do=do), allowed=(1, 0, 2))


raising("a bug at the encoding of a file", "encode", "bug")
raising("a bug at the write of a data file", "put data", "bug")
raising("an I/O error at the write of a data file", "put data", "eio", DISK)
raising("no space left at an fsync", "fsync", "enospc", DISK)
raising("a bug as the tables follow", "follow", "bug", most=2)
raising("a bug at the end", "close", "bug", most=1)


@kind("disk full", DISK)
def _(scene: Scene) -> None:
    disk = scene.stack.enter_context(small_disk(scene.folder / "disk", kib=scene.rng.choice((120, 180, 240, 300))))
    scene.set_up(sink=disk.folder)
    scene.spare += in_flight(scene.runner)
    if scene.ended(scene.start(), 0, 1) == 1:
        scene.happened("disk full")
    disk.remount("size=64m")  # also where it was enough just so: another start has to try whether it can write


@kind("disk made read-only in the middle", DISK)
def _(scene: Scene) -> None:
    disk = scene.stack.enter_context(small_disk(scene.folder / "disk", kib=65536))
    scene.set_up(sink=disk.folder)
    scene.spare += in_flight(scene.runner)
    driver = scene.start()
    if driver.wait_until("engines ready"):
        time.sleep(scene.rng.uniform(0, 0.5))
        disk.remount("ro")
        scene.happened("read-only")
    scene.ended(driver, 1, 0)
    disk.remount("rw")


@kind("clock jumps by an hour")
def _(scene: Scene) -> None:
    scene.set_up()
    deed: Deed = scene.rng.choice(("clock ahead", "clock back"))
    scene.arm(at(scene, scene.rng.choice(STEPS), do=deed))
    scene.ended(scene.start(), 0)
    scene.hit(at(scene, "follow"))
