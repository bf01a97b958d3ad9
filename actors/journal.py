"""What must outlive an engine's process: which rows were in it, how often a replica died and of what, who is guilty.

On CPU an engine lives in its actor's process, and a row that kills the one kills the other; Ray then starts the actor
again and repeats its calls. The journal stands in the run's Control and is told in two calls for each unit of clean
traffic: it arrives, it ends. All units that were in a process at its death are watched from then on: each of their
rows is announced before an engine sees it. So the second death shows which rows were in, and they are asked one by one
(replica.py). What it costs: four starts for a guilty row, the first two of them shared by all that are guilty at once,
and the answers of the units that were in the process, which are asked for again.

No Ray and no clock of its own stand here: what happens is told, and the rest follows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from actors.evidence import Birth, Death, Past, Suspicion, Verdict

HOUR_S = 3600.0
SILENT_S = 60.0  # a process with work that has not reported for so long is stopped, or hangs
LONGEST_GAPS = 20  # or so many times the longest pause between two of its reports
MOST_SILENT_S = 300.0  # of which one pause of a machine would make hours
MOST_LINES = 1000  # of news that nobody has fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A process with work that has not been heard of for longer than it should."""

    birth: Birth
    death: Death


@dataclass(slots=True, eq=False)
class _Life:
    """A process as far as it has come."""

    birth: Birth
    serving: bool = False
    units: set[str] = field(default_factory=set)
    rows: set[tuple[str, int]] = field(default_factory=set)  # of watched units, in the engine now
    restarts: int = 0
    unexplained: int = 0
    fruitless: int = 0
    heard_at: float = 0.0
    worked_then: bool = True
    longest_gap_s: float = 0.0
    ending: bool = False
    death: Death | None = None  # told before it happens

    @property
    def works(self) -> bool:
        """Whether reports are to be expected: a start is work."""
        return not self.ending and (not self.serving or bool(self.units))


@dataclass(slots=True, eq=False)
class _Loss:
    """A death, and those that may be the reason for it."""

    suspects: set[tuple[str, int | None]]  # unit and line; None: any line of it
    explained: bool = False


@dataclass(slots=True, eq=False)
class _Replica:
    """An actor through all its processes."""

    life: _Life
    restarts: list[float] = field(default_factory=list)
    failed_starts: int = 0
    engine_deaths: int = 0  # unexplained, within earlier processes
    losses: list[_Loss] = field(default_factory=list)  # of processes
    fruitless: int = 0
    harmless: bool = False
    last_words: str = ""

    def past(self, now: float) -> Past:
        own = sum(not loss.explained and not loss.suspects for loss in self.losses)
        return Past(
            restarts=tuple(at for at in self.restarts if at > now - HOUR_S),
            failed_starts=self.failed_starts,
            unexplained=self.engine_deaths + own,
            fruitless=self.fruitless,
            harmless=self.harmless,
            last_words=self.last_words,
        )


@dataclass(slots=True, eq=False)
class _Watched:
    """A unit that was in a process at its death, until it has ended."""

    base: int = 1  # deaths at which its rows were not known one by one
    deaths: dict[int, int] = field(default_factory=dict)
    hung: bool = False


class Journal:
    """What is known of all replicas of a run. Each call is short."""

    def __init__(self, now: Callable[[], float] = time.time, *, silent_s: float = SILENT_S) -> None:
        self._now = now
        self._silent_s = silent_s
        self._replicas: dict[str, _Replica] = {}
        self._lives: dict[str, _Life] = {}  # by process
        self._watched: dict[str, _Watched] = {}
        self._guilty: dict[str, Verdict] = {}
        self._given_up: str | None = None
        self._news: list[str] = []

    # -- births and deaths -------------------------------------------------------------------------------------------

    def predecessor(self, replica: str) -> tuple[Birth, Death | None] | None:
        """The process before the one that asks, and how it died if that was told."""
        known = self._replicas.get(replica)
        return (known.life.birth, known.life.death) if known else None

    def born(self, birth: Birth, death: Death | None) -> Past:
        """A process begins; `death` is how the one before it ended. Told twice, it counts once."""
        known = self._replicas.get(birth.replica)
        life = _Life(birth=birth, heard_at=self._now())
        if known is None:
            known = self._replicas[birth.replica] = _Replica(life=life)
        elif known.life.birth != birth:
            self._bury(known, death or Death(cause="crashed", words="nothing is known of its end"))
            life.fruitless = known.fruitless
            known.life = life
        else:
            return known.past(self._now())
        self._lives[birth.process] = life
        return known.past(self._now())

    def birth_of(self, process: str) -> Birth | None:
        """Where this process is; None: it is not known, or has died."""
        life = self._lives.get(process)
        return life.birth if life else None

    def left(self, process: str) -> None:
        """Its actor was let go and comes back no more: nobody waits for its reports."""
        if life := self._lives.pop(process, None):
            self._replicas.pop(life.birth.replica, None)

    def serves(self, process: str) -> None:
        """An engine has started in this process."""
        if life := self._lives.get(process):
            life.serving = True
            self._replicas[life.birth.replica].failed_starts = 0

    def note_death(self, process: str, death: Death) -> None:
        """This process is about to be ended, and why."""
        if (life := self._lives.get(process)) and life.death is None:
            life.death = death
            life.ending = True

    def _bury(self, known: _Replica, death: Death) -> None:
        life = known.life
        del self._lives[life.birth.process]
        known.engine_deaths += life.unexplained
        what = f"replica {life.birth.process} {death.cause}: {death.words}"
        self._tell(f"{what}; {len(life.units)} units were in it and are asked again")
        if death.cause == "preempted":
            return
        known.last_words = death.words
        known.restarts = [at for at in known.restarts if at > self._now() - HOUR_S] + [self._now()]
        if not life.serving:
            known.failed_starts += 1
            return
        known.fruitless = life.fruitless + 1
        loss = _Loss(suspects=set(life.rows))
        for unit in life.units:
            if watched := self._watched.get(unit):
                watched.hung = death.cause == "hung"
            else:
                self._watched[unit] = _Watched(hung=death.cause == "hung")
                loss.suspects.add((unit, None))
        for unit, line in life.rows:
            self._watched[unit].deaths[line] = self._watched[unit].deaths.get(line, 0) + 1
        known.harmless = not loss.suspects
        known.losses.append(loss)

    # -- units and rows ----------------------------------------------------------------------------------------------

    def arrives(self, process: str, unit: str) -> Suspicion:
        """Rows of this unit may be in this process from now on; what is known against them."""
        if life := self._lives.get(process):
            if not life.works:  # and it may have been silent: from here on it is not to be
                life.heard_at = self._now()
            life.units.add(unit)
        watched = self._watched.get(unit)
        if watched is None:
            return Suspicion(guilty=self._guilty)
        return Suspicion(
            watched=True,
            base=watched.base,
            deaths={line: watched.base + deaths for line, deaths in watched.deaths.items()},
            hung=watched.hung,
            guilty=self._guilty,
        )

    def enters(self, process: str, unit: str, line: int) -> None:
        """A row of a watched unit is about to enter the engine."""
        if (life := self._lives.get(process)) and unit in self._watched:
            life.rows.add((unit, line))

    def leaves(self, process: str, unit: str, line: int, answered: bool) -> None:
        """It is out again."""
        if life := self._lives.get(process):
            life.rows.discard((unit, line))
            if answered:
                life.fruitless = 0
        if answered:
            self._acquit((unit, line))

    def ends(self, process: str, unit: str) -> None:
        """No row of this unit is in this process any more: none of them is a suspect."""
        if life := self._lives.get(process):
            life.units.discard(unit)
            life.rows = {row for row in life.rows if row[0] != unit}
        if watched := self._watched.pop(unit, None):
            for line in watched.deaths:
                self._acquit((unit, line))
            self._acquit((unit, None))

    def condemns(self, process: str, unit: str, line: int, key: str, verdict: Verdict) -> None:
        """This row, and any with its key, is guilty."""
        self._guilty[key] = verdict
        for known in self._replicas.values():
            for loss in known.losses:
                if loss.suspects & {(unit, line), (unit, None)}:
                    loss.explained = True
                    loss.suspects.clear()
        self._tell(f"replica {process}: a row of unit {unit} is {verdict.error_type}: {verdict.error}")

    def _acquit(self, suspect: tuple[str, int | None]) -> None:
        for known in self._replicas.values():
            for loss in known.losses:
                loss.suspects.discard(suspect)

    # -- how they are ------------------------------------------------------------------------------------------------

    def see(self, process: str, *, restarts: int, unexplained: int, fruitless: int) -> None:
        """What a process reports of itself every now and then."""
        life = self._lives.get(process)
        if life is None:
            return
        now = self._now()
        if life.works and life.worked_then:
            life.longest_gap_s = max(life.longest_gap_s, now - life.heard_at)
        life.heard_at, life.worked_then = now, life.works
        self._replicas[life.birth.replica].restarts += [now] * (restarts - life.restarts)
        life.restarts, life.unexplained, life.fruitless = restarts, unexplained, fruitless

    def silent(self) -> list[Silent]:
        """Processes with work that have not reported within their limit; each is named once."""
        found = []
        for life in self._lives.values():
            limit_s = max(self._silent_s, min(MOST_SILENT_S, LONGEST_GAPS * life.longest_gap_s))
            quiet_s = self._now() - life.heard_at
            if life.works and quiet_s > limit_s:
                units = f"{len(life.units)} units in it" if life.serving else "its engine starting"
                words = f"it was stopped or hung: no report for {quiet_s:.0f} s (limit {limit_s:.0f} s) with {units}"
                found.append(Silent(birth=life.birth, death=Death(cause="hung", words=words)))
        return found

    def gives_up(self, process: str, why: str) -> None:
        """This replica answers no more."""
        self._given_up = self._given_up or why
        if life := self._lives.get(process):
            life.ending = True

    @property
    def given_up(self) -> str | None:
        """Why the run cannot go on. None: it can."""
        return self._given_up

    def news(self) -> list[str]:
        """What happened since this was last asked, a line each."""
        news, self._news = self._news, []
        return news

    def _tell(self, line: str) -> None:
        if len(self._news) < MOST_LINES:
            self._news.append(line)
