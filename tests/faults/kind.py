"""Kind: a way to fail, and the list of all of them, in the order in which seeds count them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.scene import Scene
from tests.faults.seams import Deed, Fault, When

DISK, S3, BOTH = ("disk",), ("s3",), ("disk", "s3")


@dataclass(frozen=True)
class Kind:
    """A way to fail."""

    name: str
    disturb: Callable[[Scene], None]
    stores: tuple[str, ...] = BOTH
    runner: str = "threads"
    times: int = 2  # seeds of it in a whole campaign


KINDS: list[Kind] = []
Disturb = Callable[[Scene], None]


def kind(
    name: str, stores: tuple[str, ...] = BOTH, runner: str = "threads", times: int = 2
) -> Callable[[Disturb], Disturb]:
    """Enter a kind into the list."""

    def entered(disturb: Disturb) -> Disturb:
        KINDS.append(Kind(name, disturb, stores, runner, times))
        return disturb

    return entered


def at(scene: Scene, step: str, *, most: int = 1, amid: bool = False, do: Deed = "kill") -> Fault:
    """A fault at some time that the step is taken."""
    moments: tuple[When, ...] = ("before", "amid", "after") if amid else ("before", "after")
    return Fault(step=step, when=scene.rng.choice(moments), nth=scene.rng.randint(1, most), do=do)
