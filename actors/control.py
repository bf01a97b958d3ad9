"""The run's switch: one tiny actor that says whether the run is draining, hears from hosts how they are, and keeps the
journal of what killed them.

Readers and hosts poll it, so that the driver needs no way to reach into a task that is running.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import process
from actors.evidence import Birth, Death, Past, Suspicion, Verdict
from actors.host_stats import HostStats
from actors.journal import SILENT_S, Journal, Silent
from actors.presence import Report, place_of, present

_RESTARTS = 2
ANSWER_S = 60.0  # for an answer that may never come
TELL_TIMEOUT_S = 10.0  # for the last words of a process that ends itself


@dataclass(frozen=True, slots=True)
class InHand:
    """A shard or unit that a worker has begun and not ended."""

    name: str
    times: int  # that it was begun


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the driver is to know and to do."""

    lines: list[str]
    silent: list[Silent]
    given_up: str | None


class Control:
    """The actor's body. Calls are short and never wait."""

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self._draining = False
        self._stats: dict[str, HostStats] = {}
        self._heard_at: dict[str, float] = {}  # monotonic
        self._journal = Journal(silent_s=silent_s)
        self._begun: dict[str, int] = {}

    def drain(self) -> None:
        self._draining = True

    def draining(self) -> bool:
        return self._draining

    def begins(self, name: str) -> None:
        self._begun[name] = self._begun.get(name, 0) + 1

    def ends(self, name: str) -> None:
        self._begun.pop(name, None)

    def in_hand(self) -> list[InHand]:
        return [InHand(name, times) for name, times in self._begun.items()]

    def report(self, stats: HostStats) -> None:
        self._hear(stats)
        self._journal.see(
            stats.replica,
            restarts=stats.restarts,
            unexplained=stats.unexplained_deaths,
            fruitless=stats.fruitless_deaths,
        )

    def stats(self) -> Mapping[str, HostStats]:
        return self._stats

    def reports(self) -> list[Report]:
        now = time.monotonic()
        return [
            Report(stats=stats, age_s=now - self._heard_at[process], birth=self._journal.birth_of(process))
            for process, stats in self._stats.items()
        ]

    def born(self, birth: Birth, death: Death | None) -> Past:
        before = self._journal.predecessor(birth.replica)
        if before and before[0].process != birth.process:
            self._forget(before[0].process)  # its rows are in flight no more
            # Its place is taken in the same moment: to those who look it must not seem that the pool has shrunk.
            self._hear(HostStats(replica=birth.process, phase="starting", time=0.0))
        return self._journal.born(birth, death)

    def left(self, names: Sequence[str]) -> None:
        for name in names:
            self._forget(name)
            self._journal.left(name)

    def _hear(self, stats: HostStats) -> None:
        self._stats[stats.replica] = stats
        self._heard_at[stats.replica] = time.monotonic()

    def _forget(self, process: str) -> None:
        self._stats.pop(process, None)
        self._heard_at.pop(process, None)

    def journal(self, call: str, *arguments: Any) -> Any:
        """A call of the journal's, by its name."""
        return getattr(self._journal, call)(*arguments)

    def news(self) -> News:
        journal = self._journal
        return News(lines=journal.news(), silent=journal.silent(), given_up=journal.given_up)


@dataclass(frozen=True, slots=True)
class Switch:
    """A handle on the run's Control: plain, picklable, for the driver, readers and hosts alike."""

    actor: Any  # ray.actor.ActorHandle

    @classmethod
    def create(cls, *, silent_s: float = SILENT_S) -> "Switch":
        """A new Control. It lives as long as the driver and reserves no CPU, so that it cannot starve a task.

        It stays on the driver's node where it can: a worker's node may be taken away. Should it die all the same, it
        starts again with an empty journal, and calls that were under way are repeated.
        """
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=True)
        made = ray.remote(num_cpus=0, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy=here)
        return cls(made(Control).remote(silent_s))

    def drain(self) -> None:
        """Tell readers to read no further unit, and hosts to begin no further unit."""
        ray.get(self.actor.drain.remote())

    def draining(self) -> bool:
        """Whether `drain` was called; no, where nobody says so for a minute. About a millisecond.

        Bounded, for a process whose Ray is gone waits for the threads that ask before it ends: without a bound one was
        seen to spin for half an hour.
        """
        try:
            return bool(ray.get(self.actor.draining.remote(), timeout=ANSWER_S))
        except GetTimeoutError:
            return False

    def begins(self, name: str) -> None:
        """Say that this worker takes a shard or a unit. Waits until that is known, whatever ends the worker next."""
        ray.get(self.actor.begins.remote(name))

    def ends(self, name: str) -> None:
        """Say that it is done with it; does not wait."""
        self.actor.ends.remote(name)

    def in_hand(self) -> list[InHand]:
        """What workers have begun and not ended: what is at work, and what they died over."""
        found: list[InHand] = ray.get(self.actor.in_hand.remote())
        return found

    def report(self, stats: HostStats) -> None:
        """Hand in what a host is doing; does not wait."""
        self.actor.report.remote(stats)

    def stats(self) -> Mapping[str, HostStats]:
        """The newest report of each host that is here, by replica; of a lost one, that it is lost (presence.py)."""
        reports: list[Report] = ray.get(self.actor.reports.remote())
        here, left = present(reports, place_of)
        if left:
            self.actor.left.remote(left)
        return {stats.replica: stats for stats in here}

    def news(self) -> News:
        """What happened to hosts since this was last asked, and which of them are silent."""
        news: News = ray.get(self.actor.news.remote())
        return news

    def note_death(self, process: str, death: Death) -> None:
        """Say how a host is about to end."""
        ray.get(self.actor.journal.remote("note_death", process, death))

    def witness(self) -> "HostWitness":
        """What a host is given to tell the journal."""
        return HostWitness(self.actor)


class HostWitness:
    """The host's way to the journal; see `Witness`. Made by the driver, used in one actor's process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._process = ""

    def born(self) -> Past:
        """Tell of this process and of how the one before it ended."""
        birth = process.birth()
        self._process = birth.process
        before: tuple[Birth, Death | None] | None = ray.get(self._actor.journal.remote("predecessor", birth.replica))
        death = None
        if before and before[0] != birth:
            seen = process.death_of(before[0], birth.node)
            death = seen if seen.cause == "preempted" or before[1] is None else before[1]
        past: Past = ray.get(self._actor.born.remote(birth, death))
        return past

    def serves(self) -> None:
        """See `Witness`."""
        self._send("serves")

    async def arrives(self, unit: str) -> Suspicion:
        """See `Witness`."""
        suspicion: Suspicion = await asyncio.wrap_future(self._send("arrives", unit).future())
        return suspicion

    async def enters(self, unit: str, line: int) -> None:
        """See `Witness`."""
        await asyncio.wrap_future(self._send("enters", unit, line).future())

    def leaves(self, unit: str, line: int, *, answered: bool) -> None:
        """See `Witness`."""
        self._send("leaves", unit, line, answered)

    def ends(self, unit: str) -> None:
        """See `Witness`."""
        self._send("ends", unit)

    def condemns(self, unit: str, line: int, key: str, verdict: Verdict) -> None:
        """See `Witness`."""
        self._send("condemns", unit, line, key, verdict)

    def gives_up(self, why: str) -> None:
        """See `Witness`."""
        ray.get(self._send("gives_up", why), timeout=TELL_TIMEOUT_S)

    def dies(self, death: Death) -> None:
        """See `Witness`."""
        ray.get(self._send("note_death", death), timeout=TELL_TIMEOUT_S)

    def _send(self, call: str, *arguments: Any) -> Any:
        return self._actor.journal.remote(call, self._process, *arguments)
