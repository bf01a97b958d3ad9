"""Patience: how long a store that is away is waited for, and who is told so meanwhile.

Each request that is under way is a Wait, from its first attempt to its last, pauses included. What waits long is said
to whoever listens (`telling`), so that a run that stands still says why.
"""

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pipelines.config import UserError

PATIENCE_S = 180.0  # outages and throttling of two minutes are common enough; a third minute is for the way back
VARIABLE = "STORE_PATIENCE_S"  # in the environment, as AWS's settings are, for all processes of a run read it there
PAUSE_MIN_S = 0.1
PAUSE_MAX_S = 10.0
TELL_FAILING_S = 4.0  # a request that failed and is repeated is told of after so long,
TELL_SILENT_S = 10.0  # one that has no answer yet after so long: it may just be slow
TELL_EVERY_S = 15.0

_limit: ContextVar[float | None] = ContextVar("limit", default=None)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Wait:
    """A request under way."""

    store: str
    since: float  # monotonic
    reason: str = ""  # why the last attempt failed; empty: none has
    answered: bool = False

    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self.since

    def pause(self, attempt: int) -> float | None:
        """Seconds until the next attempt, after `attempt` (from 1) has failed; None: patience is over."""
        left = patience_s() - self.seconds()
        if left <= 0:
            return None
        grown = min(PAUSE_MIN_S * 2.0 ** min(attempt, 20), PAUSE_MAX_S)
        return min(grown * random.uniform(0.5, 1.0), left)  # noqa: S311 – so that not all come back at once


_under_way: "weakref.WeakSet[Wait]" = weakref.WeakSet()  # weak: a request that nobody ends is forgotten with itself
_changing = threading.Lock()


def patience_s() -> float:
    """For how long a store may be away: what `at_most` says, else STORE_PATIENCE_S, else 180 s.

    Raises:
        UserError: STORE_PATIENCE_S is no number of seconds.
    """
    limit = _limit.get()
    if limit is not None:
        return limit
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else PATIENCE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{VARIABLE}={text!r} is no number of seconds; give one from 0 on, or unset it")
    return seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """While inside, and in this thread, less patience: before a start, where a wrong endpoint is told at once."""
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


def begin(store: str) -> Wait:
    """A request to `store` is sent for the first time. Keep the result as long as it is under way."""
    wait = Wait(store, time.monotonic())
    with _changing:
        _under_way.add(wait)
    return wait


def end(wait: Wait, *, answered: bool) -> None:
    """It was answered, with whatever; or patience was over."""
    wait.answered = answered
    with _changing:
        _under_way.discard(wait)


@contextmanager
def waiting(store: str) -> Iterator[Wait]:
    """What is done inside is one request to `store`. It is answered unless it is left by an exception."""
    wait = begin(store)
    try:
        yield wait
    except BaseException:
        end(wait, answered=False)
        raise
    end(wait, answered=True)


@contextmanager
def telling(say: Callable[[str], None], *, every_s: float = TELL_EVERY_S, look_s: float = 0.5) -> Iterator[None]:
    """While inside, tell `say` in a line each what this process waits for, and when the store answers again."""
    over = threading.Event()

    def look() -> None:
        told: Wait | None = None
        told_at = float("-inf")
        while not over.wait(look_s):
            longest = _longest()
            if longest is not None and time.monotonic() - told_at >= every_s:
                say(_words(longest))
                told, told_at = longest, time.monotonic()
            elif longest is None and told is not None:
                if told.answered:
                    say(f"the store {told.store} answers again, after {told.seconds():.0f} s")
                told, told_at = None, float("-inf")

    thread = threading.Thread(target=look, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _longest() -> Wait | None:
    """Of the requests that have been under way for long enough to be told of."""
    with _changing:
        waits = list(_under_way)
    long = [wait for wait in waits if wait.seconds() >= (TELL_FAILING_S if wait.reason else TELL_SILENT_S)]
    return min(long, key=lambda wait: wait.since, default=None)


def _words(wait: Wait) -> str:
    if not wait.reason:
        return f"no answer yet from the store {wait.store}, waiting since {wait.seconds():.0f} s"
    return (
        f"the store {wait.store} does not answer ({wait.reason}), waiting since {wait.seconds():.0f} s, "
        f"for at most {patience_s():.0f} s"
    )
