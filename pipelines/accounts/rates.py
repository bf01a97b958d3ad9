"""Rates: how fast a count grows, over the last minute and over all its time in few steps."""

from collections import deque

WINDOW_S = 60.0
MOST_STEPS = 32  # of the history; then two become one
_LEAST_S = 2.0  # before so long has passed, a rate says nothing


class Rates:
    """Of one count that never falls. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.bucket_s = 2.0  # of a step of the history; doubles as it grows
        self._seen: deque[tuple[float, float]] = deque()  # of the last minute: when, count
        self._edge: tuple[float, float] | None = None  # where the next step begins
        self._steps: list[float] = []  # counts in a second

    def add(self, now: float, count: float) -> None:
        """The count is so much now."""
        while len(self._seen) > 1 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        self._seen.append((now, count))
        if self._edge is None:
            self._edge = now, count
            return
        since, before = self._edge
        full = int((now - since) / self.bucket_s)
        if not full:
            return
        rate = (count - before) / (now - since)  # if more than one step has passed, each had as much
        self._steps += [rate] * min(full, 2 * MOST_STEPS)
        self._edge = since + full * self.bucket_s, before + rate * full * self.bucket_s
        while len(self._steps) >= MOST_STEPS:
            if len(self._steps) % 2:  # the last half of a step begins anew
                last = self._steps.pop()
                self._edge = self._edge[0] - self.bucket_s, self._edge[1] - last * self.bucket_s
            self._steps = [sum(pair) / 2 for pair in zip(self._steps[::2], self._steps[1::2], strict=True)]
            self.bucket_s *= 2

    def now(self) -> float | None:
        """Counts in a second, of the last minute; None: it has not been looked at for long enough."""
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < _LEAST_S:
            return None
        (since, before), (at, count) = self._seen[0], self._seen[-1]
        return (count - before) / (at - since)

    def lately(self) -> float | None:
        """Of the second half of all its time: what forgets a slow start, and no short pause."""
        half = self._steps[len(self._steps) // 2 :]
        return sum(half) / len(half) if half else self.now()

    def history(self) -> tuple[float, ...]:
        """Counts in a second, step by step."""
        return tuple(self._steps)
