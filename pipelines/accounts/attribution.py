"""Attribution: what the seconds of every device held went into. docs/cost.md gives the rule of each part.

`Timeline` follows what hosts report while a run holds devices; its `Held` is what must be kept of that to tell, once
the receipts are known, what the time was spent on (`attribute`). All sums are whole nanoseconds of devices, and what
`attribute` gives adds up to what was held, whatever the reports say: the parts are taken out of it one after the
other, and `idle` is what remains.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from typing import Any, Protocol, Self

NS = 10**9
_NOISE_NS = NS // 1000  # hosts and receipts add up the same time as floats, and not in the same order


class Host(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def replica(self) -> str: ...
    @property
    def phase(self) -> str: ...  # starting, serving, rebuilding, draining, lost
    @property
    def time(self) -> float: ...  # of the report, by the host's clock
    @property
    def rows_in_flight(self) -> int: ...
    @property
    def device_seconds(self) -> float: ...  # with rows in its engine, times its devices, since it started
    @property
    def vain_device_seconds(self) -> float: ...  # of these: tries that ended in no answer that was kept
    @property
    def rejected_tokens(self) -> int | None: ...  # of speculation; None: its engine does not guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Nanoseconds of devices by what they went into. None: this engine cannot tell."""

    startup: int = 0
    prefill: int = 0
    decode: int = 0
    idle: int = 0  # for want of input
    tail: int = 0  # idle after a replica's last row
    failed: int = 0  # work that was lost, or done again, and engines that had to be started again
    rejected: int | None = None  # of speculation
    shutdown: int = 0

    @property
    def total(self) -> int:
        """What was billed."""
        return sum(ns for _, ns in self.known())

    @property
    def useful(self) -> int:
        """What made answers."""
        return self.prefill + self.decode

    def known(self) -> Iterator[tuple[str, int]]:
        """The parts that were measured, by name."""
        for each in fields(self):
            ns = getattr(self, each.name)
            if ns is not None:
                yield each.name, ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a run knows of the devices that it holds; nanoseconds of devices. It is the same after a kill."""

    held_ns: int = 0
    held_ns_by_day: Mapping[str, int] = field(default_factory=dict)  # ISO, UTC
    engines_ns: int = 0  # as above, were each engine alone on its devices: those on CPU share a machine
    startup_ns: int = 0
    rebuilt_ns: int = 0  # engines that were started again
    tail_ns: int = 0
    shutdown_ns: int = 0
    busy_ns: int = 0  # of engines: with rows in them
    vain_ns: int = 0  # of engines: tries that ended in no answer that was kept
    rejected_tokens: int | None = None  # of speculation; None: there was none

    def devices_at_work(self, steady_s: float) -> float:
        """How many devices were held on the mean in `steady_s` seconds of work: a pool may have grown and shrunk."""
        return max(0, self.held_ns - self.startup_ns - self.shutdown_ns) / NS / steady_s

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_json` made."""
        return cls(**plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the committed receipts of a run add up to."""

    answered_ns: int = 0  # of engines
    computed_prompt_tokens: int = 0  # without the cached ones
    output_tokens: int = 0

    @classmethod
    def of(cls, receipts: Iterable[tuple[float, int, int, int]]) -> Self:
        """Of receipts, each as device_seconds, prompt_tokens, cached_tokens, output_tokens."""
        ns, computed, output = 0, 0, 0
        for device_seconds, prompt_tokens, cached_tokens, output_tokens in receipts:
            ns += round(Decimal(repr(device_seconds)) * NS)
            computed += prompt_tokens - cached_tokens
            output += output_tokens
        return cls(answered_ns=ns, computed_prompt_tokens=computed, output_tokens=output)

    def __add__(self, other: Self) -> Self:
        return type(self)(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


def attribute(held: Held, work: Work) -> Parts:
    """What the devices held went into, once these receipts are committed. It adds up to `held.held_ns`.

    Work that no receipt tells of is `failed`: so it is while a run is under way, for all that is in its engines.
    """

    def of_devices(engines_ns: int) -> int:
        return engines_ns * held.held_ns // held.engines_ns if held.engines_ns else 0

    kept_ns = max(0, work.answered_ns - held.vain_ns)
    lost_ns = max(work.answered_ns, held.busy_ns) - kept_ns
    rest = held.held_ns
    useful, rest = _take(of_devices(kept_ns), rest)
    failed, rest = _take(of_devices(lost_ns if lost_ns > _NOISE_NS else 0) + held.rebuilt_ns, rest)
    startup, rest = _take(held.startup_ns, rest)
    shutdown, rest = _take(held.shutdown_ns, rest)
    tail, idle = _take(held.tail_ns, rest)
    # A guess that is thrown away was computed as a token that stays.
    computed = work.computed_prompt_tokens + work.output_tokens + (held.rejected_tokens or 0)
    prefill = useful * work.computed_prompt_tokens // computed if computed else 0
    rejected = None
    if held.rejected_tokens is not None:
        rejected = useful * held.rejected_tokens // computed if computed else 0
    return Parts(
        startup=startup,
        prefill=prefill,
        decode=useful - prefill - (rejected or 0),
        rejected=rejected,
        idle=idle,
        tail=tail,
        failed=failed,
        shutdown=shutdown,
    )


def by_day(held: Held, parts: Parts) -> Iterator[tuple[str, str, int]]:
    """Day, part and nanoseconds: each part falls on the days as the time held does, and adds up over them."""
    for part, ns in parts.known():
        left_ns, left_held = ns, sum(held.held_ns_by_day.values())
        for day, held_ns in sorted(held.held_ns_by_day.items()):
            share = left_ns * held_ns // left_held if left_held else 0
            left_ns, left_held = left_ns - share, left_held - held_ns
            yield day, part, share


class Timeline:
    """The time of a run's devices as it passes."""

    def __init__(self, *, engines: int, devices_each: int, one_machine: bool) -> None:
        """`engines` are held at least, each on `devices_each` devices, or all of them on one machine."""
        self._engines, self._devices_each, self._one_machine = engines, devices_each, one_machine
        self._at_ns: int | None = None  # None: nothing is held
        self._engines_held = engines
        self._arrived = 0  # engines that were here at once, at most: those that are missing since have left
        self._last: dict[str, Host] = {}  # the newest report of each process, dead ones included
        self._here: set[str] = set()  # processes whose place no other has taken
        self._vacant = 0  # places of processes that died at work, which none has taken yet
        self._again: set[str] = set()  # processes that have taken another's place
        self._untold: defaultdict[str, int] = defaultdict(int)  # nanoseconds by process, since its newest report
        self._idle: defaultdict[str, int] = defaultdict(int)  # likewise, since it last worked
        self._quiet_ns = 0  # since anything worked, or a receipt came
        self._days: defaultdict[str, int] = defaultdict(int)
        self._held_ns = self._engines_ns = self._startup_ns = self._rebuilt_ns = self._left_ns = 0

    def needed(self) -> int:
        """How many devices the engines have that there are now, or will be first."""
        return self._devices_of(self._engines_held)

    def begin(self, now_ns: int) -> None:
        """From now on devices are held."""
        self._at_ns = now_ns

    def see(self, hosts: Sequence[Host], *, now_ns: int, day: str) -> None:
        """What hosts report now tells what the time since the last look went into."""
        if self._at_ns is None:
            return
        elapsed_ns, self._at_ns = now_ns - self._at_ns, now_ns
        held_ns = elapsed_ns * self._devices_of(self._engines_held)
        self._held_ns += held_ns
        self._engines_ns += elapsed_ns * self._devices_each * self._engines_held
        self._days[day] += held_ns
        here = [host for host in hosts if host.phase != "lost"]
        lost = {host.replica for host in hosts if host.phase == "lost"}
        self._replace({host.replica for host in here}, lost)
        left_ns, places, worked = held_ns, self._engines_held, False
        for place, host in enumerate(here):
            share_ns = left_ns // places if place < self._engines_held else 0  # one more: its time begins now
            left_ns, places = left_ns - share_ns, places - 1
            self._untold[host.replica] += share_ns
            worked |= self._look_at(host)
        self._arrived = max(self._arrived, len(here) + len(lost))
        coming = min(places, self._engines - self._arrived) if places > 0 else 0
        if coming > 0:  # engines that are not there yet
            self._startup_ns += left_ns * coming // places
            left_ns -= left_ns * coming // places
        if lost or self._vacant:
            self._rebuilt_ns += left_ns
        else:
            self._left_ns += left_ns
        self._quiet_ns = 0 if worked or coming > 0 else self._quiet_ns + held_ns
        self._engines_held = max(self._engines - len(lost), len(here))

    def received(self) -> None:
        """A receipt has come."""
        self._quiet_ns = 0

    def end(self, hosts: Sequence[Host], *, now_ns: int, day: str) -> None:
        """The devices are given back."""
        self.see(hosts, now_ns=now_ns, day=day)
        self._at_ns = None

    def held(self, *, done: bool) -> Held:
        """Up to the last look. `done`: nothing more will come, so the time after the last receipt was the end."""
        idle_ns = sum(self._idle.values()) + self._left_ns
        idle_ns += sum(ns for name, ns in self._untold.items() if not self._last[name].rows_in_flight)
        shutdown_ns = self._quiet_ns if done else 0
        return Held(
            held_ns=self._held_ns,
            held_ns_by_day=dict(self._days),
            engines_ns=self._engines_ns,
            startup_ns=self._startup_ns,
            rebuilt_ns=self._rebuilt_ns,
            tail_ns=max(0, idle_ns - shutdown_ns) if done else 0,
            shutdown_ns=shutdown_ns,
            busy_ns=sum(_ns(host.device_seconds) for host in self._last.values()),
            vain_ns=sum(_ns(host.vain_device_seconds) for host in self._last.values()),
            rejected_tokens=_sum_known(host.rejected_tokens for host in self._last.values()),
        )

    def _devices_of(self, engines: int) -> int:
        return 1 if self._one_machine else engines * self._devices_each

    def _replace(self, here: set[str], lost: set[str]) -> None:
        """See which processes stand in the place of one that has died, and which have left. What one that died at work
        did last was never told: it is counted with the engine's new start."""
        gone, new = self._here - here - lost, here - self._here
        idle = {replica for replica in gone if self._was_idle(replica)}
        for replica in (gone - idle) | lost:
            self._rebuilt_ns += self._untold.pop(replica, 0)
            self._idle.pop(replica, None)
        for replica in idle:
            self._left_ns += self._untold.pop(replica, 0)
        again = sorted(new)[: self._vacant + len(gone)]
        self._again |= set(again)
        self._vacant = max(0, self._vacant + len(gone - idle) - len(again))
        self._here = here | (lost & self._here)

    def _was_idle(self, replica: str) -> bool:
        """Whether its last report was of an engine without work: such a one is let go by a pool that shrinks."""
        last = self._last.get(replica)
        return last is not None and not last.rows_in_flight and last.phase in ("serving", "draining")

    def _look_at(self, host: Host) -> bool:
        """Book the time that its newest report tells of; whether it works or starts."""
        before = self._last.get(host.replica)
        working = host.rows_in_flight > 0
        if before is not None and host.time <= before.time:
            return working  # it has said nothing since
        self._last[host.replica] = host
        told_ns = self._untold.pop(host.replica, 0)
        if before is None or before.phase in ("starting", "rebuilding"):
            if host.replica in self._again or (before is not None and before.phase == "rebuilding"):
                self._rebuilt_ns += told_ns
            else:
                self._startup_ns += told_ns
            return True
        possible_s = (host.time - before.time) * self._devices_each
        busy = min(1.0, (host.device_seconds - before.device_seconds) / possible_s)
        if busy > 0:
            self._idle.pop(host.replica, None)  # it was for want of input, which is what `attribute` leaves over
        self._idle[host.replica] += round(told_ns * (1 - busy))
        return working or busy > 0


def _ns(seconds: float) -> int:
    return round(Decimal(repr(seconds)) * NS)


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _take(wanted: int, rest: int) -> tuple[int, int]:
    """As much of what is wanted as there is, and what is left then."""
    taken = max(0, min(wanted, rest))
    return taken, rest - taken
