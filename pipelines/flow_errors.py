"""Why a flow ended: the reason inside Ray's wrapping, in a line that says what to do."""

from collections.abc import Sequence

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from actors.control import InHand
from actors.engine import EngineLost
from pipelines.config import RunFailed
from pipelines.flow_control import Abandoned

NAMED = 3  # of the work that workers died over


class WorkersDie(RunFailed):
    """Whatever worker took a piece of work died, as often as it may be tried."""


def explained(error: BaseException) -> BaseException:
    """The reason inside Ray's wrapping, if it is one of ours; else the error itself, a bug with its traceback."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RunFailed | Abandoned):
            return seen
        if isinstance(seen, EngineLost):
            return RunFailed(str(seen))
        if isinstance(seen, ObjectStoreFullError | OutOfDiskError):
            return RunFailed(
                f"Ray's object store is full ({type(seen).__name__}): raise cluster.object_store_gib, free the disk "
                "that Ray spills to, or lower engine.units_in_flight; what is committed is safe"
            )
        if isinstance(seen, OutOfMemoryError | WorkerCrashedError | NodeDiedError | ObjectLostError):
            return WorkersDie(type(seen).__name__)
        seen = getattr(seen, "cause", None) or seen.__cause__
    # An actor that dies in its constructor leaves its error as text alone.
    _, found, words = str(error).rpartition(f"{EngineLost.__qualname__}: ")
    return RunFailed(words.strip()) if found else error


def named(error: WorkersDie, in_hand: Sequence[InHand]) -> RunFailed:
    """What workers died over, of the work that was begun and did not end: that which was begun most often."""
    most = max((one.times for one in in_hand), default=0)
    names = [one.name for one in in_hand if one.times == most]
    over = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    what = f"a worker died each of the {most} times that {over} was begun" if over else "workers kept dying"
    return RunFailed(
        f"{what} ({error}). Most likely it ran out of memory: lower unit.rows and unit.bytes, or cluster.read_tasks, "
        "or give it more; a shard that ends whatever reads it is left out by source.exclude. What workers said last is "
        "in Ray's logs. What is committed is safe, and the same command goes on"
    )
