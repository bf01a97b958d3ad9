"""Decisions about an output: which of the ledger's receipts its tables show, since when, by whom and why. Pure.

A receipt has a place in the ledger, an integer that only grows. What is shown is a list of segments, each of which
takes receipts of some places, of one fingerprint or of any. Without a decision all are shown as they are committed.
Under a gate receipts are appended as ever, but the segments end before them: those of one fingerprint are its
candidate. To publish is to add a segment; to roll back is to decide for the segments of an earlier version once more.
No receipt is changed or taken away by either, so a candidate that is blocked or rolled back is never paid for again.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter

Key = tuple[int, int]  # a decision's epoch and number: their order
START = -1  # before the first place


class Action(StrEnum):
    """What was decided."""

    HOLD = "hold"  # from here on a gate stands: the version shown is what the ledger says until now
    FOLLOW = "follow"  # the gate is gone: what is committed is shown at once
    PUBLISH = "publish"
    ROLLBACK = "rollback"
    BLOCK = "block"  # a candidate failed the gate; nothing changes
    APPROVE = "approve"  # somebody answers for a candidate; nothing changes yet


@dataclass(frozen=True, slots=True)
class Segment:
    """Some consecutive receipts of the ledger."""

    after: int  # place, exclusive
    until: int | None  # place, inclusive; None: whatever comes
    fingerprint: str | None  # None: any

    def takes(self, place: int, fingerprint: str) -> bool:
        here = self.after < place and (self.until is None or place <= self.until)
        return here and self.fingerprint in (None, fingerprint)


Segments = tuple[Segment, ...]
ALL: Segments = (Segment(START, None, None),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One line of the log."""

    epoch: int  # of the writer; of an approval: that of the decision it was made under
    seq: int
    at: float  # seconds since the epoch, UTC
    action: Action
    run: str  # that the decision is of, or about
    fingerprint: str
    by: str  # a person, or `gate`
    reason: str
    until: int  # the last place of the ledger when it was made
    segments: Segments | None = None  # what is shown from here on; None: as before

    @property
    def key(self) -> Key:
        return self.epoch, self.seq


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is shown now."""

    segments: Segments = ALL
    decision: Decision | None = None  # that says so; None: there is none, all is shown

    @classmethod
    def of(cls, decisions: Iterable[Decision]) -> "State":
        """After these decisions, in any order."""
        said = [one for one in decisions if one.segments is not None]
        newest = max(said, key=lambda one: one.key, default=None)
        return cls() if newest is None or newest.segments is None else cls(segments=newest.segments, decision=newest)

    @property
    def follows(self) -> bool:
        """Whether what is committed is shown at once."""
        return self.until is None

    @property
    def until(self) -> int | None:
        """The last place that is shown; None: whatever comes."""
        return self.segments[-1].until

    @property
    def key(self) -> Key:
        return (0, 0) if self.decision is None else self.decision.key

    def candidate(self, fingerprint: str) -> Segments:
        """What is shown, and the receipts of one fingerprint that are not."""
        return self.segments if self.until is None else (*self.segments, Segment(self.until, None, fingerprint))

    def held(self, end: int) -> Segments:
        """What is shown now, and nothing that comes after `end`."""
        return (*self.segments[:-1], replace(self.segments[-1], until=end)) if self.follows else self.segments

    def followed(self, end: int) -> Segments:
        """What is shown now, and whatever comes after `end`."""
        return (
            self.segments if self.follows else _joined(self.segments, Segment(end, None, None), gap=end != self.until)
        )

    def published(self, fingerprint: str, end: int, *, alone: bool) -> Segments:
        """With the candidate of a fingerprint until `end`. `alone`: there is none of another one."""
        until = self.until
        if until is None:
            return self.segments
        return _joined(self.segments, Segment(until, end, fingerprint), gap=not alone)


def _joined(segments: Segments, more: Segment, *, gap: bool) -> Segments:
    """One segment for two where that takes the same receipts: else the list would grow with each night."""
    last = segments[-1]
    if gap or last.until != more.after or last.fingerprint not in (None, more.fingerprint):
        return (*segments, more)
    return (*segments[:-1], replace(last, until=more.until))


@dataclass(frozen=True, slots=True)
class Counting:
    """Which receipts count, and since when readers see them."""

    segments: Segments = ALL
    since: tuple[tuple[int, float | None], ...] = ()  # as `shown_since` tells; empty: each since it was finished

    def takes(self, place: int, fingerprint: str) -> bool:
        return any(segment.takes(place, fingerprint) for segment in self.segments)

    def shown_at(self, place: int) -> float | None:
        at = bisect_left(self.since, place, key=itemgetter(0))
        return self.since[at][1] if at < len(self.since) else None


def shown_since(decisions: Iterable[Decision]) -> list[tuple[int, float | None]]:
    """Until which place the ledger was shown by which decision, and when: pairs in the order of places.

    None: what lies before was shown as it was committed. For what was rolled back, the time is that of the newest
    decision that shows it: what replaced a file a second time did so then.
    """
    pairs: list[tuple[int, float | None]] = []
    for one in sorted(decisions, key=lambda one: one.key):
        if one.segments is None:
            continue
        end = one.segments[-1].until
        if one.action is Action.ROLLBACK:
            pairs = [pair for pair in pairs if end is not None and pair[0] <= end]
        elif one.action is Action.PUBLISH and end is not None:
            pairs.append((end, one.at))
        else:
            pairs.append((one.until, None))
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An output as readers saw it for a while."""

    run: str  # after which; empty: before the first
    at: float  # since when
    segments: Segments


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The last receipt of a run in the ledger."""

    run: str
    place: int
    at: float


def versions(decisions: Iterable[Decision], ends: Sequence[RunEnd]) -> list[Version]:
    """What can be told of earlier versions, oldest first; the last one is shown now.

    Where there was no gate, what a run left at its end is a version. What was rolled back is none any more.
    """
    found: list[Version] = []
    state = State()
    for one in sorted((one for one in decisions if one.segments is not None), key=lambda one: one.key):
        if state.follows:
            found += _of_runs(state, ends, one.until)
        state = State.of([one])
        if one.action is Action.ROLLBACK:
            back = [number for number, version in enumerate(found) if version.segments == state.segments]
            found = found[: back[-1] + 1] if back else [*found, _version(one, state.segments)]
        elif one.action is not Action.FOLLOW and not (found and found[-1].segments == state.segments):
            found.append(_version(one, state.segments))
    if state.follows:
        found += _of_runs(state, ends, None)
    return found


def _version(decision: Decision, segments: Segments) -> Version:
    run = decision.run if decision.action is not Action.HOLD else ""
    return Version(run=run, at=decision.at, segments=segments)


def _of_runs(state: State, ends: Sequence[RunEnd], until: int | None) -> list[Version]:
    first = state.segments[-1].after
    here = [end for end in ends if end.place > first and (until is None or end.place <= until)]
    return [Version(run=end.run, at=end.at, segments=state.held(end.place)) for end in here]


def to_text(segments: Segments | None) -> str | None:
    """As the log holds them."""
    if segments is None:
        return None
    return json.dumps([[one.after, one.until, one.fingerprint] for one in segments])


def from_text(text: str | None) -> Segments | None:
    """What `to_text` made."""
    return None if text is None else tuple(Segment(*one) for one in json.loads(text))
