"""Evidence: what a host tells of an engine's process, and what it is told in turn; journal.py keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Cause = Literal["crashed", "hung", "preempted"]  # preempted: its node is gone; that is nobody's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """One process of a replica, and where to find it and its log."""

    replica: str  # the actor, the same through all its processes
    process: str  # host name and process id
    node: str
    pid: int
    start_ticks: int  # of the process, since its machine booted: tells it from a later one with the same id
    logs: tuple[str, ...] = ()  # files on its node


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process ended."""

    cause: Cause
    words: str  # one line: the signal if it is known, the end of its log


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a replica has been through in processes before this one."""

    restarts: tuple[float, ...] = ()  # of its engines, epoch seconds, within the hour
    failed_starts: int = 0  # processes in a row that died before their engine had started
    unexplained: int = 0  # deaths that no row explains
    fruitless: int = 0  # deaths since a row was last answered
    harmless: bool = False  # nothing was in the engine at the last of them but the prompt that proves it sound
    last_words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a row is a dead letter."""

    error_type: str  # poison, timeout
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What is known against a unit that arrives."""

    watched: bool = False  # it was in a process that died: its rows are to be announced
    deaths: Mapping[int, int] = field(default_factory=dict)  # by line: of processes, with this row in; others: `base`
    base: int = 0
    hung: bool = False  # the last of them was a hang
    guilty: Mapping[str, Verdict] = field(default_factory=dict)  # by row key, whatever unit it was found in


class Witness(Protocol):
    """A host's way to the journal. What must be known before it happens is waited for, the rest is sent."""

    def born(self) -> Past:
        """A process begins; what there was before it. Blocks."""
        ...

    def serves(self) -> None:
        """Its engine has started."""
        ...

    async def arrives(self, unit: str) -> Suspicion:
        """Rows of this unit may be in the engine from now on."""
        ...

    async def enters(self, unit: str, line: int) -> None:
        """A row of a watched unit is about to enter the engine."""
        ...

    def leaves(self, unit: str, line: int, *, answered: bool) -> None:
        """It is out of the engine again. `answered`: that acquits it."""
        ...

    def ends(self, unit: str) -> None:
        """No row of this unit is here any more."""
        ...

    def condemns(self, unit: str, line: int, key: str, verdict: Verdict) -> None:
        """A row is guilty of the deaths that it went through."""
        ...

    def gives_up(self, why: str) -> None:
        """This replica answers no more, and the run is to end."""
        ...

    def dies(self, death: Death) -> None:
        """This process is about to end itself. Blocks."""
        ...
