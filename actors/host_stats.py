"""HostStats: what a host says of itself, to whoever follows a run."""

from dataclasses import dataclass, field
from typing import Literal

from actors.beginnings import Begun
from actors.engine import EngineLoad
from actors.overdue import Overdue


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStats:
    """What a host is doing, for progress and metrics. Counts are totals since the host started."""

    replica: str  # host name and process id
    phase: Literal["starting", "serving", "rebuilding", "draining", "lost"]  # lost: its node is gone (presence.py)
    time: float  # epoch seconds
    units: int = 0  # here now, begun or waiting
    rows_in_flight: int = 0  # in the engine now
    rows_waiting: int = 0  # for the window now
    rows_begun: int = 0  # not ended, of units that an engine has begun: what a drain finishes
    rows_ended: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    start_seconds: float = 0.0  # in which engines were being started
    device_seconds: float = 0.0  # busy time, times devices
    vain_device_seconds: float = 0.0  # of these: tries that ended in no answer, or in one that was asked for again
    restarts: int = 0
    unexplained_deaths: int = 0  # of engines, that no row explains
    fruitless_deaths: int = 0  # since a row was last answered, earlier processes included
    longest: tuple[int, int] = (0, 0)  # output and prompt tokens of the row with most of the former
    units_ended: int = 0  # left with their answers
    starved_seconds: float = 0.0  # with room in the engine and no row for it, until the next unit came
    feed_seconds: float = 0.0  # likewise, while rows of a unit that is here were on their way to it
    read_seconds: float = 0.0  # that readers spent on the units that came here
    prepare_seconds: float = 0.0
    book_full: bool = False  # the run's book of answers took one in no more
    begun: Begun = field(default_factory=Begun)  # what prompts share that entered the engine
    load: EngineLoad | None = None
    gpus: tuple[str, ...] = ()  # that it holds, as NODE/ID
    overdue: tuple[Overdue, ...] = ()  # rows that are in the engine for long

    @property
    def drafted_tokens(self) -> int | None:
        """Tokens that speculation guessed, of the engine that is here now. None: it does not guess."""
        return self.load.drafted if self.load else None

    @property
    def rejected_tokens(self) -> int | None:
        """Of these, those that were thrown away."""
        return self.load.rejected if self.load else None
