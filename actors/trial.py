"""What engines and rows go through: the life of an engine, and the trial of a row that was in one when it died.

A row that was in the engine at two deaths is a suspect and tried alone; two more deaths prove it guilty (replica.py).
"""

from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from actors.engine import Engine

# research/reliability.md B3: where each limit comes from.
SUSPECT_DEATHS = 2  # deaths with a row in the engine after which it is tried alone
SOLITARY_DEATHS = 2  # and then deaths alone that prove it guilty: one may be the engine's own


class Dossier(Protocol):
    """One row's way through processes that died."""

    deaths: int  # with this row in the engine, in earlier processes
    hung: bool  # the last of them

    async def enters(self) -> None:
        """The row is about to enter the engine; returns when that is known where this process's death is survived."""
        ...

    def leaves(self, *, answered: bool) -> None:
        """It is out of the engine."""
        ...


@dataclass(slots=True, eq=False)
class Life:
    """One engine from its opening to its death."""

    engine: Engine
    rows_at_death: int | None = None  # None: it lives
    hung: bool = False
    harmless: bool = False  # it died of the prompt that proves an engine sound
    suspects: int = 0  # rows that were in it at its death and may be the reason
    explained: bool = False  # one of them is
    progress: object = None  # changes whenever something moves
    moved_at: float = field(default_factory=monotonic)
    longest_gap_s: float | None = None  # None: nothing has moved yet


@dataclass(slots=True)
class Trial:
    """What one row has been through."""

    attempts: int = 0
    deaths: list[Life] = field(default_factory=list)
    earlier: int = 0  # deaths in earlier processes
    hung: bool = False  # the last of all
    alone: bool = False
    inside: bool = False  # its dossier says that it is in the engine
    device_seconds: float = 0.0

    @property
    def deaths_seen(self) -> int:
        """In this process and before."""
        return self.earlier + len(self.deaths)

    @property
    def suspected(self) -> bool:
        """It is to be asked with nothing else in the engine."""
        return self.deaths_seen >= SUSPECT_DEATHS

    @property
    def proved(self) -> bool:
        """It is guilty."""
        return self.deaths_seen >= SUSPECT_DEATHS + SOLITARY_DEATHS
