"""The store fails; the engine fails; files lie about."""

import signal
import time
from collections.abc import Callable

from tests.faults.kind import S3, at, kind
from tests.faults.proxy import Rule
from tests.faults.scene import UNIT_ROWS, Scene, in_flight
from tests.faults.texts import HANG, POISON, token_of

# ------------------------------------------------------------------------------------------------------ the store fails


def stormy(name: str, *, allowed: tuple[int, ...] = (0,), spare: bool = False, **settings: str) -> Callable[..., None]:
    """Rules for the requests of one run."""

    def entered(rules: Callable[[Scene], list[Rule]]) -> None:
        @kind(name, S3)
        def _(scene: Scene) -> None:
            scene.environment |= settings
            scene.set_up()
            scene.spare += spare and in_flight(scene.runner)
            scene.through(*rules(scene))
            scene.ended(scene.start(), *allowed)

    return entered


@stormy("503 SlowDown, a burst of it")
def _(scene: Scene) -> list[Rule]:
    return [Rule("503", match="", nth=scene.rng.randint(20, 80), times=scene.rng.randint(3, 25))]


@stormy("store slow")
def _(scene: Scene) -> list[Rule]:
    return [Rule("slow", match="", nth=1, times=10_000, seconds=scene.rng.uniform(0.02, 0.06))]


@stormy("connections cut before a write takes effect")
def _(scene: Scene) -> list[Rule]:
    return [Rule("cut", nth=scene.rng.randint(12, 60), times=scene.rng.randint(1, 3))]


@stormy("answers of writes lost")
def _(scene: Scene) -> list[Rule]:
    return [Rule("lost", nth=scene.rng.randint(12, 60), times=scene.rng.randint(1, 3))]


@stormy("answer of a commit lost")
def _(scene: Scene) -> list[Rule]:
    table = scene.rng.choice(("ledger", "data", "errors"))
    return [Rule("lost", match=rf"PUT .*/{table}/_delta_log/\d+\.json", nth=scene.rng.randint(1, 5))]


@stormy("answers of two commits lost")
def _(scene: Scene) -> list[Rule]:
    return [Rule("lost", match=rf"PUT .*/{table}/_delta_log/\d+\.json", nth=2, times=2) for table in ("ledger", "data")]


@stormy("store away for some seconds")
def _(scene: Scene) -> list[Rule]:
    return [Rule("cut", match="", nth=scene.rng.randint(30, 90), times=10_000, lasts=scene.rng.uniform(3, 9))]


# 2: it was away before anything had been started.
@stormy("store away for longer than it is waited for", allowed=(0, 1, 2), spare=True, STORE_PATIENCE_S="3")
def _(scene: Scene) -> list[Rule]:
    return [Rule("cut", match="", nth=scene.rng.randint(30, 90), times=10_000)]


@kind("store process stopped for some seconds", S3)
def _(scene: Scene) -> None:
    scene.set_up()
    driver = scene.start()
    if driver.wait_until("engines ready"):
        store = scene.lab.store.process
        store.send_signal(signal.SIGSTOP)
        scene.happened("store stopped")
        time.sleep(scene.rng.uniform(3, 8))
        store.send_signal(signal.SIGCONT)
    scene.ended(driver, 0)


# ----------------------------------------------------------------------------------------------------- the engine fails


@kind("poison row: the engine dies of it")
def _(scene: Scene) -> None:
    scene.set_up(special=(POISON,))
    scene.dead[POISON] = "poison"
    scene.spare += 4 * in_flight(scene.runner)
    scene.ended(scene.start(f"engine.simulated.poison_token_id={token_of('zebra')}"), 0)
    scene.happened("poison row")


@kind("row that makes the engine hang")
def _(scene: Scene) -> None:
    scene.tweaks |= {"actors.hang:NO_TOKEN_S": 1.0, "actors.hang:FIRST_TOKEN_S": 5.0}
    scene.set_up(special=(HANG,))
    scene.dead[HANG] = "timeout"
    scene.spare += 4 * in_flight(scene.runner)
    scene.ended(scene.start(f"engine.simulated.hang_token_id={token_of('walrus')}"), 0)
    scene.happened("hanging row")


@kind("engine that dies every so many rows")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.spare += 8 * in_flight(scene.runner)
    every = scene.rng.randint(17, 40)
    scene.ended(scene.start(f"engine.simulated.die_every_rows={every}", "engine.max_restarts=20"), 0, 1)
    scene.happened(f"engine dies every {every} rows")


@kind("engine that never starts")
def _(scene: Scene) -> None:
    scene.set_up()
    driver = scene.start("engine.simulated.start_s=5", "engine.start_timeout_s=0.3")
    scene.ended(driver, 1)
    scene.happened("engine does not start")
    if "did not start within" not in driver.log():
        scene.wrong.append("it is not said that the engine did not start")


# ------------------------------------------------------------------------------------------------------ what lies about


@kind("a commit of the ledger written twice")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit ledger", most=2))
    scene.ledger_twice()
    scene.happened("ledger written twice")


@kind("files that lie about: torn, without receipt, not ours")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit data", most=2))
    data, whole = scene.sink.below("data"), b"PAR1 and no more"
    for name, bytes_ in (
        ("a.parquet-0123456789ab.0-8.00ff00ff00.parquet", whole),
        (".a.parquet-0123456789ab.0-8.00ff00ff01.parquet.0123456789.part", b"PAR"),
        ("README.txt", b"not the pipeline's"),
    ):
        data.write(name, bytes_)
    scene.sink.below("errors").write("a.parquet-0123456789ab.0-8.00ff00ff02.parquet", whole)
    scene.foreign.add("README.txt")
    scene.happened("files planted")


@kind("ledger lost")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    scene.wipe("ledger")
    scene.happened("ledger lost")


@kind("logs of both tables lost")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.hit(at(scene, "commit ledger", most=2))
    scene.wipe("data/_delta_log")
    scene.wipe("errors/_delta_log")
    scene.happened("logs lost")


@kind("a current file lost")
def _(scene: Scene) -> None:
    scene.set_up()
    scene.run()
    folder = scene.sink.below(scene.rng.choice(("data", "errors")))
    names = [name for name in folder.names() if name.endswith(".parquet")]
    folder.delete(scene.rng.choice(names))
    scene.may_lose = True
    scene.spare += UNIT_ROWS
    scene.happened("file lost")
    scene.hit(at(scene, scene.rng.choice(("put data", "commit ledger", "commit data"))))
