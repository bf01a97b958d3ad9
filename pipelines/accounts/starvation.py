"""Starvation: for how long engines had room and no rows, and which stage they waited for.

Hosts tell both (actors/host_stats.py): the time until the next unit came to them, and the time in which rows of a
unit that was there were still on their way into the engine (`feed`). The first is `write` where answered units wait to
be written, since Ray then holds back the stages before; else the stage before the engines that was at work for most of
the time that it had, or `handling` where none was: then what each unit costs beside its rows is what takes the time.
What an engine waited for after its last unit is not in it: that is the tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

from actors.beginnings import Begun

Stage = Literal["read", "tokenize", "feed", "handling", "write"]
AT_WORK = 0.5  # of the time that readers have: with more they are what is waited for
WRITE_QUEUE = 4  # answered units for each write task from which on the writer holds up the rest


class Host(Protocol):
    """What is asked of a host's report (actors/host_stats.py). Counts and seconds since it started."""

    @property
    def replica(self) -> str: ...
    @property
    def time(self) -> float: ...  # of the report, by the host's clock
    @property
    def units_ended(self) -> int: ...
    @property
    def starved_seconds(self) -> float: ...
    @property
    def feed_seconds(self) -> float: ...
    @property
    def read_seconds(self) -> float: ...
    @property
    def prepare_seconds(self) -> float: ...
    @property
    def longest(self) -> tuple[int, int]: ...  # output and prompt tokens of the longest answer
    @property
    def begun(self) -> Begun: ...  # what prompts share


@dataclass(frozen=True, slots=True, kw_only=True)
class Starved:
    """What the engines of a run waited for most."""

    stage: Stage
    share: float  # of their time, 0..1, for whatever stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Seconds, summed over engines: of two moments of a run the later less the earlier tells what lies between."""

    read_tasks: int
    had: float = 0.0  # since the first report, not summed
    held: float = 0.0
    before_them: float = 0.0  # waited for units, while nothing behind held these up
    write: float = 0.0  # the same, while answers waited to be written
    feed: float = 0.0  # waited for rows of units that were there
    read: float = 0.0  # at work, as are those who:
    prepare: float = 0.0

    def since(self, before: "Waits") -> "Waits":
        """What came between."""
        return replace(self, **{name: getattr(self, name) - getattr(before, name) for name in _SECONDS})

    def found(self) -> Starved | None:
        """What was waited for most; None: nothing was, or nobody said."""
        waited = self.before_them + self.write + self.feed
        if waited <= 0 or self.held <= 0:
            return None
        by_stage: dict[Stage, float] = {"feed": self.feed, "write": self.write, self._slowest(): self.before_them}
        return Starved(stage=max(by_stage, key=lambda stage: by_stage[stage]), share=min(1.0, waited / self.held))

    def _slowest(self) -> Stage:
        """Of the stages before the engines."""
        if self.read + self.prepare < AT_WORK * self.had * self.read_tasks:
            return "handling"
        return "read" if self.read > self.prepare else "tokenize"


_SECONDS = tuple(each.name for each in fields(Waits) if each.name != "read_tasks")


class Starvation:
    """Looks at the hosts of a run, and says what they starved of."""

    def __init__(self, *, read_tasks: int, write_tasks: int) -> None:
        self._read_tasks, self._write_tasks = read_tasks, write_tasks
        self._newest: dict[str, Host] = {}
        self._first: dict[str, float] = {}
        self._before_them = self._write = 0.0  # seconds of waiting for units, by what held these up
        self._received = 0

    def see(self, hosts: Sequence[Host], *, received: int) -> None:
        """The newest reports; `received`: units whose receipts came since the last look."""
        self._received += received
        ended = sum(host.units_ended for host in {**self._newest, **{host.replica: host for host in hosts}}.values())
        writing = ended - self._received >= WRITE_QUEUE * self._write_tasks
        for host in hosts:
            self._first.setdefault(host.replica, host.time)
            before = self._newest.get(host.replica)
            waited = host.starved_seconds - (before.starved_seconds if before else 0.0)
            if writing:
                self._write += waited
            else:
                self._before_them += waited
            self._newest[host.replica] = host

    def waits(self) -> Waits:
        """All so far."""
        hosts = self._newest.values()
        return Waits(
            read_tasks=self._read_tasks,
            had=self._had(),
            held=self._held(),
            before_them=self._before_them,
            write=self._write,
            feed=sum(host.feed_seconds for host in hosts),
            read=sum(host.read_seconds for host in hosts),
            prepare=sum(host.prepare_seconds for host in hosts),
        )

    def found(self) -> Starved | None:
        """Of the whole run. None: engines did not wait, or said nothing."""
        return self.waits().found()

    def replicas(self) -> float:
        """How many there were on average, from the first report to the last."""
        had = self._had()
        return self._held() / had if had else 0.0

    def longest(self) -> tuple[int, int]:
        """Output and prompt tokens of the longest answer; 0: not known."""
        return max((host.longest for host in self._newest.values()), default=(0, 0))

    def begun(self) -> list[Begun]:
        """What the prompts of each host share."""
        return [host.begun for host in self._newest.values()]

    def _had(self) -> float:
        return max((host.time for host in self._newest.values()), default=0.0) - min(self._first.values(), default=0.0)

    def _held(self) -> float:
        return sum(host.time - self._first[host.replica] for host in self._newest.values())
